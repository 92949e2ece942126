"""The loops around the steps: on a mesh, over minibatches, from a step in the middle."""

import collections
import contextlib
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.advantages import Std, group_advantages
from r1jax.algos.shaping import Rank, Shaping, ranks, shape
from r1jax.core import prng
from r1jax.data import stream
from r1jax.engine.generate import Samples
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.rewards.group import GroupWeights
from r1jax.rollout import telemetry
from r1jax.rollout.collect import Trajectories
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.tasks.file import from_functions
from r1jax.tasks.task import Example, Grade, Outcome
from r1jax.train import forward, reinforce, rl, rollouts, stages, supervised, weights
from r1jax.train import state as states
from r1jax.train.point import Point

NOTHING = states.State(None, None, None)


def grade(calls):
  """Rewards by the bytes of an answer: a random model has no other merits."""
  return [Grade(Outcome.WRONG, sum(map(ord, text)) % 7 / 6, {}) for _, text in calls]


def fresh(exp, stage, mesh=None):
  """The start of a stage."""
  params = states.init_params(Transformer(exp.model), 0, mesh, dummy_inputs(exp.model))
  state = states.fresh(params, optim.make(stage.optimizer, params), mesh)
  return Point(exp.stages.index(stage), 0, state)


class Collect:
  """A keeper that keeps points (on the host: the next step donates their state) and figures."""

  def __init__(self):
    self.seen, self.paused = [], []

  def done(self, point, figures):
    point = dataclasses.replace(point, state=jax.device_get(point.state))
    self.seen.append((point.step, point, figures))

  def pause(self, point):
    self.paused.append(dataclasses.replace(point, state=jax.device_get(point.state)))

  def resting(self, _):
    return contextlib.nullcontext()


def run_both(exp, bare, mesh=None):
  """What each stage's steps left behind: [(step, state, figures)] of SFT, then of RL."""
  sft, policy = exp.stages
  run, keep = bare(exp, mesh, grade), {'sft': Collect(), 'grpo': Collect()}
  stages.run_supervised(run, sft, fresh(exp, sft, mesh), keep['sft'])
  reinforce.run_rl(run, policy, fresh(exp, policy, mesh), keep['grpo'])
  return {name: k.seen for name, k in keep.items()}


@pytest.fixture(scope='module')
def short(experiment):
  """One step a stage; two minibatches, so that the second sees a policy off its reference."""
  sft, policy = experiment.stages
  sft = dataclasses.replace(sft, steps=1)
  policy = dataclasses.replace(policy, steps=1)
  return dataclasses.replace(experiment, stages=(sft, policy))


def test_contract_01_whole_steps_on_a_mesh_equal_those_of_one_device(short, bare):
  """Both stages, rollout included, on fsdp × expert × tensor; the router bias among the params."""
  expected = run_both(short, bare)
  mesh = meshes.make(Mesh(fsdp=2, expert=2, tensor=2))
  with jax.set_mesh(mesh):
    made = run_both(short, bare, mesh)
  close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=0)
  for stage in expected:
    for (_, a, figures), (_, b, others) in zip(expected[stage], made[stage], strict=True):
      a, b = a.state, b.state
      jax.tree.map(close, a.params, b.params)
      jax.tree.map(close, a.opt, b.opt)
      assert figures.keys() == others.keys()
      for name, value in figures.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
      bias = a.params['run0']['block0']['mlp']['router']['bias']
      assert np.abs(bias).max() > 0
  assert expected['grpo'][0][2]['reward'] > 0 and expected['grpo'][0][2]['kl'] > 0


def again(point):
  """The point as a new process has it."""
  return dataclasses.replace(point, state=jax.device_put(point.state))


def test_resuming_in_the_middle_repeats_the_rest(experiment, bare):
  """From the point after step 1 the stages give the same bits, data and random numbers included."""
  for stage in experiment.stages:
    go = stages.run_supervised if stage.name == 'sft' else reinforce.run_rl
    run, keep = bare(experiment, None, grade), Collect()
    whole = go(run, stage, fresh(experiment, stage), keep)
    rest = go(run, stage, again(keep.seen[0][1]), Collect())
    jax.tree.map(np.testing.assert_array_equal, whole, rest)
    assert [s for s, *_ in keep.seen] == list(range(1, stage.steps + 1))


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


def test_pretraining_goes_through_its_phases_and_resumes_between_them(pretraining, bare):
  """Other shapes and another context after some steps, one optimizer; the data never repeat."""
  exp, (stage,) = pretraining, pretraining.stages
  run, keep = bare(exp), Collect()
  whole = stages.run_supervised(run, stage, fresh(exp, stage), keep)
  assert [s for s, *_ in keep.seen] == [1, 2, 3, 4, 5, 6] and int(whole.step) == 6
  assert all(f['loss'] > 0 and f['skipped'] == 0 for *_, f in keep.seen)
  given = [tuple(p.position[0, : stream.END]) for _, p, _ in keep.seen]  # (first, given) of a block
  assert given[:2] == [(0, 2), (0, 4)]  # blocks of four lines
  assert given == sorted(set(given))  # a batch ramp goes on in the block, nothing comes twice
  assert given[5][0] >= keep.seen[4][1].position[0, stream.END]  # other lengths: the next block
  for number in (2, 3, 5):  # at the end of a phase, within one, and before the last
    rest = stages.run_supervised(run, stage, again(keep.seen[number - 1][1]), Collect())
    jax.tree.map(np.testing.assert_array_equal, whole, rest)


def test_phases_without_steps_are_passed_over(pretraining, bare):
  """Nothing was read before the first phase that has some."""
  stage = pretraining.stages[0]
  none = tuple(dataclasses.replace(phase, steps=0) for phase in stage.phases[:-1])
  stage = dataclasses.replace(stage, phases=(*none, stage.phases[-1]))
  exp, keep = dataclasses.replace(pretraining, stages=(stage,)), Collect()
  stages.run_supervised(bare(exp), stage, fresh(exp, stage), keep)
  assert len(keep.seen) == stage.phases[-1].steps


def test_held_out_loss_is_the_mean_over_its_tokens(pretraining, bare):
  exp, (stage,) = pretraining, pretraining.stages
  params = fresh(exp, stage).state.params
  run = bare(exp)
  loss = stages.held_out_loss(run, stage, params)
  segment = supervised.segments(stage, exp.model)[-1]
  total = weight = 0.0
  with stages.feed(run, stage.held_out, segment.shape) as data:
    for batch, _ in itertools.islice(data, stage.held_out_batches):
      _, scored = forward.run(params, exp.model, batch, Sampling(), None, True)
      total -= (scored.logp * batch.weights_BL).sum()
      weight += batch.weights_BL.sum()
  assert weight > 100
  np.testing.assert_allclose(loss, total / weight, rtol=1e-6)


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


def test_samples_are_paid_for_what_they_are_beside_their_siblings(experiment, bare, monkeypatch):
  """The reward of a group part, and the part in the log, behind each sample's own grade."""
  stage = dataclasses.replace(experiment.stages[1], rewards=GroupWeights(diversity=0.3))
  experiment = dataclasses.replace(experiment, stages=(stage,))
  made = hand_made(np.ones(16))
  rows = (made.prompts_BP, made.prompt_lengths_B, made.samples)
  monkeypatch.setattr(rollouts.collect, 'sample', lambda *_, **__: rows)
  run = bare(experiment, grade=lambda calls: [Grade(Outcome.CORRECT, 1.0) for _ in calls])
  t = reinforce.rollout(run, stage, None, 0, 0).kept
  assert [set(g.parts) for g in t.grades] == [{'diversity'}] * 16
  for g in t.grades:
    assert g.reward == pytest.approx(1 + 0.3 * g.parts['diversity'])
  assert {g.parts['diversity'] for g in t.grades} != {0.0}


def test_a_task_s_own_group_parts_pay_too(experiment, bare, monkeypatch):
  """Those of its file, beside those of the stage: each sees whole groups and tokens as lengths."""
  seen = []

  def first(samples):
    seen.append([(s.text, s.length) for s in samples])
    return [float(s is samples[0]) for s in samples]

  stage = dataclasses.replace(experiment.stages[1], rewards=GroupWeights(relative_conciseness=0.1))
  experiment = dataclasses.replace(experiment, stages=(stage,))
  made = hand_made(np.ones(16))
  rows = (made.prompts_BP, made.prompt_lengths_B, made.samples)
  monkeypatch.setattr(rollouts.collect, 'sample', lambda *_, **__: rows)
  run = bare(experiment, grade=lambda calls: [Grade(Outcome.CORRECT, 1.0) for _ in calls])
  run.task = from_functions(
    'own', lambda seed: Example('', str(seed)), lambda *_: True, group={'first': (0.5, first)}
  )
  t = reinforce.rollout(run, stage, None, 0, 0).kept
  assert [g.reward for g in t.grades] == pytest.approx([1.6, 1.1, 1.1, 1.1] * 4)
  assert [set(g.parts) for g in t.grades] == [{'first', 'relative_conciseness'}] * 16
  assert len(seen) == 4 and [s for group in seen for s in group] == [(x, 1) for x in t.texts]


def script(monkeypatch, *scripted):
  """Rollouts of these groups, each the outcomes of its samples, in place of sampled ones."""
  asked = []

  def sampled(run, stage, params, step, first, behind):
    groups = scripted[first // stage.prompts]
    reward = np.array([float(c == 'c') for group in groups for c in group])
    t = hand_made(reward, first * stage.algorithm.group)
    asked.append((step, first, behind))
    outcome = {'c': Outcome.CORRECT, 'w': Outcome.WRONG}
    outcomes = [outcome[c] for group in groups for c in group]
    grades = [Grade(o, r, {'timeout': 1.0} if first else {}) for o, r in zip(outcomes, reward)]
    t = t._replace(grades=grades)
    told = telemetry.measure(t.samples, t.texts, grades)
    told['groups_kept'] = telemetry.mean(rl.judged(t, stage)[0].tolist())
    return t, told

  monkeypatch.setattr(rollouts, 'sampled', sampled)
  return asked


@pytest.mark.parametrize(
  'more, groups, kept',
  [
    (0, [0, 1, 2, 3], 0.25),  # nothing is dropped
    (1, [0, 1, 5, 6], 3 / 8),  # three have both; the fourth is the first of the rest
    (9, [1, 5, 6, 8], 6 / 12),  # as soon as there are enough no more is asked
  ],
)
def test_contract_10_groups_without_both_outcomes_are_refilled(
  experiment, bare, monkeypatch, more, groups, kept
):
  stage = dataclasses.replace(experiment.stages[1], refill=rl.Refill(more))
  scripted = (
    ('cccc', 'cwcw', 'wwww', 'cccc'),
    ('wwww', 'cwww', 'cccw', 'cccc'),
    ('cwww', 'cwww', 'cccw', 'cccc'),
  )
  asked = script(monkeypatch, *scripted)
  made = reinforce.rollout(bare(experiment), stage, None, 7, 40)
  n = min(more, 2) + 1
  assert asked == [(7, 4 * r, 40) for r in range(n)] and made.asked == 4 * n
  rows = [i for g in groups for i in range(4 * g, 4 * g + 4)]
  assert (made.kept.samples.tokens_BT[:, 0] - 1).tolist() == rows
  assert made.figures['groups_kept'] == pytest.approx(kept)
  assert made.figures['rollouts'] == n and made.tokens == n * 16 * 2
  outcomes = [c == 'c' for r in scripted[:n] for group in r for c in group]
  assert made.figures['accuracy'] == pytest.approx(np.mean(outcomes))
  assert made.figures.get('part/timeout', 0.0) == pytest.approx((n - 1) / n)


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


def done(t):
  """The rollout that kept these trajectories."""
  return rl.Rollout(t, 4, {}, rollouts.collect.count(t))


def hand_made(reward, first=0):
  """Trajectories of one prompt token and one answer token each, the answer being the row + 1."""
  n = len(reward)
  ones = np.ones(n, int)
  tokens_BT = first + ones.cumsum()[:, None]
  samples = Samples(tokens_BT, -np.ones((n, 1)), ones, ones > 0, ((None,), (None,)))
  grades = [Grade(Outcome.WRONG, float(r)) for r in reward]
  return Trajectories(ones[:, None], ones, samples, [''] * n, grades)


def test_questions_go_on_from_step_to_step_and_carry_no_solution(experiment, bare):
  run, stage = bare(experiment), experiment.stages[1]
  asked = [e for behind in (0, 4, 8) for e in rollouts.questions(run, stage, behind)]
  assert [e.id for e in asked] == [e.id for e in run.task.examples('rl', 0, 12)]
  assert all(e.solution is None for e in asked)


def test_keys_differ_by_stage_and_step(experiment, bare):
  run = bare(experiment)
  other = dataclasses.replace(experiment.stages[1], name='more')
  run.exp = dataclasses.replace(experiment, stages=(*experiment.stages, other))
  keys = [prng.fold(rollouts.run_key(run, s), i) for s in run.exp.stages[1:] for i in range(2)]
  assert len({np.asarray(jax.random.key_data(k)).tobytes() for k in keys}) == 4


def test_one_minibatch_is_the_batch_itself(experiment):
  stage = dataclasses.replace(experiment.stages[1], minibatches=1)
  batch = rl.RLBatch(None, None, np.zeros(3), None, None)
  assert reinforce.minibatches(batch, stage, jax.random.key(0)) == [batch]
