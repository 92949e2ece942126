"""The loops around the steps: on a mesh, from a step in the middle, through phases."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from r1jax.data import stream
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.train import forward, reinforce, stages, supervised
from tests.train.stand_ins import Collect, again, fresh, grade


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


@pytest.mark.whole
def test_resuming_in_the_middle_repeats_the_rest(experiment, bare):
  """From the point after step 1 the stages give the same bits, data and random numbers included."""
  for stage in experiment.stages:
    go = stages.run_supervised if stage.name == 'sft' else reinforce.run_rl
    run, keep = bare(experiment, None, grade), Collect()
    whole = go(run, stage, fresh(experiment, stage), keep)
    rest = go(run, stage, again(keep.seen[0][1]), Collect())
    jax.tree.map(np.testing.assert_array_equal, whole, rest)
    assert [s for s, *_ in keep.seen] == list(range(1, stage.steps + 1))


@pytest.mark.whole
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
