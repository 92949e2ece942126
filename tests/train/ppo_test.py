"""PPO in training: what the critic reads, where its gradient goes, that a run resumes with it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.ppo import PPO, Separate, Shared, Targets, gae
from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import tree
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.train import loop, points, ppo, reinforce, restored, rl, weights
from r1jax.train import state as states
from r1jax.train.rollouts import rollout
from tests.train.stand_ins import Collect, grade

TRUNKS = [
  pytest.param(Shared(), marks=pytest.mark.slow, id='shared'),
  pytest.param(Shared(detach=True), id='detached'),
  pytest.param(Separate(), id='separate'),
]


def with_ppo(experiment, **changes):
  """The experiment with PPO in place of GRPO."""
  sft, policy = experiment.stages
  algorithm = PPO(group=2, beta=0.01, **changes)
  policy = dataclasses.replace(policy, algorithm=algorithm, name='ppo')
  return dataclasses.replace(experiment, stages=(sft, policy))


def start(exp, mesh=None):
  """The point at which the RL stage begins."""
  params = states.init_params(Transformer(exp.model), 0, mesh, dummy_inputs(exp.model))
  run = type('Run', (), {'exp': exp, 'mesh': mesh})
  return loop.enter(run, 1, params)


@functools.cache
def rolled(experiment, bare, trunk):
  """(exp, params, batch with values and targets) of one rollout; the head is not zero."""
  exp = with_ppo(experiment, trunk=trunk)
  run, stage, point = bare(exp, None, grade), exp.stages[1], start(exp)
  params = point.state.params
  w_D = np.random.default_rng(0).normal(size=exp.model.embed).astype(np.float32)
  params['value']['weight'] = jnp.asarray(w_D)
  state = point.state._replace(reference=weights.copied(exp, params))
  t = rollout(run, stage, params, 0, 0)
  return exp, params, reinforce.prepare(run, stage, state, t, reinforce.comparison(run, stage))


@pytest.fixture(params=TRUNKS)
def made(request, experiment, bare):
  return rolled(experiment, bare, request.param)


def test_the_value_is_the_head_on_the_last_hidden_layer(made):
  """And a separate critic begins as the policy, so that both read the same layer at first."""
  exp, params, pending = made
  b = pending.batch
  x_BLD = Transformer(exp.model).apply({'params': params}, b.batch.inputs, None, b.routes).x_BLD
  expected = np.asarray(x_BLD) @ np.asarray(params['value']['weight'])
  mask = np.asarray(b.batch.weights_BL) > 0
  np.testing.assert_allclose(b.value_BL[mask], expected[mask], atol=1e-4)


def test_targets_are_those_of_the_whole_rollout(made):
  exp, _, pending = made
  b, a = pending.batch, exp.stages[1].algorithm
  mask_BL = np.asarray(b.batch.weights_BL) > 0
  counted = b.targets.advantage_BL[mask_BL]
  np.testing.assert_allclose([counted.mean(), counted.std()], [0, 1], atol=1e-4)
  k1_BL = b.sampled_BL - b.ref_BL
  last_B = mask_BL.shape[1] - 1 - mask_BL[:, ::-1].argmax(1)
  reward_BL = np.where(mask_BL, -a.beta * k1_BL, 0)
  reward_BL[np.arange(len(last_B)), last_B] += b.advantage_B
  expected = gae(reward_BL, b.value_BL, mask_BL, a.gamma, a.lam) + b.value_BL
  np.testing.assert_allclose(b.targets.return_BL[mask_BL], expected[mask_BL], atol=1e-5)


def test_the_value_loss_moves_what_its_trunk_says(made):
  """Shared: the policy's trunk; detached: the head alone; separate: the critic's trunk."""
  exp, params, pending = made
  stage = exp.stages[1]
  # Without advantages and with a weight of its own, the value loss is all there is.
  still = jax.tree.map(jnp.zeros_like, pending.batch.targets.advantage_BL)
  b = pending.batch._replace(targets=pending.batch.targets._replace(advantage_BL=still))
  only = dataclasses.replace(
    stage, auxiliary=dataclasses.replace(stage.auxiliary, mtp=0.0, balance=0.0)
  )
  loss = functools.partial(rl.loss, cfg=exp.model, stage=only)
  d = rl.denominators(b, exp.model, only)
  grads = jax.jit(jax.grad(lambda p: loss(p, b, d)[0]))(params)
  moved = {
    name: any(
      np.abs(g).max() > 1e-8 for path, g in tree.flatten_named(grads).items() if name in path
    )
    for name in ('value/weight', 'run0/block0/attention/out', 'critic/run0')
  }
  policy = any(np.abs(g).max() > 1e-8 for g in jax.tree.leaves(grads['run0']))
  trunk = stage.algorithm.trunk
  assert moved['value/weight']
  assert policy == (trunk == Shared())
  assert moved['critic/run0'] == (trunk == Separate())


def test_a_fresh_head_says_zero_and_its_critic_is_a_copy(experiment):
  exp = with_ppo(experiment, trunk=Separate())
  params = start(exp).state.params
  assert not np.asarray(params['value']['weight']).any()
  for name in ('embedding', 'run0', 'final_scale'):
    jax.tree.map(np.testing.assert_array_equal, params['critic'][name], params[name])
  assert not any(name.startswith('mtp') for name in params['critic'])
  assert set(weights.model_only(exp.model, params)) == set(params) - {'critic', 'value'}


def test_a_token_outside_the_trainers_own_set_spoils_no_advantage(made):
  """Its recomputed log-probability is −inf: it is left out of targets and whitening too."""
  exp, _, pending = made
  stage = exp.stages[1]
  old_BL = pending.batch.sampled_BL.copy()
  b, l = np.argwhere(np.asarray(pending.batch.batch.weights_BL) > 0)[0]
  old_BL[b, l] = -np.inf
  batch, judged = reinforce.criticized(
    pending.batch._replace(old_BL=old_BL), pending.batch.value_BL, stage
  )
  assert all(np.isfinite(x).all() for x in batch.targets) and np.isfinite(
    judged['explained_variance']
  )
  assert batch.targets.advantage_BL[b, l] == 0


def test_explained_variance_by_hand():
  mask = np.array([[1, 1, 1, 1, 0]])
  to = Targets(None, np.array([[0.0, 1.0, 2.0, 3.0, 9.0]]))
  assert ppo.explained(to.return_BL, to, mask) == pytest.approx(1)
  assert ppo.explained(np.zeros((1, 5)), to, mask) == pytest.approx(0)
  assert ppo.explained(-to.return_BL, to, mask) == pytest.approx(-3)
  assert ppo.explained(np.ones((1, 5)), Targets(None, np.ones((1, 5))), mask) == 0


@pytest.mark.whole
@pytest.mark.parametrize('trunk', [TRUNKS[0], TRUNKS[2]])
def test_a_checkpoint_holds_the_critic_and_gives_it_back(experiment, bare, tmp_path, trunk):
  exp = with_ppo(experiment, trunk=trunk, old='recomputed')
  run, keep = bare(exp, None, grade), Collect()
  point = start(exp)
  point = dataclasses.replace(
    point, step=2, state=reinforce.run_rl(run, exp.stages[1], point, keep)
  )
  assert {'value_loss', 'policy_loss', 'explained_variance', 'kl'} <= keep.seen[0][-1].keys()
  assert abs(keep.seen[0][-1]['value']) < 0.1 < 10 * abs(keep.seen[1][-1]['value'])
  with Store(tmp_path / FOLDER) as store:
    store.save(int(point.state.step), *points.saved(exp, None, point), block=True)
    got = points.restore(exp, None, store, int(point.state.step))
  jax.tree.map(np.testing.assert_array_equal, got.state, point.state)
  # What evaluates reads the model alone.
  model = restored.load(str(tmp_path)).params
  assert model.keys() == weights.model_only(exp.model, point.state.params).keys()


def test_contract_11_a_paused_rollout_is_used_up_with_the_same_bits(experiment, bare, tmp_path):
  """Values and targets come back with it: from a checkpoint between two updates of a step."""
  exp = with_ppo(experiment, trunk=Separate(), old='recomputed')
  run, keep = bare(exp, None, grade), Collect()
  whole = stage_of(run, start(exp), keep)
  point = next(p for p in keep.paused if p.step == 1 and p.pending.done == 1)
  with Store(tmp_path / FOLDER) as store:
    saved = points.saved(exp, None, dataclasses.replace(point, state=jax.device_put(point.state)))
    store.save(int(point.state.step), *saved, block=True)
    got = points.restore(exp, None, store, int(point.state.step))
  jax.tree.map(np.testing.assert_array_equal, got.pending.batch, point.pending.batch)
  jax.tree.map(np.testing.assert_array_equal, stage_of(run, got, Collect()), whole)


def stage_of(run, point, keep):
  """The state behind the rest of the RL stage."""
  return reinforce.run_rl(run, run.exp.stages[1], point, keep)


def test_the_next_stage_begins_without_the_critic(experiment):
  exp = with_ppo(experiment)
  exp = dataclasses.replace(exp, stages=(*exp.stages, dataclasses.replace(exp.stages[0], name='b')))
  run = type('Run', (), {'exp': exp, 'mesh': None})
  after = loop.enter(run, 2, start(exp).state.params)
  assert 'value' not in after.state.params
