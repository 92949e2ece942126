"""Trajectories as arrays, by a hand-made example; masks come from lengths, not from tokens."""

import numpy as np

from r1jax.engine.generate import Samples
from r1jax.rollout import trajectory
from r1jax.rollout.collect import Trajectories

EOS = 9  # the padding token too
_ = 0


def made():
  """Prompts [1 2] and [3]; completions [4 EOS 6] cut at the limit, and [EOS] at once."""
  samples = Samples(
    tokens_BT=np.array([[4, EOS, 6], [EOS, EOS, EOS]]),
    logp_BT=np.array([[-0.4, -0.5, -0.6], [-0.7, 0, 0]], np.float32),
    length_B=np.array([3, 1]),
    stopped_B=np.array([False, True]),
    routes=((None, np.arange(2 * 2 * 6 * 2).reshape(2, 2, 6, 2)),),
  )
  prompts = np.array([[1, 2, EOS], [3, EOS, EOS]])
  return Trajectories(prompts, np.array([2, 1]), samples, ['', ''], [])


def test_contract_09_alignment_by_hand():
  b = trajectory.rl_batch(made(), np.array([1.0, -1.0]), depths=1, replay=True)
  assert b.batch.inputs.tokens_BL.tolist() == [[1, 2, 4, EOS, _], [3, _, _, _, _]]
  assert b.batch.inputs.segments_BL.tolist() == [[1, 1, 1, 1, _], [1, _, _, _, _]]
  assert b.batch.targets_BL.tolist() == [[2, 4, EOS, 6, _], [EOS, _, _, _, _]]
  assert b.batch.weights_BL.tolist() == [[0, 1, 1, 1, _], [1, _, _, _, _]]
  sampled = np.float32([[0, -0.4, -0.5, -0.6, 0], [-0.7, 0, 0, 0, 0]])
  np.testing.assert_array_equal(b.sampled_BL, sampled)
  assert b.truncated_B.tolist() == [True, False]
  assert b.batch.ahead_targets[0].tolist() == [[4, EOS, 6, _, _], [_] * 5]
  assert b.batch.ahead_weights[0].tolist() == [[1, 1, 1, _, _], [_] * 5]
  assert b.routes[0][0] is None
  np.testing.assert_array_equal(b.routes[0][1], made().samples.routes[0][1][:, :, :5])
  assert b.ref_BL is b.old_BL is None


def test_without_replay_there_are_no_routes():
  assert trajectory.rl_batch(made(), np.zeros(2), depths=0, replay=False).routes is None


def test_rows_takes_the_same_rows_of_every_leaf():
  b = trajectory.rl_batch(made(), np.array([1.0, -1.0]), depths=1, replay=True)
  b = b._replace(ref_BL=b.sampled_BL + 1)
  part = trajectory.rows(b, np.array([1]))
  assert part.advantage_B.tolist() == [-1.0]
  assert part.batch.targets_BL.tolist() == [[EOS, _, _, _, _]]
  np.testing.assert_array_equal(part.ref_BL, b.ref_BL[1:])
  np.testing.assert_array_equal(part.routes[0][1], b.routes[0][1][:, 1:])
  assert part.old_BL is None
  assert trajectory.rows(b._replace(routes=None), np.array([0])).routes is None
