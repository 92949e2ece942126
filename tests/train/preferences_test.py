"""Preference stages: losses against plain sums, batches, references, held-out figures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.dpo import DPO, PerToken
from r1jax.algos.reward_model import Pairwise, Pointwise, Process
from r1jax.core import config, metrics
from r1jax.data import preferences as data
from r1jax.data.preferences import Mistakes, Pairs
from r1jax.model import transformer
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.records.jsonl import Jsonl
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place
from r1jax.tasks.file import load
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import judging, preferences
from r1jax.train import state as states
from r1jax.train import step as steps
from r1jax.train.forward import Auxiliary
from r1jax.train.preferences import Preference

TOK = ByteTokenizer()
LAYER = Layer(GQA(2, 1, 8, std=0.3), Dense(16, std=0.3))
SMALL = ModelConfig(272, 16, (LAYER,), std=0.5, remat='none')
OBJECTIVES = (DPO(0.5), Pairwise(0.1), Pointwise(), Process())
name = lambda objective: type(objective).__name__


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.fixture(scope='module')
def staged(experiment):
  """staged(objective, …): a stage over four mistakes of the tiny task, two more held out."""

  def make(objective, **changes):
    given = {
      'optimizer': experiment.stages[0].optimizer,
      'steps': 2,
      'objective': objective,
      'data': Mistakes(4),
      'held_out': Mistakes(3, skip=4),
      'rows': 4,
      'width': 48,
      'auxiliary': Auxiliary(mtp=0.1, detach_mtp=True, balance=1e-2, gamma=1e-2),
    }
    return Preference(**given | changes)

  return make


@pytest.fixture(scope='module')
def small(experiment):
  """The experiment with a dense model of one layer and no prediction module: quick to compile."""
  return dataclasses.replace(experiment, model=SMALL)


@pytest.fixture(scope='module')
def judge(params):
  """judge(cfg, stage): parameters with the stage's heads, which are not near zero."""
  plain = states.init_params(Transformer(SMALL), 0, None, dummy_inputs(SMALL))

  def make(cfg, stage):
    modules = preferences.heads(stage, cfg).items()
    own = {k: place.init(m, jax.random.key(9), None, *x) for k, (m, x) in modules}
    return (plain if cfg == SMALL else params) | jax.tree.map(lambda x: 30 * x, own)

  return make


@pytest.fixture(scope='module')
def rows(experiment, staged):
  """rows(stage, start, count): completions of its documents."""

  def make(stage, start=0, count=None):
    docs, _ = preferences.opened(stage, load(experiment.task), TOK)
    return data.taken(docs, start, stage.rows // stage.group if count is None else count, 0)

  return make


@functools.partial(jax.jit, static_argnums=0)
def output(cfg, params, inputs):
  """x_BLD and the head's logits."""
  x_BLD = Transformer(cfg).apply({'params': params}, inputs).x_BLD
  return x_BLD, x_BLD @ transformer.head(params, cfg)


def whole(cfg, params, completion):
  """x_LD and log softmax_LV of one row by itself, in float64."""
  alone = dataclasses.replace(cfg, mtp=())
  (x_LD,), (z_LV,) = output(alone, params, data.batch([completion], 1, 48).batch.inputs)
  z_LV = np.float64(z_LV)
  return np.float64(x_LD), z_LV - np.log(np.exp(z_LV).sum(-1, keepdims=True))


def logp(cfg, params, completion):
  """Σ log-probability of a completion's tokens."""
  _, logp_LV = whole(cfg, params, completion)
  tokens, weights = completion.row.tokens, completion.row.weights
  return sum(logp_LV[i - 1, tokens[i]] for i in range(1, len(tokens)) if weights[i])


def rewards(cfg, params, completion):
  """r at the end of each judged part."""
  x_LD, _ = whole(cfg, params, completion)
  head = jax.tree.map(np.float64, params['reward'])
  return np.array([x_LD[end] @ head['weight'] + head['bias'] for end in completion.ends])


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluated(stage, cfg, params, b):
  """(denominators, aux) of a batch."""
  d = preferences.denominators(b, cfg, stage)
  return d, preferences.loss(params, b, d, cfg, stage)[1]


def main_loss(stage, cfg, params, b):
  """The stage's main loss as (sum, weight)."""
  d, aux = evaluated(stage, cfg, params, b)
  assert d.main == aux.metrics['loss'][1]
  return aux.metrics['loss']


@functools.partial(jax.jit, static_argnums=(0, 1))
def judged(stage, cfg, params, b):
  """Scores of a batch."""
  return preferences.judged(params, b, cfg, stage)


# Losses.


@pytest.mark.parametrize('how', [DPO(0.5), DPO(0.5, score=PerToken())], ids=['sum', 'mean'])
def test_dpo_is_the_published_sum(small, judge, staged, rows, how):
  cfg, stage = small.model, staged(how)
  params = judge(cfg, stage)
  old = jax.tree.map(lambda x: 1.05 * x, params)
  found = rows(stage)
  ref = np.array([logp(cfg, old, c) for c in found])
  s = np.array([logp(cfg, params, c) for c in found]) - ref
  if isinstance(how.score, PerToken):
    s /= [c.row.weights.sum() for c in found]
  expected = -np.log(sigmoid(0.5 * (s[::2] - s[1::2]))).sum()
  b = data.batch(found, 4, 48)._replace(ref_B=jnp.asarray(ref, jnp.float32))
  total, weight = main_loss(stage, cfg, params, b)
  np.testing.assert_allclose(total, expected, rtol=1e-4)
  assert weight == 2
  np.testing.assert_allclose(judged(stage, cfg, old, b), ref, rtol=1e-4)


def test_a_pairwise_model_scores_the_last_token(small, judge, staged, rows):
  cfg, stage = small.model, staged(Pairwise(0.1))
  params, found = judge(cfg, stage), rows(stage)
  r = np.array([rewards(cfg, params, c)[-1] for c in found])
  better, worse = r[::2], r[1::2]
  expected = (-np.log(sigmoid(better - worse)) + 0.1 * (better + worse) ** 2).sum()
  total, weight = main_loss(stage, cfg, params, data.batch(found, 6, 48))
  np.testing.assert_allclose(total, expected, rtol=1e-3)
  assert weight == 2


@pytest.mark.parametrize('how', [Pointwise(), Process()], ids=name)
def test_labels_are_met_by_cross_entropy_where_they_stand(small, judge, staged, rows, how):
  cfg, stage = small.model, staged(how)
  params, found = judge(cfg, stage), rows(stage)
  p = sigmoid(np.concatenate([rewards(cfg, params, c) for c in found]))
  y = np.concatenate([c.labels for c in found])
  total, weight = main_loss(stage, cfg, params, data.batch(found, 6, 48))
  np.testing.assert_allclose(total, -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(), rtol=1e-3)
  assert weight == len(y) and 0 < y.mean() < 1


@pytest.mark.parametrize('how', OBJECTIVES, ids=name)
def test_contract_01_the_update_depends_on_no_split_width_or_filling(
  experiment, small, judge, staged, rows, how
):
  stage = staged(how)
  cfg = (experiment if stage.reference else small).model  # experts and prediction modules too
  params, found = judge(cfg, stage), rows(stage)
  split = dataclasses.replace(stage, microbatches=2)
  depths = 1 if stage.reference else 0
  narrow, wide = data.batch(found, 4, 48, depths), data.batch(found, 8, 56, depths)
  if stage.reference:
    ref_B = np.float32([-30, -31, -29, -33, 0, 0, 0, 0])
    narrow, wide = narrow._replace(ref_B=ref_B[:4]), wide._replace(ref_B=ref_B)

  def updated(stage, b):
    loss = lambda p, part, d: preferences.loss(p, part, d, cfg, stage)
    main = lambda b: preferences.denominators(b, cfg, stage)
    optimizer = optim.make(stage.optimizer, params)
    step = steps.make(loss, main, optimizer, stage.auxiliary.gamma, stage.microbatches)
    state, measured = jax.jit(step)(states.fresh(params, optimizer, None), place.rows(None, b))
    return state.params, metrics.finish(measured)

  (expected, said), (got, measured) = updated(stage, narrow), updated(split, wide)
  moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), expected, params)
  assert all(x > 0 for x in jax.tree.leaves(moved['run0']))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, expected)
  assert measured['loss'] == pytest.approx(said['loss'], rel=1e-4)


def test_contract_15_prediction_modules_learn_from_better_completions_alone(
  experiment, params, staged, rows
):
  cfg, stage = experiment.model, staged(DPO())
  b = data.batch(rows(stage), 4, 48, depths=1)._replace(ref_B=np.zeros(4, np.float32))
  d, aux = evaluated(stage, cfg, params, b)
  better = jax.tree.map(lambda x: x[::2], b)
  out = jax.jit(Transformer(cfg).apply)({'params': params}, better.batch.inputs)
  z_BLV = np.float64(out.mtp[0]) @ np.float64(transformer.head(params, cfg))
  p_BLV = np.exp(z_BLV) / np.exp(z_BLV).sum(-1, keepdims=True)
  target_BL = np.asarray(better.batch.ahead_targets[0])
  picked_BL = np.take_along_axis(np.log(p_BLV), target_BL[..., None], -1)[..., 0]
  expected = -(picked_BL * better.batch.ahead_weights[0]).sum()
  np.testing.assert_allclose(aux.metrics['mtp_loss'][0], expected, rtol=1e-4)
  assert d.tokens == aux.metrics['mtp_loss'][1] == better.batch.weights_BL.sum()


def test_a_resting_module_keeps_its_router_bias(experiment, judge, staged, rows):
  cfg, stage = experiment.model, staged(Pairwise())
  params, b = judge(cfg, stage), data.batch(rows(stage), 4, 48)
  _, aux = evaluated(stage, cfg, params, b)
  tokens = (b.batch.inputs.segments_BL > 0).sum()
  by_path = {path: load.sum() for path, load in aux.load.items()}
  assert by_path == {
    'run0/block0/mlp/router/bias': 2 * 2 * tokens,  # two layers, two experts a token
    'mtp0/block/mlp/router/bias': 0,
  }


# The plan.


@pytest.mark.parametrize('how', OBJECTIVES, ids=name)
def test_a_plan_gives_batches_figures_and_what_was_reached(small, bare, judge, staged, how):
  stage = staged(how)
  run = bare(dataclasses.replace(small, stages=(*small.stages, stage)))
  plan, params = judging.plan(run, stage), judge(small.model, stage)
  state = states.State(jnp.int32(0), params, None, params if stage.reference else None)
  b, again = plan.batch(1, state), plan.batch(1, state)
  jax.tree.map(np.testing.assert_array_equal, b, again)
  assert (b.batch.inputs.tokens_BL != plan.batch(0, state).batch.inputs.tokens_BL).any()
  assert b.batch.inputs.tokens_BL.shape == (4, 48)
  figures = plan.figures(b)
  assert figures['tokens'] == (b.batch.inputs.segments_BL > 0).sum() and figures['flops'] > 0
  reached = plan.evaluate(params)
  count = {'DPO': 3, 'Pairwise': 3, 'Pointwise': 6, 'Process': 18}[name(how)]
  what = {'DPO': 'preference', 'Pairwise': 'preference', 'Pointwise': 'label'}
  kind = what.get(name(how), 'process')
  assert reached[f'{kind}_count'] == count
  assert reached[f'{kind}_accuracy'] == reached[f'{kind}_correct'] / count
  assert 0 <= reached['calibration_error'] <= 1
  bins = sum(count for count, *_ in reached['calibration_bins'])
  assert bins == (2 if stage.kind == 'pairs' else 1) * count


def test_the_policy_starts_at_its_reference_and_leaves_it(small, bare, judge, staged):
  stage = staged(DPO(0.5), held_out=None)
  run = bare(dataclasses.replace(small, stages=(stage,)))
  params = judge(small.model, stage)
  plan = judging.plan(run, stage)
  optimizer = optim.make(stage.optimizer, params)
  state = states.fresh(states.copy(params), optimizer, None)._replace(reference=params)
  step = jax.jit(steps.make(plan.loss, plan.denominators, optimizer, 0.01))
  seen = []
  for i in range(6):
    state, measured = step(state, place.rows(None, plan.batch(i, state)))
    seen.append(metrics.finish(measured))
  assert seen[0]['margin'] == pytest.approx(0, abs=1e-4)
  assert seen[0]['loss'] == pytest.approx(np.log(2), abs=1e-4)
  assert seen[-1]['margin'] > 0 and seen[-1]['loss'] < seen[0]['loss']
  assert plan.evaluate is None


def test_devices_change_no_reference_and_no_figure(small, bare, judge, staged):
  stage = staged(DPO(0.5), rows=8)
  exp = dataclasses.replace(small, stages=(stage,))
  params = judge(small.model, stage)
  mesh = meshes.make(meshes.Mesh(data=4, fsdp=2))

  def planned(where, params):
    plan = judging.plan(bare(exp, where), stage)
    b = plan.batch(0, states.State(jnp.int32(0), params, None, params))
    return b.ref_B, plan.evaluate(params)

  expected, reached = planned(None, params)
  with jax.set_mesh(mesh):
    got, there = planned(mesh, jax.device_put(params, place.replicated(mesh)))
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  bins = [np.array(found.pop('calibration_bins')) for found in (there, reached)]
  np.testing.assert_allclose(*bins, rtol=1e-4)
  assert there == pytest.approx(reached, rel=1e-4)


def test_held_out_documents_are_each_measured_once(small, judge, staged):
  """Three pairs in batches of two: the last batch's empty rows count nowhere."""
  cfg, stage = small.model, staged(Pairwise())
  params = judge(cfg, stage)
  _, held = preferences.opened(stage, load(small.task), TOK)
  r = np.array([rewards(cfg, params, c)[-1] for group in held.groups for c in group])
  made = list(judging.held_batches(held, stage, 0))
  assert [preferences.counted(b).tolist() for b in made] == [[True] * 4, [True, True, False, False]]
  scores = np.concatenate([judged(stage, cfg, params, b) for b in made])
  together = jax.tree.map(lambda *x: np.concatenate(x), *made)
  reached = judging.measured(scores, together, stage)
  assert reached['preference_correct'] == (r[::2] > r[1::2]).sum()
  assert reached['margin'] == pytest.approx((r[::2] - r[1::2]).mean(), rel=1e-3)


# Figures.


def test_figures_of_pairs_count_a_tie_half_only_in_agreement():
  found = judging.of_pairs(np.float32([2, 0, 0, 1, 3, 3, -1, -5]))
  assert found['preference_correct'] == 2 and found['preference_accuracy'] == 0.5
  assert found['agreement'] == 0.625 and found['margin'] == pytest.approx(5 / 4)
  # σ of 2, 4 and −1 and their complements, and a tie: ½ twice.
  p = sigmoid(np.array([2, 4, -1, 0]))
  bins = found['calibration_bins']
  assert [2, 0.5] in [[count, label] for count, _, label in bins]
  assert bins[-1][1] == pytest.approx(p[1], rel=1e-5)
  gaps = 1 - p[0] + 1 - p[1] + abs(0 - (1 - p[2]))  # of the upper half; the lower mirrors it
  assert found['calibration_error'] == pytest.approx(2 * gaps / 8, rel=1e-4)


def test_figures_of_labels_compare_every_good_answer_with_every_bad_one():
  found = judging.of_labels(np.float32([3, -1, 2, -4]), np.float32([1, 1, 0, 0]))
  assert (found['label_correct'], found['label_count']) == (2, 4)
  assert found['agreement'] == 0.75


def test_figures_of_steps_ask_for_the_least_likely_one():
  end = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
  label = np.float32([[1, 1, 0], [1, 0, 0], [0, 1, 0]])
  logit = np.float32([[2, 1, -9], [-1, -2, 3], [9, -1, 9]])
  found = judging.of_steps(logit, label, end)
  assert (found['process_correct'], found['process_count']) == (3, 6)
  assert found['solved'] == pytest.approx(2 / 3) and found['solved_count'] == 3


# Configs.


def test_a_stage_survives_its_file_form(staged):
  for how in OBJECTIVES:
    stage = staged(how)
    assert config.from_dict(Preference, config.to_dict(stage)) == stage


def test_only_dpo_keeps_a_reference_and_has_no_head(experiment, staged):
  for how in OBJECTIVES:
    stage = staged(how)
    assert stage.reference == isinstance(how, DPO)
    assert set(preferences.heads(stage, experiment.model)) == (
      {'reward'} - {stage.reference and 'reward'}
    )


def test_what_does_not_split_or_is_held_out_twice_is_an_error(staged):
  with pytest.raises(ValueError, match='rows=6 do not split into 2 microbatches of whole pairs'):
    staged(DPO(), rows=6, microbatches=2)
  with pytest.raises(ValueError, match='rows=5 do not split into 2 microbatches of equal size'):
    staged(Pointwise(), rows=5, microbatches=2)
  with pytest.raises(ValueError, match='have documents in common'):
    staged(DPO(), held_out=Mistakes(2, skip=3))
  pairs = Pairs(Jsonl('a'))
  with pytest.raises(ValueError, match='have documents in common'):
    staged(DPO(), data=pairs, held_out=dataclasses.replace(pairs, share=(0.9, 1.0)))
  apart = [dataclasses.replace(pairs, share=s) for s in ((0.0, 0.9), (0.9, 1.0))]
  assert staged(DPO(), data=apart[0], held_out=apart[1]).held_out == apart[1]
