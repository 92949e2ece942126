"""The RL stage's config, masks and denominators."""

import dataclasses

import numpy as np
import pytest

from r1jax.algos.grpo import GRPO
from r1jax.algos.surrogate import ConstantLength, SequenceMean, TokenMean
from r1jax.data.batch import Row, batch
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.rollout.trajectory import RLBatch
from r1jax.train import rl

EOS = 264


@pytest.fixture
def data():
  """Answers of 3 tokens (cut), 2 and 1; the end token stands in prompts and inside answers too."""
  rows = [
    Row([EOS, 2, 5, EOS, 7], [0, 0, 1, 1, 1]),
    Row([1, EOS, EOS], [0, 1, 1]),
    Row([1, EOS, EOS, EOS], [0, 0, 0, 1]),
  ]
  made = batch([[row] for row in rows], 6, 1)
  zeros = np.zeros((3, 6), np.float32)
  return RLBatch(made, zeros, np.zeros(3), np.array([True, False, False]), None)


def algorithm(stage, **fields):
  return dataclasses.replace(stage, algorithm=dataclasses.replace(stage.algorithm, **fields))


def test_contract_09_masks_come_from_lengths_and_cut_answers_may_be_left_out(experiment, data):
  stage = experiment.stages[1]
  counted = [[0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
  assert rl.masks(data, stage).astype(int).tolist() == counted
  counted[0] = [0] * 6
  assert rl.masks(data, algorithm(stage, truncated='mask')).astype(int).tolist() == counted


@pytest.mark.parametrize(
  'how, count, masked', [(TokenMean(), 6, 3), (SequenceMean(), 3, 2), (ConstantLength(9), 3, 2)]
)
def test_denominators(experiment, data, how, count, masked):
  stage = algorithm(experiment.stages[1], aggregate=how)
  d = rl.denominators(data, experiment.model, stage)
  assert (float(d.main), float(d.tokens), float(d.balance)) == (count, 6, 3 * 3)
  cut = algorithm(stage, truncated='mask')
  assert float(rl.denominators(data, experiment.model, cut).main) == masked


def test_the_batch_axis_of_routes_is_the_second(data):
  axes = rl.batch_axis(data._replace(routes=((None, np.zeros((1, 3, 6, 2))),)))
  assert axes.routes == ((None, 1),)
  assert axes.batch.targets_BL == axes.sampled_BL == axes.advantage_B == 0
  assert axes.ref_BL is axes.old_BL is None
  assert rl.batch_axis(data).routes is None


def test_the_reference_is_not_truncated(experiment):
  stage = dataclasses.replace(experiment.stages[1], sampling=Sampling(0.7, 20, 0.9))
  assert rl.reference_sampling(stage) == Sampling(0.7)


def test_rollouts_split_evenly(experiment):
  optimizer = experiment.stages[1].optimizer
  with pytest.raises(ValueError) as caught:
    rl.RL(optimizer, 1, GRPO(group=4), prompts=3, minibatches=2, microbatches=4)
  expected = '12 samples (3 prompts × group 4) do not split into 2 minibatches × 4 microbatches'
  assert str(caught.value) == expected
