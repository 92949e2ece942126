"""The task protocol and its examples."""

import dataclasses
import pickle

import pytest

from r1jax.tasks.gym import Gym, GymTask
from r1jax.tasks.task import SPLITS, Example, Task


def test_examples_are_frozen_and_travel_between_processes():
  example = Example('a/1', '1 + 1', '2', '1+1=2', {'entry': {'answer': '2'}})
  assert pickle.loads(pickle.dumps(example)) == example
  with pytest.raises(dataclasses.FrozenInstanceError):
    example.answer = '3'


def test_protocol():
  assert SPLITS == ('sft', 'rl', 'eval')
  assert isinstance(GymTask(Gym()), Task)
  assert not isinstance(object(), Task)
