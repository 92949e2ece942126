"""Scoring by a reward model: each row as if alone, few programs, the end token unread."""

import jax
import numpy as np
import pytest

from r1jax.algos.reward_model import Pairwise, Pointwise
from r1jax.data import batch as batches
from r1jax.data.batch import Row
from r1jax.model import heads
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.heads import Scalar, ScalarConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.rollout import reward_model
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place

CFG = ModelConfig(
  30, 16, (Layer(GQA(2, 1, 8, std=0.3), Dense(16, std=0.3)),), std=0.5, remat='none'
)
ROWS = [list(np.random.default_rng(n).integers(1, 30, n)) for n in (3, 20, 16, 1, 17, 9)]


@pytest.fixture(scope='module')
def params():
  head = place.init(Scalar(ScalarConfig(16, 0.5)), jax.random.key(1), None, np.zeros((1, 1, 16)))
  made = place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG))
  return made | {'reward': head}


@pytest.fixture(scope='module')
def alone(params):
  """The reward of each row of ROWS by itself, at its last token."""
  found = []
  for row in ROWS:
    tokens = [*row, 0]  # a target behind the last token, which stays an input
    inputs = batches.batch([[Row(tokens, np.ones(len(tokens)))]], 20, 0).inputs
    r_BL, _ = heads.scores(params, CFG, 'reward', inputs)
    found.append(float(r_BL[0, len(row) - 1]))
  return np.array(found)


def test_a_batch_scores_each_row_as_if_alone_in_few_programs(params, alone):
  announced = []

  def announce(what):
    announced.append(what)
    return reward_model.silent(what)

  program = reward_model.program(CFG, Pairwise(), announce)
  scored = reward_model.score(program, params, ROWS, slots=48)
  assert scored.dtype == np.float32
  np.testing.assert_allclose(scored, alone, rtol=1e-4, atol=1e-5)
  order = [4, 1, 0, 5, 3, 2]
  again = reward_model.score(program, params, [ROWS[i] for i in order], slots=48)
  np.testing.assert_allclose(again, scored[order], rtol=1e-4, atol=1e-5)
  assert len(announced) == 2  # widths 16 and 24, whatever is left for a last batch


def test_pointwise_rewards_are_probabilities(params, alone):
  program = reward_model.program(CFG, Pointwise())
  scored = reward_model.score(program, params, ROWS)
  np.testing.assert_allclose(scored, 1 / (1 + np.exp(-alone)), rtol=1e-4)


def test_rows_spread_over_devices_score_alike(params, alone):
  mesh = meshes.make(meshes.Mesh(data=4, fsdp=2))
  with jax.set_mesh(mesh):
    scored = reward_model.score(reward_model.program(CFG, Pairwise()), params, ROWS, mesh)
  np.testing.assert_allclose(scored, alone, rtol=1e-4, atol=1e-5)


def test_nothing_to_score():
  program = reward_model.program(CFG, Pairwise())
  assert reward_model.score(program, {}, []).shape == (0,)
  with pytest.raises(ValueError, match='row 1 has no tokens to score'):
    reward_model.score(program, {}, [[1], []])


def test_a_completion_is_read_up_to_its_end_token():
  assert reward_model.read([1, 2], [3, 4, 9, 0], stops=(8, 9)) == [1, 2, 3, 4]
  assert reward_model.read(np.array([1]), np.array([3]), stops=(9,)) == [1, 3]
