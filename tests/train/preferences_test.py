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
from r1jax.model.transformer import Transformer
from r1jax.optim import optimizer as optim
from r1jax.records.jsonl import Jsonl
from r1jax.sharding import place
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import preferences
from r1jax.train import state as states
from r1jax.train import step as steps
from r1jax.train.preferences import Preference
from tests.train.one_row import judged, logp, rewards
from tests.train.stand_ins import OBJECTIVES

name = lambda objective: type(objective).__name__
TOK = ByteTokenizer()


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


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
