"""What a stage trains: heads come and go with it, the model stays."""

import dataclasses

import jax
import numpy as np

from r1jax.algos.length_fit import LengthFit
from r1jax.algos.reward_model import Pairwise
from r1jax.data.preferences import Mistakes
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.train import forward, weights
from r1jax.train import state as states
from r1jax.train.forward import Auxiliary
from r1jax.train.preferences import Preference
from tests.train.stand_ins import SMALL

FIT = Auxiliary(length=LengthFit())


def test_only_the_length_fit_goes_on_into_the_next_stage(experiment):
  sft, policy = experiment.stages
  judge = Preference(sft.optimizer, 1, Pairwise(), Mistakes(2), rows=2, auxiliary=FIT)
  stages = (judge, dataclasses.replace(policy, auxiliary=FIT), sft)
  exp = dataclasses.replace(experiment, model=SMALL, stages=stages)
  plain = states.init_params(Transformer(SMALL), 0, None, dummy_inputs(SMALL))
  first = weights.begin(exp, 0, plain, None)
  assert first.keys() == plain.keys() | {'reward', forward.REMAINING}
  assert not any(np.any(x) for x in jax.tree.leaves(first[forward.REMAINING]))
  learned = first | {forward.REMAINING: {'weight': np.ones(16), 'bias': np.float32(2)}}
  second = weights.begin(exp, 1, learned, None)
  assert second.keys() == plain.keys() | {forward.REMAINING}
  jax.tree.map(np.testing.assert_array_equal, second[forward.REMAINING], learned['remaining'])
  jax.tree.map(np.testing.assert_array_equal, weights.model_only(SMALL, second), plain)
  assert weights.begin(exp, 2, second, None).keys() == plain.keys()
