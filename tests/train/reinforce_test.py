"""From a rollout to updates: advantages, minibatches, replayed sets, pauses between them."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos.advantages import Std, group_advantages
from r1jax.algos.shaping import Rank, Shaping, ranks, shape
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.tasks.task import Grade, Outcome
from r1jax.train import reinforce, rl, weights
from r1jax.train import state as states
from tests.train.stand_ins import NOTHING, Collect, again, done, fresh, grade, hand_made


def test_a_rollout_may_be_used_up_after_a_pause(experiment, bare):
  """Before each update: the rest of the minibatches gives the same bits and figures."""
  stage, keep = experiment.stages[1], Collect()
  run = bare(experiment, None, grade)
  whole = reinforce.run_rl(run, stage, fresh(experiment, stage), keep)
  assert [(p.step, p.pending.done) for p in keep.paused] == [(0, 0), (0, 1), (1, 0), (1, 1)]
  run.engine = None  # what was sampled must not be sampled again
  for point in keep.paused[2:]:
    rest = Collect()
    made = reinforce.run_rl(run, stage, again(point), rest)
    jax.tree.map(np.testing.assert_array_equal, whole, made)
    # What was sampled elsewhere has no speed here.
    drop = {
      name: value for name, value in keep.seen[1][2].items() if name not in ('tokens', 'flops')
    }
    assert rest.seen[0][2] == drop


def test_contract_10_groups_are_normalized_before_minibatches_are_made(experiment, bare):
  """A minibatch's advantages are those of whole groups; a group of equal rewards has exactly 0."""
  stage = dataclasses.replace(
    experiment.stages[1],
    minibatches=4,
    algorithm=dataclasses.replace(experiment.stages[1].algorithm, beta=0.0),
  )
  reward = np.random.default_rng(0).integers(0, 3, 16) / 2
  reward[4:8] = 0.1
  t = hand_made(reward)
  run = bare(experiment)
  b = reinforce.prepare(run, stage, NOTHING, done(t), None).batch
  r = reward.reshape(4, 4)
  expected = (r - r.mean(1, keepdims=True)) / (r.std(1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(b.advantage_B, expected.reshape(-1), atol=1e-4)
  assert not b.advantage_B[4:8].any()
  parts = reinforce.minibatches(b, stage, jax.random.key(0))
  of = {row.batch.targets_BL[i, 0]: row.advantage_B[i] for row in parts for i in range(4)}
  assert len(parts) == 4 and len(of) == 16
  np.testing.assert_array_equal([of[i + 1] for i in range(16)], b.advantage_B)


def test_rewards_are_shaped_before_advantages_are_taken(experiment, bare, monkeypatch):
  algorithm = dataclasses.replace(experiment.stages[1].algorithm, beta=0.0)
  stage = dataclasses.replace(experiment.stages[1], algorithm=algorithm, shaping=Shaping(by=Rank()))
  lengths = []
  spy = lambda reward_PG, length_PG, cfg: (
    lengths.append(length_PG) or shape(reward_PG, length_PG, cfg)
  )
  monkeypatch.setattr(rl, 'shape', spy)
  reward = np.random.default_rng(0).integers(0, 3, 16) / 2
  found = reinforce.prepare(bare(experiment), stage, NOTHING, done(hand_made(reward)), None)
  expected = group_advantages(ranks(reward.reshape(4, 4)), Std()).reshape(-1)
  np.testing.assert_allclose(found.batch.advantage_B, expected, atol=1e-5)
  np.testing.assert_array_equal(lengths, np.ones((1, 4, 4)))


def restricted(experiment, **fields):
  """The experiment, its second stage sampling within sets of at most 20 tokens."""
  sft, policy = experiment.stages
  policy = dataclasses.replace(policy, sampling=Sampling(0.7, 20, 0.9), **fields)
  return dataclasses.replace(experiment, stages=(sft, policy))


def test_contract_03_no_token_leaves_a_replayed_set(experiment, bare):
  """On-policy the ratio is 1 and the KL 0; after an update every token still has a probability.

  The trainer's own sets lose some tokens of the same rollout then.
  """
  exp = restricted(experiment, support='replay')
  stage, run = exp.stages[1], bare(exp, None, grade)
  params = fresh(exp, stage).state.params
  state = states.State(None, params, None, params)
  made = reinforce.rollout(run, stage, params, 0, 0)
  b = reinforce.prepare(run, stage, state, made, reinforce.comparison(run, stage)).batch
  d = rl.denominators(b, exp.model, stage)

  def measured(stage, params, b):
    f = jax.jit(functools.partial(rl.loss, cfg=exp.model, stage=stage))
    total, weight = 0, 1
    m = f(params, b, d)[1].metrics
    return {name: float(pair[total] / pair[weight]) for name, pair in m.items()}

  now = measured(stage, params, b)
  assert now['outside'] == 0 and now['sampled_difference'] < 1e-5
  assert abs(now['ratio'] - 1) < 1e-5 and now['kl'] < 1e-8
  moved = jax.tree.map(lambda x: x + 0.05 * jnp.sin(300 * x), params)
  own = dataclasses.replace(stage, support='own')
  later = measured(stage, moved, b)
  lost = measured(own, moved, b._replace(support_BLK=None))
  assert later['outside'] == 0 and 0 < lost['outside'] < 0.5
  assert all(np.isfinite(x) for x in later.values())
  assert later['ratio'] > 0 and later['kl'] > 1e-3


def some_correct(calls):
  """Right by the bytes of an answer: many groups are all wrong, some are not."""
  right = [sum(map(ord, text)) % 5 == 0 for _, text in calls]
  return [Grade(Outcome.CORRECT if r else Outcome.WRONG, float(r)) for r in right]


def test_contract_11_a_run_with_refill_and_replay_resumes_with_the_same_bits(experiment, bare):
  """After a step and between its updates: the questions go on where the refills had come to."""
  exp = restricted(experiment, support='replay', refill=rl.Refill(3))
  stage, keep = exp.stages[1], Collect()
  run = bare(exp, None, some_correct)
  asked, examples = [], run.task.examples
  run.task.examples = lambda *args: asked.append(args) or examples(*args)
  batches = []
  whole = reinforce.run_rl(run, stage, fresh(exp, stage), keep)
  assert asked == [('rl', 4 * i, 4) for i in range(len(asked))]
  points = [point for _, point, _ in keep.seen]
  assert points[-1].asked == 4 * len(asked) > 4 * 2  # more than one rollout in some step
  assert sum(f['rollouts'] for *_, f in keep.seen) == len(asked)
  for point in {p.step: p for p in keep.paused}.values():
    adv_PG = point.pending.batch.advantage_B.reshape(4, 4)
    batches.append(adv_PG.any(axis=1))
  for kept, (*_, figures) in zip(batches, keep.seen, strict=True):
    assert kept.sum() == min(4, round(figures['groups_kept'] * 4 * figures['rollouts']))
    assert kept.all() or figures['rollouts'] == 4
  assert any(kept.all() for kept in batches)
  for point in (points[0], *keep.paused[1:]):
    rest = Collect()
    made = reinforce.run_rl(run, stage, again(point), rest)
    jax.tree.map(np.testing.assert_array_equal, whole, made)
    assert rest.seen[-1][1].asked == points[-1].asked


def test_prepare_asks_the_policy_for_the_old_and_the_reference_for_its_own(experiment, bare):
  stage = experiment.stages[1]
  recomputed = dataclasses.replace(stage.algorithm, old='recomputed')
  stage = dataclasses.replace(stage, algorithm=recomputed)
  names = weights.model_only(experiment.model, collections.defaultdict(lambda: 'policy'))
  state = states.State(None, names, None, 'reference')
  score = lambda who, b: np.full(b.sampled_BL.shape, {'policy': -1.0}[who['embedding']])
  refer = lambda who, b: np.full(b.sampled_BL.shape, {'reference': -2.0}[who])
  against = reinforce.Comparison(score, refer, None)
  t = done(hand_made(np.ones(16)))
  b = reinforce.prepare(bare(experiment), stage, state, t, against).batch
  assert (b.old_BL == -1).all() and (b.ref_BL == -2).all() and b.batch.targets_BL.shape == (16, 1)


def test_one_minibatch_is_the_batch_itself(experiment):
  stage = dataclasses.replace(experiment.stages[1], minibatches=1)
  batch = rl.RLBatch(None, None, np.zeros(3), None, None)
  assert reinforce.minibatches(batch, stage, jax.random.key(0)) == [batch]
