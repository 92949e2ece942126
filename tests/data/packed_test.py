"""Packed equals unpacked: losses, gradients, and the independence of segments in one line.

A model with experts and a prediction module; the objective is that of training, cross-entropy plus
multi-token prediction plus balance, each a sum over a denominator of the whole batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import sft
from r1jax.core import tree
from r1jax.data.batch import Row, batch
from r1jax.data.pack import best_fit
from r1jax.kernels.logprob import logprobs
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import transformer
from r1jax.model.config import MLA, Layer, ModelConfig, MoE
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place
from r1jax.train import forward

ATTENTION = MLA(heads=2, nope=8, rope=8, value=8, kv_latent=16, std=0.1)
SPARSE = Layer(ATTENTION, MoE(ffw=16, experts=4, active=2, shared=1, std=0.1))
CFG = ModelConfig(
  vocab=64,
  embed=32,
  layers=(SPARSE,) * 2,
  mtp=(SPARSE,),
  std=0.1,
  remat='none',
)
AUXILIARY = forward.Auxiliary(mtp=0.3, balance=0.1)
LENGTH = 40
TOLERANCE = 1e-6


def make_rows():
  """Rows of 1 … 16 inputs, some with masked prompts."""
  rng = np.random.default_rng(0)
  made = []
  for n in [9, 5, 16, 7, 4, 8, 1, 6, 2, 11, 3]:
    prompt = n // 3 * (n % 2)
    made.append(Row(rng.integers(0, 64, n + 1), np.arange(n + 1) >= prompt))
  return made


@pytest.fixture(scope='module')
def params():
  """Fresh parameters with router biases that matter."""
  made = place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG))
  wave = lambda x: 0.1 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
  return tree.map_named(lambda path, x: wave(x) if path.endswith('router/bias') else x, made)


def objective(params, data, d):
  """The objective; beside it its three sums and the routers' load."""
  out, scored = forward.run(params, CFG, data, Sampling(), None, False)
  main, _ = sft.cross_entropy(scored.logp, data.weights_BL)
  beside, figures = forward.auxiliary(params, CFG, data, out, AUXILIARY, d)
  sums = {'main': main, 'mtp': figures['mtp_loss'][0], 'balance': figures['balance_loss'][0]}
  return main / d.main + beside, (sums, out.load)


@jax.jit
def measured(params, data):
  """(loss, (sums, load)), gradients."""
  d = forward.denominators(data, data.weights_BL.sum(), CFG)
  return jax.value_and_grad(objective, has_aux=True)(params, data, d)


@jax.jit
def scored(params, data):
  """Log-probabilities of targets and of those ahead, and the experts of every run of layers."""
  out, main = forward.run(params, CFG, data, Sampling(), None, False)
  head = transformer.head(params, CFG)
  ahead = [logprobs(x_BLD, head, y_BL).logp for x_BLD, y_BL in zip(out.mtp, data.ahead_targets)]
  return [main.logp, *ahead], jax.tree.leaves(out.routes)


def unpacked(rows):
  """A line a row."""
  return batch([[row] for row in rows], LENGTH, 1)


def packed(rows):
  """The rows in as few lines as best fit makes, then empty ones: the same shape, so one program."""
  lines = best_fit([len(row.tokens) - 1 for row in rows], LENGTH)
  assert len(lines) < len(rows) / 2
  empty = [[]] * (len(rows) - len(lines))
  return batch([[rows[i] for i in line] for line in lines] + empty, LENGTH, 1), lines


def test_bar_packed_losses_and_gradients_are_the_unpacked_ones(params):
  rows = make_rows()
  (loss, (sums, load)), grads = measured(params, unpacked(rows))
  (other, (sums2, load2)), grads2 = measured(params, packed(rows)[0])
  np.testing.assert_allclose(other, loss, rtol=TOLERANCE)
  assert min(sums.values()) > 1  # there is something to compare
  for name, value in sums.items():
    np.testing.assert_allclose(sums2[name], value, rtol=TOLERANCE, err_msg=name)
  jax.tree.map(np.testing.assert_array_equal, load2, load)
  grads, grads2 = tree.flatten_named(grads), tree.flatten_named(grads2)
  norm = np.linalg.norm
  off = {p: norm(grads2[p] - g) / norm(g) for p, g in grads.items() if 'router/bias' not in p}
  assert max(off.values()) < TOLERANCE and len(off) == len(grads) - 2, off


def test_segments_do_not_see_each_other(params):
  """Other tokens in one segment change its own scores and experts and no others."""
  rows = make_rows()
  data, lines = packed(rows)
  line, changed = 0, 1  # the second segment of the first line
  assert len(lines[line]) > 2
  target = lines[line][changed]
  other = Row((np.asarray(rows[target].tokens) + 7) % CFG.vocab, rows[target].weights)
  new, _ = packed([other if i == target else row for i, row in enumerate(rows)])
  inside = np.zeros(data.targets_BL.shape, bool)
  inside[line] = data.inputs.segments_BL[line] == changed + 1
  outside = (data.inputs.segments_BL > 0) & ~inside
  (logps, routes), (logps2, routes2) = scored(params, data), scored(params, new)
  for a_BL, b_BL in zip(logps, logps2):
    np.testing.assert_allclose(b_BL[outside], a_BL[outside], rtol=0, atol=TOLERANCE)
    assert np.abs(b_BL - a_BL)[inside].max() > 0.1
  for a_nBLA, b_nBLA in zip(routes, routes2):
    same = np.asarray(a_nBLA == b_nBLA).all((0, -1))
    assert same[outside].all() and not same[inside].all()


def test_every_token_scores_as_it_does_alone(params):
  rows = make_rows()
  data, lines = packed(rows)
  together, _ = scored(params, data)
  alone, _ = scored(params, unpacked(rows))
  for b, line in enumerate(lines):
    for s, i in enumerate(line, 1):
      here, n = data.inputs.segments_BL[b] == s, len(rows[i].tokens) - 1
      for depth, (a_BL, b_BL) in enumerate(zip(alone, together)):
        got, expected = b_BL[b][here][: n - depth], a_BL[i][: n - depth]
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
