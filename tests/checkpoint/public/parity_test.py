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
from r1jax.engine.generate import generate
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import transformer
from r1jax.model.config import runs
from r1jax.model.transformer import Inputs, Transformer

T = 20
TOKENS = np.random.default_rng(0).integers(1, 96, (2, T))


pytestmark = pytest.mark.usefixtures('quick_compilation')


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


def test_64_greedy_tokens_are_those_of_transformers(publish, load, published):
  model, folder = publish(published)
  cfg, params = load(folder)
  prompts, limit = TOKENS[:, :8], 64
  with torch.no_grad():
    out = model.generate(
      torch.tensor(prompts), max_new_tokens=limit, do_sample=False, eos_token_id=None
    ).numpy()[:, 8:]
  made = jax.jit(
    lambda p: generate(
      p, jnp.asarray(prompts), jnp.array([8, 8]), jax.random.split(jax.random.key(0), 2),
      cfg=cfg, sampling=Sampling(temperature=0.0), stops=(), limit=limit,
    )
  )(params).tokens_BT  # fmt: skip
  for row, (got, want) in enumerate(zip(np.asarray(made), out)):
    differ = np.flatnonzero(got != want)
    if differ.size:  # allowed only where the two best logits are as good as equal
      at = np.concatenate([prompts[row], want[: differ[0]]])[None]
      best = np.sort(theirs(model, at).logits.numpy()[0, -1])[-2:]
      assert best[1] - best[0] < 1e-4
