"""A model of a few thousand parameters, and answers made by hand."""

import jax
import pytest

from r1jax.curate.sample import Answers, Sampled
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place
from r1jax.tasks.task import Example, Grade, Outcome

CFG = ModelConfig(265, 8, (Layer(GQA(1, 1, 8, std=0.3), Dense(8, std=0.3)),), std=0.3, remat='none')


@pytest.fixture(scope='session')
def cfg():
  return CFG


@pytest.fixture(scope='session')
def params():
  return place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG))


@pytest.fixture(scope='session')
def answers():
  """answers((text, outcome, stopped), …): those of one prompt '1 + 1'."""

  def make(*samples, system=None):
    graded = [
      Sampled(text, [1, 2, 3, 4], 2, stopped, Grade(outcome, float(outcome is Outcome.CORRECT)))
      for text, outcome, stopped in samples
    ]
    return Answers(Example('a', '1 + 1', '2', system=system), graded)

  return make
