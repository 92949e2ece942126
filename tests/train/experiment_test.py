"""The value that defines a run."""

import dataclasses

import pytest

from r1jax.core import config
from r1jax.train.experiment import Experiment


def test_it_survives_json(experiment):
  assert config.from_json(Experiment, config.to_json(experiment)) == experiment


def test_stage_names_are_distinct(experiment):
  with pytest.raises(ValueError, match=r"stages need distinct names, got \['sft', 'sft'\]"):
    dataclasses.replace(experiment, stages=(experiment.stages[0],) * 2)


def test_a_stage_starts_after_the_updates_of_those_before(experiment):
  """Checkpoints are named by updates: those of a later stage must come after."""
  sft, reinforce = experiment.stages
  many = dataclasses.replace(reinforce, minibatches=4)
  more = dataclasses.replace(sft, name='more')
  exp = dataclasses.replace(experiment, stages=(sft, many, more))
  assert [exp.first_step(i) for i in range(4)] == [0, 3, 3 + 2 * 4, 3 + 2 * 4 + 3]
