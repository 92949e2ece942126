"""The RL stage's config, masks and denominators."""

import dataclasses

import numpy as np
import pytest

from r1jax.algos.grpo import GRPO
from r1jax.algos.surrogate import ConstantLength, SequenceMean, TokenMean
from r1jax.core import config
from r1jax.data.batch import Row, batch
from r1jax.engine.generate import Samples
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.rollout.collect import Trajectories
from r1jax.rollout.trajectory import RLBatch
from r1jax.tasks.task import Grade, Outcome
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


def test_the_reference_is_not_truncated_by_its_own_logits(experiment):
  """Whole, or over the replayed sets, which the policy's own program reads."""
  stage = dataclasses.replace(experiment.stages[1], sampling=Sampling(0.7, 20, 0.9))
  assert rl.reference_sampling(stage) == Sampling(0.7)
  stage = dataclasses.replace(stage, support='replay')
  assert rl.reference_sampling(stage) == stage.sampling


@pytest.mark.parametrize(
  'sampling, said',
  [
    (Sampling(0.7, top_p=0.9), 'set sampling.top_k to the most tokens that one may have'),
    (Sampling(0.7), "keeps every token: there is no set to replay.*or support='own'"),
  ],
)
def test_replaying_a_support_needs_a_largest_size(experiment, sampling, said):
  with pytest.raises(ValueError, match=said):
    dataclasses.replace(experiment.stages[1], sampling=sampling, support='replay')


def test_replay_and_refill_are_set_on_the_command_line(experiment):
  made = config.override_all(
    experiment,
    [
      ('stages[1].sampling.top_k', '20'),
      ('stages[1].support', 'replay'),
      ('stages[1].refill.rollouts', '3'),
      ('stages[1].refill.by', 'reward'),
    ],
  )
  stage = made.stages[1]
  assert (stage.support, stage.refill) == ('replay', rl.Refill(3, 'reward'))
  assert config.from_dict(type(made), config.to_dict(made)) == made
  with pytest.raises(config.ConfigError, match=r'refill\.rollouts is -1'):
    config.override(experiment, 'stages[1].refill.rollouts', '-1')
  with pytest.raises(config.ConfigError, match="support='replay', but the sampling keeps"):
    config.override(experiment, 'stages[1].support', 'replay')


def graded(*groups):
  """Trajectories of one token each; a group is its samples' (outcome, reward)."""
  grades = [Grade({'c': Outcome.CORRECT, 'w': Outcome.WRONG, 'u': Outcome.UNPARSEABLE}[o], r)
            for group in groups for o, r in group]  # fmt: skip
  number = np.arange(len(grades))
  ones = np.ones(len(grades), int)
  samples = Samples(number[:, None], -ones[:, None], ones, ones > 0, ())
  return Trajectories(number[:, None], ones, samples, [str(i) for i in number], grades)


ALIKE = [('c', 1.0)] * 4
LOST = [('w', 0.0), ('u', 0.0), ('w', 0.0), ('w', 0.0)]
MIXED = [('c', 1.0), ('w', 0.0), ('u', 0.0), ('c', 1.0)]
DEGREE = [('w', 0.1), ('w', 0.6), ('w', 0.1), ('w', 0.1)]
LITTLE = [('c', 1.0), ('w', 0.9), ('c', 1.0), ('c', 1.0)]


@pytest.mark.parametrize(
  'by, kept',
  [('outcome', [0, 0, 1, 0, 1]), ('reward', [0, 0, 1, 1, 1])],
)
def test_contract_10_groups_are_kept_by_outcome_or_by_reward(experiment, by, kept):
  stage = dataclasses.replace(experiment.stages[1], refill=rl.Refill(1, by))
  keep, spread = rl.judged(graded(ALIKE, LOST, MIXED, DEGREE, LITTLE), stage)
  assert keep.tolist() == [bool(k) for k in kept]
  np.testing.assert_allclose(spread, [0, 0, 1, 0.5, 0.1], rtol=1e-5)


def test_chosen_groups_are_whole_and_in_the_order_of_asking(experiment):
  stage = dataclasses.replace(experiment.stages[1], prompts=4, refill=rl.Refill(1))
  t = rl.chosen(graded(ALIKE, LITTLE, LOST, LOST, DEGREE, MIXED), stage)
  rows = [i for g in (0, 1, 4, 5) for i in range(4 * g, 4 * g + 4)]
  assert t.texts == [str(i) for i in rows] and t.prompts_BP[:, 0].tolist() == rows


def test_rollouts_split_evenly(experiment):
  optimizer = experiment.stages[1].optimizer
  with pytest.raises(ValueError) as caught:
    rl.RL(optimizer, 1, GRPO(group=4), prompts=3, minibatches=2, microbatches=4)
  expected = '12 samples (3 prompts × group 4) do not split into 2 minibatches × 4 microbatches'
  assert str(caught.value) == expected


@pytest.mark.parametrize(
  'field', [{'minibatches': 0}, {'microbatches': 0}, {'refresh': 0}, {'waves': 0}, {'waves': 3}]
)
def test_counts_are_checked_at_once(experiment, field):
  with pytest.raises(ValueError, match=r'≥ 1|do not split'):
    dataclasses.replace(experiment.stages[1], **field)


def test_groups_of_one_are_not_refilled(experiment):
  alone = algorithm(experiment.stages[1], group=1)
  with pytest.raises(ValueError, match='group of one'):
    dataclasses.replace(alone, refill=rl.Refill(2))
