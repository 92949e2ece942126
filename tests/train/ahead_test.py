"""Rollouts written ahead: by which weights, in which thread, with the same bits after any pause."""

import contextlib
import dataclasses
import threading
import time
import traceback

import jax
import numpy as np
import pytest

from r1jax.algos import lora
from r1jax.algos.grpo import GRPO
from r1jax.algos.lora import LoRA
from r1jax.algos.ppo import PPO
from r1jax.checkpoint import checksum
from r1jax.checkpoint.store import FOLDER, Store
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.tasks.task import Grade, Outcome
from r1jax.train import ahead, points, reinforce, rl, rollouts, weights
from r1jax.train.loop import enter
from r1jax.train.stop import Stop, Stopped
from tests.train.stand_ins import Collect, again, fresh


def grade(calls):
  """Right by the bytes of an answer: many groups are all wrong, some are not."""
  right = [sum(map(ord, text)) % 5 == 0 for _, text in calls]
  return [Grade(Outcome.CORRECT if r else Outcome.WRONG, float(r)) for r in right]


def slow(calls):
  """The same, later."""
  time.sleep(0.2)
  return grade(calls)


@pytest.fixture(scope='module')
def exp(small):
  """Four steps of two updates, a refreshed reference, a number of questions that varies."""
  sft, policy = small.stages
  policy = dataclasses.replace(policy, steps=4, refresh=2, refill=rl.Refill(2), staleness=1)
  return dataclasses.replace(small, stages=(sft, policy))


@pytest.fixture(scope='module')
def whole(exp):
  """whole(bare): what an undisturbed run ended with and its keeper, made once."""
  made = []

  def make(bare):
    if not made:
      keep = Collect()
      made.append((go(bare(exp, None, grade), keep), keep))
    return made[0]

  return make


def go(run, keep, point=None):
  """The rest of the stage; no thread of it is left."""
  stage = run.exp.stages[1]
  try:
    return reinforce.run_rl(run, stage, point or fresh(run.exp, stage, run.mesh), keep)
  finally:
    assert not [t for t in threading.enumerate() if t.name.startswith('rollout')]


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def in_the_thread():
  return threading.current_thread().name.startswith('rollout')


def test_contract_12_each_rollout_is_of_the_weights_one_step_before(exp, bare, whole):
  """The batch of a synchronous call by these, prepared by the newest; version and checksum tell."""
  stage, run, (_, keep) = exp.stages[1], bare(exp, None, grade), whole(bare)
  starts = [again(p) for p in keep.paused if p.pending.done == 0]
  assert [p.step for p in starts] == [0, 1, 2, 3]
  against, asked, lags = reinforce.comparison(run, stage), 0, []
  for k, point in enumerate(starts):
    wrote = starts[max(k - 1, 0)].state
    done = rollouts.rollout(run, stage, wrote.params, k, asked)
    expected = reinforce.prepare(run, stage, point.state, done, against)
    same(expected.batch, point.pending.batch)
    figures, asked = keep.seen[k][2], asked + done.asked
    assert point.asked == asked
    assert figures['weights_version'] == int(wrote.step)
    sums = checksum.start(jax.tree.leaves(wrote.params))()
    assert figures['weights_checksum'] == sum(sums) % 2**32
    lags.append(figures['staleness'])
    if k:
      newest = rollouts.rollout(run, stage, point.state.params, k, asked - done.asked)
      assert (newest.kept.samples.logp_BT != done.kept.samples.logp_BT).any()
      assert 0 <= figures['rollout_hidden'] <= 1
  assert lags == [0, 2, 2, 2] and asked > 4 * stage.prompts
  assert 'rollout_hidden' not in keep.seen[0][2]


@pytest.mark.parametrize('how', ['later', 'alone'])
def test_the_bits_do_not_depend_on_which_thread_is_faster(exp, bare, whole, monkeypatch, how):
  """Nor on there being one: on a mesh the main thread writes ahead."""
  seen, run = [], bare(exp, None, slow if how == 'later' else grade)
  if how == 'alone':
    monkeypatch.setattr(ahead, 'threaded', lambda run: False)
  engine = run.engine
  run.engine = lambda *args: seen.append(in_the_thread()) or engine(*args)
  same(go(run, Collect()), whole(bare)[0])
  assert set(seen) == ({False, True} if how == 'later' else {False})


@pytest.mark.parametrize('step, done', [(1, None), (1, 0), (1, 1), (2, None), (3, 1)])
def test_contract_11_a_checkpoint_goes_on_with_the_same_bits(
  exp, bare, whole, tmp_path, step, done
):
  """Between steps (None) and before an update; the older weights are in it while needed."""
  expected, keep = whole(bare)
  if done is None:
    point = next(p for s, p, _ in keep.seen if s == step)
  else:
    point = next(p for p in keep.paused if (p.step, p.pending.done) == (step, done))
  assert (point.older is None) == (step == 3)
  store = Store(tmp_path / FOLDER)
  store.save(9, *points.saved(exp, None, again(point)), block=True)
  rest = Collect()
  same(go(bare(exp, None, grade), rest, points.restore(exp, None, store, 9)), expected)
  timed = ('tokens', 'flops', 'rollout_hidden')
  figures = lambda k: {n: x for n, x in k.seen[-1][2].items() if n not in timed}
  assert figures(rest) == figures(keep)


def test_the_rollout_and_the_updates_pass_at_the_same_time(exp, bare):
  """It has begun before the first step's updates end, and ends after one of them."""
  begun, half = threading.Event(), threading.Event()
  run = bare(exp, None, grade)
  engine = run.engine

  def writing(*args):
    if in_the_thread():
      begun.set()
      assert half.wait(60)
    return engine(*args)

  class Meeting(Collect):
    def pause(self, point):
      if (point.step, point.pending.done) == (0, 1):
        assert begun.wait(60)
        half.set()

  run.engine = writing
  go(run, Meeting())
  assert half.is_set()


def test_an_error_in_the_thread_is_raised_with_its_traceback(exp, bare):
  run = bare(exp, None, grade)
  engine = run.engine

  def breaks_in_the_thread(*args):
    if in_the_thread():
      raise ArithmeticError('the sampler broke')
    return engine(*args)

  run.engine, keep = breaks_in_the_thread, Collect()
  with pytest.raises(ArithmeticError, match='the sampler broke') as found:
    go(run, keep)
  assert 'breaks_in_the_thread' in ''.join(traceback.format_exception(found.value))
  assert [step for step, *_ in keep.seen] == [1]  # the step beside it was whole


def test_a_stop_waits_for_the_wave_under_way_and_for_no_other(exp, bare, monkeypatch):
  """Meanwhile the state lies still: past the deadline the process may end."""
  stage = dataclasses.replace(exp.stages[1], waves=4)
  exp = dataclasses.replace(exp, stages=(exp.stages[0], stage))
  run, leaving, waves, told = bare(exp, None, grade), threading.Event(), [], []
  engine = run.engine

  def writing(*args):
    if in_the_thread():
      waves.append(1)
      assert leaving.wait(60)
    return engine(*args)

  class Stopping(Collect):
    def pause(self, point):
      if point.step == 0 and point.pending.done == 1:
        raise Stopped('saved', 15)

  @contextlib.contextmanager
  def resting(save):
    told.append(save())
    leaving.set()
    yield

  run.engine, run.stop = writing, Stop(1.0, told.append)
  monkeypatch.setattr(run.stop, 'resting', resting)
  with pytest.raises(Stopped, match='saved'):
    go(run, Stopping())
  assert told == ['saved'] and waves == [1]


def test_on_a_mesh_the_main_thread_writes_by_a_copy_that_lies_as_the_weights_do(
  exp, bare, monkeypatch
):
  stage = dataclasses.replace(exp.stages[1], steps=2)
  exp = dataclasses.replace(exp, stages=(exp.stages[0], stage))
  mesh, places = meshes.make(Mesh(fsdp=4), jax.devices()[:4]), []
  real = weights.copied

  def copied(exp, params):
    made = real(exp, params)
    jax.tree.map(lambda a, b: places.append(a.sharding == b.sharding), params, made)
    return made

  monkeypatch.setattr(weights, 'copied', copied)
  monkeypatch.setattr(ahead.Ahead, '_write', None)
  with jax.set_mesh(mesh):
    go(bare(exp, mesh, grade), Collect())
  assert places and all(places)


@pytest.fixture(scope='module')
def adapted(small, tmp_path_factory):
  """Three steps that train adapters on saved weights."""
  stage = dataclasses.replace(
    small.stages[1], steps=3, staleness=1, algorithm=GRPO(group=4, beta=0.0)
  )
  exp, folder = dataclasses.replace(small, stages=(stage,)), tmp_path_factory.mktemp('base')
  base = points.saved(exp, None, fresh(exp, stage))
  Store(folder / FOLDER).save(1, *base, block=True)
  return dataclasses.replace(exp, init=str(folder), lora=LoRA(rank=4, alpha=8.0))


def test_contract_11_of_lora_the_adapters_alone_are_copied_and_saved(
  adapted, bare, tmp_path, monkeypatch
):
  """The base is read by both threads: training leaves it where it is. Resumed, the same bits."""
  stage, run, keep = adapted.stages[0], bare(adapted, None, grade), Collect()
  seen, real = [], rollouts.rollout

  def spy(run, stage, params, *rest):
    seen.append(lora.split(params))
    return real(run, stage, params, *rest)

  monkeypatch.setattr(rollouts, 'rollout', spy)
  start = enter(run, 0, weights.initial(adapted, None))
  whole = reinforce.run_rl(run, stage, start, keep)
  frozen = lora.split(whole.params)[1]
  assert len(seen) == 2  # of steps 1 and 2
  for mine, base in seen:
    jax.tree.map(lambda a, b: a is b or pytest.fail('the base was copied'), base, frozen)
    assert all(x.is_deleted() for x in jax.tree.leaves(mine))  # its samples are used up
  point = next(p for p in keep.paused if (p.step, p.pending.done) == (1, 1))
  store = Store(tmp_path / FOLDER)
  store.save(9, *points.saved(adapted, None, again(point)), block=True)
  held = [name for name in store.describe(9) if name.startswith('older/')]
  assert held and all(lora.is_adapter(name) for name in held)
  rest = points.restore(adapted, None, store, 9)
  same(reinforce.run_rl(run, stage, rest, Collect()), whole)


def test_without_staleness_nothing_is_copied_or_begun(exp, bare):
  stage = dataclasses.replace(exp.stages[1], staleness=0)
  point = fresh(exp, exp.stages[1])
  with ahead.Ahead(bare(exp), stage, Collect()) as ready:
    assert ready.begin(point) is point and ready.take() is None
  last = dataclasses.replace(point, step=3)
  with ahead.Ahead(bare(exp), exp.stages[1], Collect()) as ready:
    assert ready.begin(last) is last and ready.take() is None


@pytest.mark.parametrize('algorithm', [GRPO(old='recomputed'), PPO(old='recomputed')])
def test_what_corrects_for_older_weights_must_be_there(exp, algorithm):
  with pytest.raises(ValueError, match="staleness=1 with old='recomputed'"):
    dataclasses.replace(exp.stages[1], algorithm=algorithm, refill=rl.Refill())
