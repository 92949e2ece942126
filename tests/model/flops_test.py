"""Counted flops against the parameters, XLA's own count, and the published size of V3."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core import tree
from r1jax.model import flops, presets, transformer
from r1jax.model.config import (
  GQA,
  MLA,
  Blocks,
  Dense,
  Hybrid,
  KeyTokens,
  Layer,
  ModelConfig,
  Window,
)
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.sharding import place

GROUPED = GQA(4, 2, 32)
LATENT = MLA(heads=4, nope=32, rope=16, value=24, kv_latent=64, q_latent=96)
DIRECT = dataclasses.replace(LATENT, q_latent=None)
L = 128


def shapes(cfg):
  """The shape of every parameter by name."""
  boxed = place.abstract(Transformer(cfg), dummy_inputs(cfg))
  return {
    path: leaf.shape for path, leaf in tree.flatten_named(place.templates(None, boxed)).items()
  }


def matrices(cfg):
  """Numbers in all matrices that a token meets, from the parameters themselves."""
  moe = cfg.layers[-1].mlp
  total = 0
  for path, shape in shapes(cfg).items():
    name = path.split('/')[-1]
    if name.endswith(('scale', 'bias')) or (path == 'embedding' and not cfg.tied):
      continue
    share = 1.0
    if path in ('head', 'embedding'):
      share = 1 + len(cfg.mtp)
    elif '/mlp/' in path and '/shared/' not in path and moe.experts in shape and name != 'weight':
      share = moe.active / moe.experts
    total += share * math.prod(shape)
  return total


@pytest.mark.parametrize('name', ['tiny_r1', 'tiny_moe16', 'deepseek_v3'])
def test_active_matrices_are_those_of_the_parameters(name):
  cfg = getattr(presets, name)()
  assert flops.active_matrices(cfg) == matrices(cfg)


def test_deepseek_v3_costs_six_flops_for_each_of_37_billion_parameters():
  cfg = dataclasses.replace(presets.deepseek_v3(), mtp=())
  token = flops.training_flops(cfg, [1])
  assert token == pytest.approx(6 * 37e9, rel=0.02)  # 222 GFLOP
  n = 4096
  attention = 3 * 2 * 61 * 128 * (128 + 64 + 128) * (n + 1) / 2
  assert flops.training_flops(cfg, [n]) / n == pytest.approx(
    6 * flops.active_matrices(cfg) + attention
  )
  deeper = flops.training_flops(presets.deepseek_v3(), [1]) - token
  own = 2 * 7168**2 + flops.layer_matrices(7168, presets.deepseek_v3().mtp[0])
  pair = 128 * (128 + 64 + 128)
  assert deeper == 6 * (own + 7168 * 129_280 + pair)


@pytest.mark.optimized
@pytest.mark.parametrize('attention', [GROUPED, LATENT, DIRECT], ids=['gqa', 'mla', 'mla_direct'])
def test_forward_flops_are_what_xla_counts(attention):
  # Layers that differ: XLA counts the body of a scan once, however often it runs.
  layers = tuple(Layer(attention, Dense(width)) for width in (256, 320))
  cfg = ModelConfig(300, 256, layers, mtp=layers[:1], remat='none')

  def forward(params, inputs):
    out = Transformer(cfg).apply({'params': params}, inputs)
    return [transformer.logits(params, cfg, x.reshape(-1, 256)) for x in (out.x_BLD, *out.mtp)]

  params = place.templates(None, place.abstract(Transformer(cfg), dummy_inputs(cfg)))
  ids = jax.ShapeDtypeStruct((2, L), jnp.int32)
  counted = jax.jit(forward).lower(params, Inputs(ids, ids, ids, (ids,))).compile()
  # XLA multiplies what the mask hides, too, and counts norms, softmax and rotations (1.2 %).
  hidden = 2 * 3 * flops.pair_width(attention) * 2 * (L * (L - 1) // 2)
  mine = flops.forward_flops(cfg, [L, L]) + hidden
  assert mine < counted.cost_analysis()['flops'] < 1.02 * mine


def test_a_small_model_by_hand():
  cfg = ModelConfig(10, 4, (Layer(GQA(2, 1, 3), Dense(5)),))
  token = 4 * 6 + 2 * 4 * 3 + 6 * 4 + 3 * 4 * 5 + 4 * 10
  assert flops.forward_flops(cfg, [3, 1]) == 2 * (4 * token + (6 + 1) * 2 * 6)
  assert flops.training_flops(cfg, [3, 1]) == 3 * flops.forward_flops(cfg, [3, 1])
  assert flops.training_flops(cfg, []) == 0


@pytest.mark.parametrize('window', [1, 3, 7, 8, 9])
def test_a_window_costs_what_it_lets_through(window):
  rows = sum(min(query + 1, window) for query in range(8))
  assert flops.visible(GQA(2, 1, 3, pattern=Window(window)), 8) == rows
  assert flops.visible(GQA(2, 1, 3), 8) == 8 * 9 // 2


@given(st.lists(st.integers(1, 1000), max_size=5), st.lists(st.integers(1, 1000), max_size=5))
def test_segments_add_up_and_joining_them_only_adds_attention(a, b):
  cfg = presets.tiny_r1()
  both = flops.forward_flops(cfg, a + b)
  assert both == flops.forward_flops(cfg, a) + flops.forward_flops(cfg, b)
  crossed = (sum(a + b) ** 2 - sum(n * n for n in a + b)) // 2
  pairs = sum(flops.pair_width(layer.attention) for layer in (*cfg.layers, *cfg.mtp))
  assert flops.forward_flops(cfg, [sum(a + b)]) - both == 2 * crossed * pairs


def test_a_hybrid_layer_sees_its_window_and_as_many_key_tokens_as_there_is_room_for():
  pattern = Hybrid(3, KeyTokens(0.25, slots=4))
  near = [min(t + 1, 3) for t in range(30)]
  far = [min(t // 4, 4) for t in range(3, 30)]
  assert flops.visible(GQA(2, 1, 4, pattern=pattern), 30) == sum(near) + sum(far)


def test_a_layer_of_blocks_by_hand():
  pattern = Blocks(compress=4, stride=2, select=4, selected=2, first=1, local=1, window=3)
  attention = GQA(4, 2, 8, pattern=pattern)
  # Eleven tokens: four blocks of summaries, which end at 3, 5, 7 and 9.
  ended = [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
  whole = [1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7]
  near = [1, 2, *[3] * 9]
  assert flops.visible(attention, 11) == sum(ended) + sum(whole) + sum(near)
  assert flops.summaries(attention, 11) == 4 * 2 * 2 * (4 * 8 * 8 + 8 * 8)
  assert flops.summaries(attention, 3) == flops.summaries(GROUPED, 11) == 0
  cfg = ModelConfig(10, 16, (Layer(attention, Dense(5)),))
  of_blocks = lambda path: 'summary' in path and path.endswith(('in', 'out'))
  per_token = sum(
    math.prod(shape)
    for path, shape in shapes(cfg).items()
    if not path.endswith(('scale', 'bias')) and path != 'embedding' and not of_blocks(path)
  )
  assert flops.active_matrices(cfg) == per_token
  pairs = flops.visible(attention, 11) * 2 * 4 * 8
  assert flops.forward_flops(cfg, [11]) == 2 * (11 * per_token + pairs + 4 * 2 * 2 * 320)
