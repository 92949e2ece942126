"""One step: the gradient depends on the batch alone, on its split, packing and devices not at all.

Gradients are read off whole steps of plain descent with rate 1; rollouts are real ones of a random
model, whose answers are rewarded by their bytes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.algos.advantages import group_advantages
from r1jax.core import metrics, tree
from r1jax.data.batch import Row, batch
from r1jax.engine.engine import Engine
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.rollout import collect
from r1jax.rollout.collect import Limits, Trajectories
from r1jax.rollout.trajectory import rl_batch
from r1jax.tasks.task import Example
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import rl, supervised
from r1jax.train import step as steps
from r1jax.train.state import State
from r1jax.train.supervised import SFT

TOK = ByteTokenizer()
TOLERANCE = 1e-5
UNEQUAL = {'load_max_over_mean', 'fill'}  # a maximum over a microbatch; padding is the layout's
ROWS = [  # of different lengths and prompts, in lines of one
  Row([*range(i, i + n)], [0.0] * (n // 3) + [1.0] * (n - n // 3))
  for i, n in enumerate([9, 5, 12, 7, 4, 8, 11, 6], 60)
]


@functools.cache
def program(cfg, stage, microbatches):
  """The whole step as plain descent of rate 1."""
  if isinstance(stage, SFT):
    axis, d = steps.rows_first, functools.partial(supervised.denominators, cfg=cfg)
    loss = functools.partial(supervised.loss, cfg=cfg, auxiliary=stage.auxiliary)
  else:
    axis, d = rl.batch_axis, functools.partial(rl.denominators, cfg=cfg, stage=stage)
    loss = functools.partial(rl.loss, cfg=cfg, stage=stage)
  return jax.jit(steps.make(loss, d, optax.sgd(1.0), 1e-2, microbatches, axis))


def descend(cfg, stage, params, data, microbatches=1):
  """Parameters and metrics after one step."""
  state = State(jnp.int32(0), params, optax.sgd(1.0).init(params))
  after, measured = program(cfg, stage, microbatches)(state, data)
  assert after.step == 1
  return after.params, metrics.finish(measured)


def assert_same(a, b, skip=()):
  """Parameters (so gradients and bias updates) and metrics of two steps agree."""
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=TOLERANCE, rtol=0), a[0], b[0])
  assert a[1].keys() == b[1].keys()
  for name in a[1].keys() - set(skip):
    np.testing.assert_allclose(a[1][name], b[1][name], rtol=TOLERANCE, atol=1e-6, err_msg=name)


@pytest.fixture(scope='module')
def sft(experiment, params):
  """sft(lines, length, microbatches): one supervised step on rows laid out so."""

  def go(lines, length, microbatches=1):
    data = batch(lines, length, 1)
    return descend(experiment.model, experiment.stages[0], params, data, microbatches)

  return go


@pytest.fixture(scope='module')
def unpacked(sft):
  return sft([[row] for row in ROWS], 12)


PACKED = [[ROWS[2], ROWS[0]], [], ROWS[3:8], [ROWS[1]]]
LAYOUTS = [  # lines, inputs a line, microbatches
  (PACKED, 40, 2),
  pytest.param(PACKED, 45, 1, marks=pytest.mark.slow),
  pytest.param([[row] for row in ROWS], 12, 4, marks=pytest.mark.slow),
]


@pytest.mark.parametrize('lines, length, microbatches', LAYOUTS)
def test_contract_01_sft_gradient_does_not_depend_on_packing_padding_or_microbatches(
  sft, unpacked, lines, length, microbatches
):
  assert_same(sft(lines, length, microbatches), unpacked, UNEQUAL)


def test_the_gradient_is_large_enough_in_every_leaf_to_be_compared(params, unpacked):
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, unpacked[0])
  small = {path: x for path, x in tree.flatten_named(moved).items() if x < 100 * TOLERANCE}
  assert not small  # the comparison has something to compare, in every leaf


@functools.cache
def stopping(cfg):
  """An engine with many stops: some answers end early, some not at all."""
  return Engine(cfg, tuple(range(0, cfg.vocab, 8)))


def trajectories(cfg, params, sampling):
  """Real rollouts of 4 answers to each of 4 questions."""
  engine = stopping(cfg)
  examples = [Example(str(i), q) for i, q in enumerate(['1+1', '22+3', '7', '10 - 30'])]
  prompts_BP, lengths_B, made = collect.sample(
    engine, params, TOK, examples,
    group=4, key=jax.random.key(3), first=0, sampling=sampling, limits=Limits(10, 12),
  )  # fmt: skip
  return Trajectories(prompts_BP, lengths_B, made, [], [])


def rewards(t):
  tokens = np.asarray(t.samples.tokens_BT)
  return (tokens.sum(1) % 7 / 6).astype(np.float32)


def prepared(t, cfg, stage, params, replay=True):
  """The batch as reinforce.prepare makes it, on one device."""
  groups = jnp.asarray(rewards(t)).reshape(-1, 4)
  advantage_B = np.asarray(group_advantages(groups, stage.algorithm.scale)).reshape(-1)
  b = rl_batch(t, advantage_B, len(cfg.mtp), replay)
  reference = jax.tree.map(lambda x: x + 0.02 * jnp.sin(100 * x), params)
  return b._replace(ref_BL=np.asarray(scorer(cfg, rl.reference_sampling(stage))(reference, b)))


@functools.cache
def scorer(cfg, sampling):
  return jax.jit(functools.partial(rl.score, cfg=cfg, sampling=sampling))


@pytest.fixture(scope='module')
def rollouts(experiment, params):
  return trajectories(experiment.model, params, Sampling())


@pytest.fixture(scope='module')
def grpo(experiment, params, rollouts):
  """(stage, batch, result of the whole step) with answers of unequal length."""
  stage = experiment.stages[1]
  b = prepared(rollouts, experiment.model, stage, params)
  assert len(set(rollouts.samples.length_B.tolist())) > 3 and b.truncated_B.any()
  return stage, b, descend(experiment.model, stage, params, b)


@pytest.mark.parametrize('microbatches', [4, pytest.param(1, marks=pytest.mark.slow)])
def test_contract_01_grpo_gradient_does_not_depend_on_padding_or_microbatches(
  experiment, params, grpo, microbatches
):
  """Three columns and four rows without a token more change nothing; nor does their content."""
  stage, b, whole = grpo

  def pad(x, a):
    wide = [(0, 0)] * x.ndim
    wide[a] = (0, 4)
    if x.ndim > a + 1:
      wide[a + 1] = (0, 3)
    return np.pad(x, wide)

  wider = jax.tree.map(pad, b, rl.batch_axis(b))
  hidden = np.asarray(wider.batch.inputs.segments_BL) == 0
  dirty = lambda x: np.where(hidden, 77, x)
  inputs = wider.batch.inputs._replace(tokens_BL=dirty(wider.batch.inputs.tokens_BL))
  data = wider.batch._replace(inputs=inputs, targets_BL=dirty(wider.batch.targets_BL))
  wider = wider._replace(batch=data)
  assert_same(descend(experiment.model, stage, params, wider, microbatches), whole, UNEQUAL)


@pytest.mark.slow
def test_contract_01_grpo_gradient_does_not_depend_on_two_microbatches(experiment, params, grpo):
  stage, b, whole = grpo
  assert_same(descend(experiment.model, stage, params, b, 2), whole, UNEQUAL)


def test_contract_01_padding_is_neither_routed_nor_counted(experiment, params, grpo):
  """Each of two experts a token: the load is twice the tokens, in every layer."""
  stage, b, _ = grpo
  d = rl.denominators(b, experiment.model, stage)
  aux = jax.jit(functools.partial(rl.loss, cfg=experiment.model, stage=stage))(params, b, d)[1]
  tokens = (b.batch.inputs.segments_BL > 0).sum()
  sums = [np.asarray(load.sum(-1)).reshape(-1) for load in aux.load.values()]
  assert np.concatenate(sums).tolist() == [2.0 * tokens] * 3


@pytest.mark.parametrize(
  'sampling', [Sampling(), Sampling(0.7, top_k=20, top_p=0.9)], ids=['plain', 'truncated']
)
def test_contract_04_rollout_and_trainer_agree_on_log_probabilities(experiment, params, sampling):
  """With the rollout's experts, temperature, top-k and top-p: contracts 3, 4 and 5."""
  t = trajectories(experiment.model, params, sampling)
  b = rl_batch(t, np.zeros(16, np.float32), 1, replay=True)
  counted = b.batch.weights_BL > 0
  scored = np.asarray(scorer(experiment.model, sampling)(params, b))
  assert counted.sum() == t.samples.length_B.sum() > 60
  np.testing.assert_allclose(scored[counted], b.sampled_BL[counted], atol=1e-5)
  if sampling == Sampling():
    free = np.asarray(scorer(experiment.model, sampling)(params, b._replace(routes=None)))
    np.testing.assert_allclose(free[counted], b.sampled_BL[counted], atol=1e-5)
    other = jax.tree.map(lambda r: (r + 1) % 4, b.routes)  # routes do enter
    off = np.asarray(scorer(experiment.model, sampling)(params, b._replace(routes=other)))
    assert np.abs(off - scored)[counted].max() > 1e-2


def test_contract_03_the_wrong_temperature_or_truncation_would_be_seen(experiment, params):
  sampling = Sampling(0.7, top_k=20, top_p=0.9)
  t = trajectories(experiment.model, params, sampling)
  b = rl_batch(t, np.zeros(16, np.float32), 1, replay=True)
  counted = b.batch.weights_BL > 0
  plain = np.asarray(scorer(experiment.model, Sampling())(params, b))
  assert np.abs(plain - b.sampled_BL)[counted].mean() > 0.1


def test_contract_03_a_truncated_rollout_with_a_reference_has_a_finite_step(experiment, params):
  """The reference lacks some of the policy's tokens, the policy after an update some of its own."""
  sampling = Sampling(0.7, top_k=20, top_p=0.9)
  stage = dataclasses.replace(experiment.stages[1], sampling=sampling)
  b = prepared(trajectories(experiment.model, params, sampling), experiment.model, stage, params)
  moved = jax.tree.map(lambda x: x + 0.05 * jnp.sin(300 * x), params)
  new, figures = descend(experiment.model, stage, moved, b)
  assert 0 < figures['outside'] < 0.5
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(new))
  assert all(np.isfinite(x) for x in figures.values())
  _, same = descend(experiment.model, stage, params, b)
  assert same['outside'] == 0 and same['ratio'] == pytest.approx(1, abs=1e-4)
