"""Trajectories as arrays, by a hand-made example; masks come from lengths, not from tokens."""

import jax
import numpy as np
import pytest

from r1jax.engine.generate import Samples
from r1jax.kernels.logprob.truncate import FILLER, Sampling
from r1jax.rollout import collect, trajectory
from r1jax.rollout.collect import Limits, Trajectories
from r1jax.tasks.task import Example
from r1jax.tokenizers.byte import ByteTokenizer

EOS = 9  # the padding token too
_ = 0
F = FILLER
PAIR = 97 * 256 + 98


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


def test_kept_sets_lie_beside_their_targets():
  ids = np.array([[[4, 1], [EOS, F], [6, 2]], [[EOS, 8], [7, 7], [7, 7]]])
  t = made()
  t = t._replace(samples=t.samples._replace(support_BTK=ids))
  b = trajectory.rl_batch(t, np.zeros(2), depths=1, replay=False)
  none = [F, F]
  expected = [[none, [4, 1], [EOS, F], [6, 2], none], [[EOS, 8], none, none, none, none]]
  assert b.support_BLK.tolist() == expected
  counted = b.batch.weights_BL > 0
  assert (b.support_BLK == b.batch.targets_BL[..., None]).any(-1)[counted].all()
  assert trajectory.rows(b, np.array([1])).support_BLK.tolist() == expected[1:]
  assert trajectory.rl_batch(made(), np.zeros(2), 1, replay=False).support_BLK is None


class Merging(ByteTokenizer):
  """Bytes, and the pair 'ab' as id 97 · 256 + 98: one text, two spellings in tokens."""

  def encode(self, text):
    return [*_merged(super().encode(text))]

  def decode(self, ids):
    return super().decode([j for i in ids for j in ([97, 98] if i == PAIR else [i])])

  @property
  def vocab(self):
    return PAIR + 1


def _merged(ids):
  """Left to right, each pair as one."""
  ids = list(ids)
  while ids:
    take = 2 if ids[:2] == [97, 98] else 1
    yield PAIR if take == 2 else ids[0]
    ids = ids[take:]


@pytest.mark.parametrize(
  ('tok', 'drawn'),
  [
    (Merging(), [*b'cab']),  # the model spelled out what its tokenizer would merge
    (ByteTokenizer(), [0xE4, *b'b', 0xFF]),  # no UTF-8: the text has U+FFFD in their place
    (ByteTokenizer(), [*b'hi', 270]),  # an id that only the model has
    (ByteTokenizer(), [*b'1', 260, *b'2']),  # a control token within
  ],
)
def test_contract_13_what_is_trained_on_are_the_sampled_ids_not_their_text(tok, drawn):
  """Through collect and rl_batch; encoding the text again would give other tokens."""
  ids = [*drawn, tok.eos]
  logp = -np.arange(1, len(ids) + 1, dtype=np.float32)

  def engine(params, prompts, lengths, keys, sampling, limit):
    pad = limit - len(ids)
    row = lambda values, fill: np.tile([*values, *[fill] * pad], (len(prompts), 1))
    n = np.full(len(prompts), len(ids))
    return Samples(row(ids, tok.pad), row(logp, 0), n, n > 0, ((None,),))

  prompts, lengths, samples = collect.sample(
    engine, None, tok, [Example('a', '1 + 2')],
    group=2, key=jax.random.key(0), first=0, sampling=Sampling(), limits=Limits(9, 7),
  )  # fmt: skip
  [text, _again] = texts = collect.texts(tok, samples)
  assert tok.encode(text) not in (ids, drawn)
  b = trajectory.rl_batch(
    Trajectories(prompts, lengths, samples, texts, []), np.zeros(2), depths=0, replay=False
  )
  for row in range(2):
    counted = b.batch.weights_BL[row] > 0
    assert b.batch.targets_BL[row][counted].tolist() == ids
    assert b.sampled_BL[row][counted].tolist() == logp.tolist()
    n = lengths[row]
    assert b.batch.inputs.tokens_BL[row, n : n + len(drawn)].tolist() == drawn
