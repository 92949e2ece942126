"""Preference stages at work: batches, references, held-out figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.dpo import DPO
from r1jax.algos.reward_model import Pairwise
from r1jax.core import metrics
from r1jax.optim import optimizer as optim
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place
from r1jax.tasks.file import load
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import judging, preferences
from r1jax.train import state as states
from r1jax.train import step as steps
from tests.train.one_row import judged, rewards
from tests.train.stand_ins import OBJECTIVES

name = lambda objective: type(objective).__name__
TOK = ByteTokenizer()


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
  p = 1 / (1 + np.exp(-np.array([2.0, 4, -1, 0])))
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
