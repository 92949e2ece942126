"""Published weights give the logits, hidden states and tokens that transformers computes from them.

torch and transformers come with the extra `dev`; without them this fails, it does not skip.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from r1jax.core import tree
from r1jax.model import transformer
from r1jax.model.config import runs
from r1jax.model.transformer import Inputs, Transformer

T = 20
TOKENS = np.random.default_rng(0).integers(1, 96, (2, T))


def states(cfg, params, tokens=TOKENS):
  """Normed states after the last layer."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  inputs = Inputs(jnp.asarray(tokens), positions, jnp.ones_like(positions))
  return jax.jit(Transformer(cfg).apply)({'params': params}, inputs).x_BLD


def theirs(model, tokens=TOKENS, **more):
  with torch.no_grad():
    return model(torch.tensor(tokens), **more)


def test_logits_are_those_of_transformers(publish, load, published):
  model, folder = publish(published)
  cfg, params = load(folder)
  want = theirs(model).logits.numpy()
  got = states(cfg, params) @ transformer.head(params, cfg)
  assert np.abs(want).max() > 1
  assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.parametrize('name', ['v3', 'v2'])
def test_states_after_each_block_of_deepseek(publish, load, name):
  model, folder = publish(name)
  cfg, params = load(folder)
  hidden = theirs(model, output_hidden_states=True).hidden_states[1:-1]
  table = tuple((len(run.period), run.repeats) for run in runs(cfg.layers))
  single = tree.restack(params, table, ((1, 1),) * len(cfg.layers))
  for n, state in enumerate(hidden, 1):
    part = dataclasses.replace(cfg, layers=cfg.layers[:n])
    table_n = tuple((len(run.period), run.repeats) for run in runs(part.layers))
    kept = {k: v for k, v in single.items() if not k.startswith('run') or int(k[3:]) < n}
    got = states(part, tree.restack(kept, ((1, 1),) * n, table_n))
    with torch.no_grad():
      want = model.model.norm(state).numpy()
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


def test_64_greedy_tokens_are_those_of_transformers(publish, load, written):
  """By one pass over their text: at each position our best token is the one they took.

  That is what greedy decoding from a cache writes, which tests/engine/generate_test.py shows.
  """
  model, folder = publish(written)
  cfg, params = load(folder)
  prompts, limit = TOKENS[:, :8], 64
  with torch.no_grad():
    texts = model.generate(
      torch.tensor(prompts), max_new_tokens=limit, do_sample=False, eos_token_id=None
    ).numpy()
  assert texts.shape == (2, 8 + limit)
  x_BLD = states(cfg, params, texts[:, :-1])[:, 7:]
  logits_BTV = np.asarray(x_BLD @ transformer.head(params, cfg))
  taken_BT = np.take_along_axis(logits_BTV, texts[:, 8:, None], 2)[..., 0]
  # Another one may be best only where the two are as good as equal.
  assert (logits_BTV.max(-1) - taken_BT).max() < 1e-4
  assert (logits_BTV.argmax(-1) == texts[:, 8:]).mean() > 0.98
