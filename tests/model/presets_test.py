"""Sizes of the named models, counted by shape, without memory."""

import math

import pytest

from r1jax.core import tree
from r1jax.model import presets
from r1jax.model.config import Dense, MoE, runs
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place


def sizes(cfg):
  """Elements of every parameter by name."""
  shapes = place.templates(None, place.abstract(Transformer(cfg), dummy_inputs(cfg)))
  return {path: math.prod(leaf.shape) for path, leaf in tree.flatten_named(shapes).items()}


def test_deepseek_v3_has_671_billion_parameters_of_which_37_are_active():
  cfg = presets.deepseek_v3()
  assert [(len(r.period), r.repeats) for r in runs(cfg.layers)] == [(1, 3), (1, 58)]
  main = {path: n for path, n in sizes(cfg).items() if not path.startswith('mtp')}
  assert round(sum(main.values()) / 1e9, 1) == 671.0
  moe = cfg.layers[-1].mlp
  routed = sum(main[f'run1/block0/mlp/{name}'] for name in ('gate', 'up', 'down'))
  idle = routed * (moe.experts - moe.active) / moe.experts
  # A token reads one row of the embedding.
  active = sum(main.values()) - idle - main['embedding']
  assert round(active / 1e9) == 37
  assert cfg.layers[0].mlp == Dense(18_432)


def test_deepseek_v32_is_v3_with_an_indexer_in_every_layer():
  more = set(sizes(presets.deepseek_v32()).items()) - set(sizes(presets.deepseek_v3()).items())
  assert all('/attention/indexer/' in path for path, _ in more)
  layer = 1536 * 64 * 128 + 7168 * 128 + 2 * 128 + 7168 * 64  # queries, key, its norm, weights
  assert sum(n for _, n in more) == 62 * layer


def test_deepseek_v3_keeps_576_numbers_a_token_and_layer():
  attention = presets.deepseek_v3().layers[0].attention
  assert attention.kv_latent + attention.rope == 576


@pytest.mark.parametrize(
  'cfg, millions',
  [(presets.tiny_r1(), 1.4), (presets.tiny_dense(), 0.8), (presets.tiny_moe16(), 2.0)],
  ids=['tiny_r1', 'tiny_dense', 'tiny_moe16'],
)
def test_tiny_models(cfg, millions):
  main = sum(n for path, n in sizes(cfg).items() if not path.startswith('mtp'))
  assert round(main / 1e6, 1) == millions


def test_tiny_r1_takes_its_depth():
  assert [type(layer.mlp) for layer in presets.tiny_r1(3).layers] == [Dense, MoE, MoE]


@pytest.mark.parametrize(
  'make, billions',
  [
    (presets.smollm2_135m, 0.1345),
    (presets.qwen_1b5, 1.777),
    (presets.qwen_7b, 7.616),
    (presets.qwen_14b, 14.77),
    (presets.qwen_32b, 32.76),
    (presets.llama_8b, 8.030),
    (presets.llama_70b, 70.55),
    (presets.deepseek_v2_lite, 15.71),
  ],
)
def test_public_models_have_their_published_sizes(make, billions):
  total = sum(sizes(make()).values()) / 1e9
  assert total == pytest.approx(billions, rel=5e-4)
