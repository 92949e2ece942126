"""Host arrays of a step: few shapes, and every row its own."""

import jax
import numpy as np

from r1jax.engine import inputs
from r1jax.engine.drafts import NGram
from r1jax.engine.plan import Chunk, Config
from r1jax.engine.plan import Request as Place
from r1jax.engine.record import Record
from r1jax.engine.requests import Request
from r1jax.engine.sampling import RequestSampling
from r1jax.engine.shards import Shards


def test_powers_hold_what_they_are_given():
  assert [inputs.power(n) for n in (0, 1, 2, 3, 5)] == [1, 1, 2, 4, 8]
  assert [inputs.power(n, base=4) for n in (1, 2, 4, 5, 17)] == [1, 4, 4, 16, 64]
  assert [inputs.power(n, least=16) for n in (3, 16, 17)] == [16, 16, 32]


def test_a_batch_is_no_larger_than_its_live_rows_need():
  shards = Shards(Config(slots=24, pages=24, page=4, longest=30), 2)
  assert inputs.spread([3], shards) == [3, None]
  assert inputs.spread([1, 13, 14], shards) == [1, None, None, None, 13, 14, None, None]
  assert len(inputs.spread(range(6), shards)) == 24  # not beyond the slots


def test_chunks_of_like_width_share_batches_of_few_sizes():
  shards = Shards(Config(slots=64, pages=64, page=4, longest=300))
  chunk = lambda slot, n: Chunk(slot, slot, 0, (1,) * n, True)

  def made(*lengths):
    given = [chunk(i, n) for i, n in enumerate(lengths)]
    parts = inputs.batches(given, shards, 512)
    return [(each, [len(c.tokens) for c in part]) for each, part in parts]

  assert [inputs.width(n) for n in (1, 8, 9, 32, 33, 64, 65)] == [8, 8, 32, 32, 64, 64, 128]
  assert made(3, 40, 8, 33, 17) == [(4, [3, 8]), (2, [40, 33]), (1, [17])]
  # A sixteenth, a quarter, all of the volume; then another batch.
  assert [each for each, _ in made(*[5] * 4)] == [4]
  assert [each for each, _ in made(*[5] * 5)] == [16]
  assert [each for each, _ in made(*[5] * 17)] == [64]
  assert [(each, len(part)) for each, part in made(*[20] * 18)] == [(16, 16), (16, 2)]
  assert made(300) == [(1, [300])]


def test_each_shard_computes_its_own_chunks():
  shards = Shards(Config(slots=8, pages=64, page=4, longest=300), 2)
  given = [Chunk(row, row, 0, (row,) * 3, True) for row in (0, 1, 2, 5)]
  ((each, part),) = inputs.batches(given, shards, 128)
  batch = inputs.chunks(part, each, shards)
  assert each == 4 and batch.rows == [0, 1, 2, None, 5, None, None, None]
  assert batch.tokens_BL[:, 0].tolist() == [0, 1, 2, 0, 5, 0, 0, 0]


def test_a_chunk_lies_in_the_part_of_its_shard_and_knows_what_follows():
  config = Config(slots=4, pages=16, page=4, longest=30, chunk=6)
  shards = Shards(config, 2)
  for id, prompt in enumerate([(1, 2, 3, 4, 5, 6, 7, 8), (11, 12)]):
    shards.submit(Place(id, prompt, 4, 0, float(id)))
  plan = shards.plan()
  part = inputs.chunks(plan.prefill, 1, shards)
  assert part.tokens_BL.shape == (2, 8)
  assert part.rows == [0, 2] and [b for b, _ in part.where] == [0, 1]
  assert part.tokens_BL[0, :6].tolist() == [1, 2, 3, 4, 5, 6]
  assert part.next_B.tolist() == [7, -1] and part.length_B.tolist() == [6, 2]


def test_rows_have_their_table_seed_and_sampling_and_idle_ones_none():
  config = Config(slots=2, pages=8, page=4, longest=30, burst=4)
  shards = Shards(config)
  shards.submit(Place(0, (5, 6, 7), 4))
  shards.plan()
  ((_, text),) = shards.running()
  record = Record(Request((5, 6, 7), 4, (1, 2), RequestSampling(0.5, presence=1.0)), 0)
  args = [None, text], [None, record], [None, np.array([6])]
  kinds, rows = inputs.rows(*args, 0, config, None)
  assert kinds.penalties and rows.table_BT.tolist() == [[-1] * 8, [6] + [-1] * 7]
  assert rows.seed_BW.tolist() == [[0, 0], [1, 2]]
  assert rows.controls.temperature_B.tolist() == [1.0, 0.5]
  assert rows.history.tokens_BM[1, :4].tolist() == [5, 6, 7, 0]
  assert rows.history.prompt_B.tolist() == [0, 3] and rows.history.tokens_BM.shape[1] == 32
  plain = Record(Request((5, 6, 7), 4, (1, 2)), 0)
  assert inputs.rows([text], [plain], [np.array([6])], 0, config, None)[1].history is None
  assert inputs.rows([text], [plain], [np.array([6])], 0, config, NGram(2))[1].history is not None


def test_what_is_packed_comes_back():
  rng = np.random.default_rng(0)
  floats = rng.normal(size=(3, 2)).astype(np.float32)
  seeds = rng.integers(0, 1 << 32, (3, 2), np.uint32)
  args = (np.arange(3, dtype=np.int32), None, {'a': floats, 'b': (seeds, np.int32(7))})
  packed, how = inputs.pack(args)
  assert packed.bits_BX.shape == (3, 5) and hash(how) == hash(inputs.pack(args)[1])
  got = jax.jit(lambda p: inputs.unpack(p, how))(packed)
  assert got[1] is None and jax.tree.structure(got) == jax.tree.structure(args)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(args)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
