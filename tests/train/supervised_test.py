"""Stages as programs, what they refuse, and what divides their loss."""

import dataclasses

import numpy as np
import pytest

from r1jax.core import metrics
from r1jax.data.batch import Row, batch
from r1jax.data.stream import Shape
from r1jax.model.config import GQA, Full, Gate, Hybrid, KeyScores, Window, Yarn
from r1jax.train import supervised
from r1jax.train.forward import Auxiliary
from r1jax.train.supervised import SFT, Phase


def test_a_stage_is_segments_of_one_program_each(experiment, pretraining):
  """SFT is one; a pretraining stage one a phase, counted through, each with its own context."""
  sft, model = experiment.stages[0], experiment.model
  (only,) = supervised.segments(sft, model)
  assert (only.first, only.last, only.model) == (0, 3, model)
  assert only.shape == Shape(lines=8, length=64, depths=1)
  (stage,) = pretraining.stages
  found = supervised.segments(stage, pretraining.model)
  assert [(s.first, s.last, s.shape.lines, s.shape.length) for s in found] == [
    (0, 2, 2, 16),
    (2, 5, 4, 16),
    (5, 6, 2, 64),
  ]
  assert stage.steps == 6 and found[1].microbatches == 2 and found[2].auxiliary.mtp == 0.1
  assert found[0].model == model and found[2].model == pretraining.model


def test_a_phase_extends_the_context_of_every_attention(experiment):
  yarn = Yarn(factor=2.0)
  model = supervised.extended(experiment.model, yarn)
  rotary = [layer.attention.rotary.scaling for layer in (*model.layers, *model.mtp)]
  assert rotary == [yarn] * 3
  assert supervised.extended(model, None) == experiment.model


def test_a_phase_narrows_the_window_of_layers_that_have_one(pretraining):
  """Window and hybrid, of the prediction module too; weights and the rest of a layer stay."""

  def model(window, hybrid):
    (layer, _), gqa = pretraining.model.layers, GQA(2, 2, 8)
    patterns = Full(), Window(window), Hybrid(hybrid, KeyScores(slots=3), Gate())
    layers = [dataclasses.replace(layer, attention=dataclasses.replace(gqa, pattern=p))
              for p in patterns]  # fmt: skip
    return dataclasses.replace(pretraining.model, layers=tuple(layers), mtp=(layers[-1],))

  assert supervised.narrowed(model(16, 32), 4) == model(4, 4)
  assert supervised.narrowed(model(16, 32), None) == model(16, 32)
  phases = tuple(Phase(1, length=8, window=w) for w in (4, None))
  stage = dataclasses.replace(pretraining.stages[0], phases=phases)
  first, last = supervised.segments(stage, model(16, 32))
  assert (first.model, last.model) == (model(4, 4), model(16, 32))
  with pytest.raises(ValueError, match='a window holds at least the token itself, window=0'):
    Phase(1, window=0)


def test_what_does_not_split_or_is_empty_is_an_error(experiment, pretraining):
  with pytest.raises(ValueError, match='10 lines do not split into 4 microbatches'):
    SFT(experiment.stages[0].optimizer, steps=1, lines=10, microbatches=4)
  with pytest.raises(ValueError, match='3 lines do not split into 2 microbatches'):
    Phase(1, lines=3, microbatches=2)
  with pytest.raises(ValueError, match='pretraining needs at least one phase'):
    dataclasses.replace(pretraining.stages[0], phases=())


def test_loss_tells_how_full_the_lines_are(experiment, params):
  row = Row(np.arange(1, 8), np.ones(7))
  data = batch([[row], [row, row]], 12, 1)
  d = supervised.denominators(data, experiment.model)
  _, aux = supervised.loss(params, data, d, experiment.model, Auxiliary())
  assert metrics.finish(aux.metrics)['fill'] == 18 / 24


def test_target_tokens_divide_the_loss(experiment):
  row = Row(np.arange(10), np.r_[np.zeros(4), np.ones(6)])
  data = batch([[row], [row, row]], 60, 1)
  d = supervised.denominators(data, experiment.model)
  targets = 3 * sum(row.weights)
  assert (float(d.main), float(d.tokens), float(d.balance)) == (targets, targets, 3 * 3)
