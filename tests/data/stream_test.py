"""Streams: a function of the position, whoever feeds it and wherever it is taken up again."""

import itertools
import json
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.data import mix, order, stream
from r1jax.data.batch import Row
from r1jax.data.mix import Mixture, Part
from r1jax.data.pack import best_fit
from r1jax.data.sources import Worked
from r1jax.data.stream import Shape, Stream
from r1jax.records.record import RecordError


class Numbered:
  """Documents of given lengths in inputs; every token says which document it is of."""

  def __init__(self, lengths, first=0, bad=()):
    self.name, self.read = f'from {first}', []
    self._lengths, self._first, self._bad = lengths, first, bad

  def __len__(self):
    return len(self._lengths)

  def rows(self, i):
    self.read.append(i)
    if i in self._bad:
      raise RecordError(f'{self.name} row {i}: bad')
    n = self._lengths[i] + 1
    return [Row(np.full(n, self._first + i, np.int32), np.ones(n, np.float32))]

  def fingerprint(self):
    return ''


SHORT, LONG = [2, 5, 3, 4, 2, 6, 3, 2, 4, 5], [8, 7, 5, 8, 6, 8, 7]
SHAPE = Shape(lines=4, length=8, depths=1)
PARTS = (Part(Worked(), 2.0), Part(Worked(), 1.0))
MIXTURE = Mixture(PARTS, window=6, block=6, shards=2)


def sources(bad=()):
  return [Numbered(SHORT, 100, bad), Numbered(LONG, 200, bad)]


def take(count, mixture=MIXTURE, shape=SHAPE, seed=3, bad=(), **options):
  """The first batches of a stream and the positions after them."""
  made = Stream(sources(bad), mixture, shape, seed, **options)
  return list(itertools.islice(made, count))


def held(batch):
  """The numbers of the documents in each line."""
  starts = (batch.inputs.segments_BL > 0) & (batch.inputs.positions_BL == 0)
  return [row[at].tolist() for row, at in zip(batch.inputs.tokens_BL, starts)]


def assert_same(a, b):
  """Batches and positions are equal to the bit."""
  assert len(a) == len(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def documents(shard, count, seed=3):
  """What a shard reads, by the definition."""
  for m in range(count):
    part, j = mix.pick((4, 2), m, seed, shard)
    lengths = (SHORT, LONG)[part]
    epoch, place = divmod(2 * j + shard, len(lengths))
    yield 100 * (part + 1) + order.index(place, len(lengths), 'documents', seed, part, epoch)


def test_each_shard_hands_out_its_documents_block_by_block():
  made = take(60)
  for shard in (0, 1):
    lines = [line for batch, _ in made for line in held(batch)[2 * shard : 2 * shard + 2]]
    position = made[-1][1][shard]
    assert len(lines) == 120
    given = sum(map(len, lines))
    expected = list(documents(shard, position[stream.END]))
    left = Counter(expected) - Counter(number for line in lines for number in line)
    assert sum(left.values()) == len(expected) - given
    assert not left - Counter(expected[position[stream.FIRST] :])  # of the last block alone


def test_a_block_is_packed_best_fit_and_its_lines_are_shuffled():
  made = Stream(sources(), MIXTURE, SHAPE, 3)
  batches = list(itertools.islice(made, 6))
  for shard in (0, 1):
    lines = [line for batch, _ in batches for line in held(batch)[2 * shard : 2 * shard + 2]]
    for first in (0, batches[0][1][shard, stream.END]):
      numbers = list(documents(shard, 40))[first:]
      lengths = [(SHORT if n < 200 else LONG)[n % 100] for n in numbers]
      count = 1 + next(i for i, total in enumerate(itertools.accumulate(lengths)) if total >= 48)
      packed = best_fit(lengths[:count], 8)
      shuffled = order.shuffled(len(packed), 'lines', 3, shard, int(first))
      expected = [[numbers[i] for i in packed[line]] for line in shuffled]
      assert lines[: len(expected)] == expected[: len(lines)]
      lines = lines[len(expected) :]
      assert lines or first


def test_an_epoch_of_a_source_holds_every_document_once_over_all_shards():
  read = [list(documents(shard, 105)) for shard in (0, 1)]  # 70 short and 35 long ones each
  found = Counter(read[0] + read[1])
  assert {found[100 + i] for i in range(10)} == {14}
  assert {found[200 + i] for i in range(7)} == {10}
  made = Stream(one := [Numbered([8] * 12)], Mixture(PARTS[:1], block=1, shards=2), SHAPE, 0)
  list(itertools.islice(made, 6))  # 4 documents a batch, so two epochs
  epochs = [sorted(one[0].read[:12]), sorted(one[0].read[12:24])]
  assert epochs == [list(range(12))] * 2 and one[0].read[:12] != one[0].read[12:24]


def test_shares_are_exact_in_every_window():
  short = [part < 200 for part in documents(0, 60)]
  assert [sum(short[i : i + 6]) for i in range(0, 60, 6)] == [4] * 10


def test_every_batch_has_its_shape_and_nothing_is_split():
  for batch, position in take(20):
    assert {x.shape for x in jax.tree.leaves(batch)} == {(4, 8)}
    lengths = [(SHORT if n < 200 else LONG)[n % 100] for line in held(batch) for n in line]
    assert (batch.inputs.segments_BL > 0).sum() == sum(lengths)
    assert position.shape == (2, 4) and position.dtype == np.int64


def test_a_stream_repeats_itself_and_each_seed_has_its_own():
  assert_same(take(10), take(10))
  one = Stream(sources(), MIXTURE, SHAPE, 3)
  assert_same(list(itertools.islice(one, 4)), list(itertools.islice(one, 4)))
  assert [held(b) for b, _ in take(10)] != [held(b) for b, _ in take(10, seed=4)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 14), st.sampled_from(['stop', 'skip']))
def test_any_position_can_be_taken_up_again(at, bad):
  mixture = Mixture(PARTS, window=6, block=3, shards=2, bad=bad)
  broken = (1, 4) if bad == 'skip' else ()
  whole = take(16, mixture, bad=broken)
  position = json.loads(json.dumps(whole[at - 1][1].tolist()))
  assert_same(whole[at:], take(16 - at, mixture, bad=broken, start=position))


def test_a_position_reads_one_block_a_shard_again():
  position = take(100)[-1][1]
  again = sources()
  next(iter(Stream(again, MIXTURE, SHAPE, 3, start=position)))
  reads = sum(len(source.read) for source in again)
  assert reads <= 2 * (position[:, stream.END] - position[:, stream.FIRST]).sum() < 60


@pytest.mark.parametrize('shards', [1, 2, 4])
@pytest.mark.parametrize('mine', [[0, 1], [2], [3, 0], [1, 2, 3], []])
def test_what_a_line_holds_does_not_depend_on_who_feeds_it(shards, mine):
  mixture = Mixture(PARTS, window=6, block=3, shards=shards)
  whole = take(12, mixture)
  others = [i for i in range(4) if i not in mine]
  parts = [(sorted(lines), take(12, mixture, mine=lines)) for lines in (mine, others)]
  for b in range(12):
    for lines, made in parts:
      jax.tree.map(lambda x, y, at=lines: np.testing.assert_array_equal(x[at], y), whole[b][0],
                   made[b][0])  # fmt: skip
    assert_same(stream.merge([made[b][1] for _, made in parts]), whole[b][1])


def test_only_the_shards_that_are_fed_are_read():
  made = Stream(sources(), MIXTURE, SHAPE, 3, mine=[3])
  batch, position = next(iter(made))
  assert held(batch) == held(take(1)[0][0])[3:]
  assert position.tolist() == [[-1] * 4, take(1)[0][1][1].tolist()]
  assert stream.next_block(position)[0].tolist() == [-1] * 4


def test_another_shape_goes_on_at_the_next_block():
  position = take(5)[-1][1]
  after = stream.next_block(position)
  end = position[:, stream.END]
  expected = np.stack([end, 0 * end, end, position[:, stream.SKIPPED]], 1)
  np.testing.assert_array_equal(after, expected)
  wider = Shape(lines=2, length=16, depths=0)
  read = sources()
  first = next(iter(Stream(read, MIXTURE, wider, 3, start=after)))[1]
  assert first[:, stream.FIRST].tolist() == end.tolist()
  expected = [list(documents(s, first[s, stream.END]))[end[s] :] for s in (0, 1)]
  assert sorted(n + 100 for n in read[0].read) == sorted(
    n for shard in expected for n in shard if n < 200
  )
  assert_same(take(3, shape=wider, start=after), take(3, shape=wider, start=after.tolist()))


def test_a_bad_document_stops_the_run_or_is_skipped_and_counted():
  with pytest.raises(RecordError, match='row 4: bad'):
    take(30, bad=(4,))
  skipping = Mixture(PARTS, window=6, block=6, shards=2, bad='skip')
  made = take(30, skipping, bad=(4,))
  assert not any(number % 100 == 4 for batch, _ in made for line in held(batch) for number in line)
  last = made[-1][1]
  counted = [sum(n % 100 == 4 for n in documents(s, last[s, stream.END])) for s in (0, 1)]
  assert last[:, stream.SKIPPED].tolist() == counted
  assert stream.skipped(last) == sum(counted) > 4
  assert stream.skipped(np.full((2, 4), -1)) == 0
  resumed = take(12, skipping, bad=(4,), start=made[17][1])[-1][1]
  assert_same(resumed, last)


def test_a_window_of_bad_documents_stops_the_run_even_if_they_are_skipped():
  mixture = Mixture(PARTS[:1], window=6, block=6, bad='skip')
  read = Numbered([8] * 12, bad=range(12))
  with pytest.raises(UserError) as error:
    next(iter(Stream([read], mixture, SHAPE, 0)))
  assert str(error.value) == (
    f'6 documents in a row cannot be used; the last: from 0 row {read.read[-1]}: bad'
  )
  assert len(read.read) == 6
  scattered = Mixture(PARTS, window=3, block=60, bad='skip')
  assert stream.skipped(take(10, scattered, bad=(4,))[-1][1]) > 3


def lognormal(rng, count):
  return rng.lognormal(-0.5, 1.0, count)  # mean 1


def pareto(rng, count):
  return (rng.pareto(1.5, count) + 1) / 3  # mean 1, no variance


@pytest.mark.parametrize('tail', [lognormal, pareto])
@pytest.mark.parametrize('shards', [1, 4])
def test_bar_lines_are_97_percent_full_on_long_tails(tail, shards):
  length = 1024
  drawn = tail(np.random.default_rng(0), 5000) * length / 4
  lengths = np.clip(drawn.round().astype(int), 1, length).tolist()
  made = Stream([Numbered(lengths)], Mixture(PARTS[:1], shards=shards), Shape(8, length, 0), 0)
  batches = itertools.islice(made, 64 * shards)  # four blocks of 128 lines a shard
  full = np.mean([(batch.inputs.segments_BL > 0).mean() for batch, _ in batches])
  assert full >= 0.97


@pytest.mark.parametrize(
  'change, error, message',
  [
    ({'mixture': Mixture(PARTS, shards=3)}, UserError,
     '4 lines do not split into 3 shards; lines must be a multiple'),
    ({'mixture': Mixture(PARTS, shards=8)}, UserError,
     '4 lines do not split into 8 shards; lines must be a multiple'),
    ({'start': np.zeros((1, 4), int)}, UserError,
     'the data position is of 1 shards, the mixture of 2; keep shards=1'),
    ({'sources': [Numbered(SHORT), Numbered([], 200)]}, UserError,
     'source from 200 has no documents; expected at least one'),
    ({'sources': [Numbered(SHORT)]}, ValueError, '1 sources for 2 parts'),
    ({'mine': [1, 4]}, ValueError, r'mine=\[1, 4\]; expected numbers of 4 lines'),
    ({'start': [[0] * 4, [-1] * 4]}, ValueError,
     r'the data position lacks shard 1; merge those of all processes'),
  ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_said_at_once(change, error, message):
  options = {'sources': sources(), 'mixture': MIXTURE, 'shape': SHAPE, 'seed': 0} | change
  with pytest.raises(error, match=f'^{message}$'):
    Stream(**options)
