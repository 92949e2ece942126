"""The folder of a teacher's logits: what goes in comes out, packed, at any depth, in any order."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.curate import shards
from r1jax.data.batch import Row, batch

RNG = np.random.default_rng(0)
ROWS = [
  Row(RNG.integers(1, 99, n).tolist(), [0.0] * 2 + [1.0] * (n - 2)) for n in (5, 9, 3, 7, 4, 6, 8)
]
ABOUT = shards.About('runs/teacher', 'abc', 3, 2.0, 10)


def say(targets_BL):
  """A teacher whose answers name the target that they are about."""
  ids_BLK = targets_BL[..., None] + np.arange(3)
  return ids_BLK, -ids_BLK / 7


@pytest.fixture
def folder(tmp_path):
  teach = lambda made: say(made.targets_BL)
  shards.write(tmp_path / 'f', ABOUT, shards.taught(ROWS, ABOUT, 2, teach))
  return tmp_path / 'f'


def test_every_row_comes_out_once_an_epoch_with_what_was_said_of_it(folder):
  lines = shards.Lines(str(folder))
  assert lines.about == dataclasses.replace(ABOUT, shards=lines.about.shards)
  assert sum(lines.about.shards) == len(lines) and max(lines.about.shards) <= 2
  for epoch in range(2):
    found = lines.take(epoch * len(lines), len(lines), seed=1, depths=2)
    inputs = found.batch.inputs
    seen = []
    for b, tokens_L in enumerate(inputs.tokens_BL):
      for s in range(1, inputs.segments_BL[b].max() + 1):
        here = inputs.segments_BL[b] == s
        seen.append((*tokens_L[here], found.batch.targets_BL[b][here][-1]))
        np.testing.assert_array_equal(inputs.positions_BL[b][here], np.arange(here.sum()))
    assert sorted(seen) == sorted(tuple(row.tokens) for row in ROWS)
    used = inputs.segments_BL > 0
    for got, want in zip((found.ids_BLK, found.logp_BLK), say(found.batch.targets_BL)):
      np.testing.assert_allclose(got[used], want[used], rtol=1e-6)


def test_a_line_is_the_batch_that_it_was_made_of_prediction_depths_included(tmp_path):
  lines = [[ROWS[0], ROWS[2]]]
  about = dataclasses.replace(ABOUT, length=6)
  teach = lambda made: say(made.targets_BL)
  shards.write(tmp_path / 'f', about, shards.taught(lines[0], about, 1, teach))
  got = shards.Lines(str(tmp_path / 'f')).take(0, 1, seed=0, depths=2).batch
  np.testing.assert_equal(got, batch(lines, 6, 2))


def test_lines_are_a_function_of_seed_and_number(folder):
  lines, again = (shards.Lines(str(folder)) for _ in range(2))
  tokens = lambda taught: taught.batch.inputs.tokens_BL
  lines.take(0, 3, 0, 0)
  np.testing.assert_array_equal(tokens(lines.take(5, 4, 7, 0)), tokens(again.take(5, 4, 7, 0)))
  parts = np.concatenate([tokens(lines.take(n, 1, 7, 0)) for n in range(5, 9)])
  np.testing.assert_array_equal(parts, tokens(again.take(5, 4, 7, 0)))
  assert (tokens(lines.take(0, 8, 7, 0)) != tokens(lines.take(0, 8, 8, 0))).any()


def test_a_folder_that_is_none_is_one_clear_line(folder, tmp_path):
  with pytest.raises(UserError, match=r'no description of stored logits .*--kind=logits'):
    shards.Lines(str(tmp_path / 'nowhere'))
  said = json.loads((folder / 'about.json').read_text())
  (folder / 'about.json').write_text(json.dumps(said | {'k': 4}))
  with pytest.raises(UserError, match=r'00000.npy is not what about.json says; make the folder ag'):
    shards.Lines(str(folder))
  (folder / 'about.json').write_text(json.dumps(said | {'shards': []}))
  with pytest.raises(UserError, match='no lines; curate more prompts'):
    shards.Lines(str(folder))


@pytest.mark.parametrize('content', [None, b'', b'no array', b'\x93NUMPY'])
def test_a_shard_that_cannot_be_read_is_one_clear_line(folder, content):
  path = sorted(folder.glob('*.npy'))[-1]
  path.unlink() if content is None else path.write_bytes(content)
  with pytest.raises(UserError, match=rf'{path.name} cannot be read \(.*\); make the folder again'):
    shards.Lines(str(folder))


def test_a_cut_shard_is_one_clear_line(folder):
  (folder / '00000.npy').write_bytes((folder / '00000.npy').read_bytes()[:-9])
  with pytest.raises(UserError, match=r'00000.npy cannot be read \(.*\); make the folder again'):
    shards.fingerprint(str(folder))


def test_few_of_many_shards_are_open_at_a_time(tmp_path):
  about = dataclasses.replace(ABOUT, length=8)
  rows = [Row([n + 1] * 9, [1.0] * 9) for n in range(2 * shards.OPEN_FILES)]
  teach = lambda made: say(made.targets_BL)
  shards.write(tmp_path / 'f', about, shards.taught(rows, about, 1, teach))
  opened = lambda: pathlib.Path('/proc/self/maps').read_text().count(str(tmp_path))
  lines = shards.Lines(str(tmp_path / 'f'))
  found = lines.take(0, len(rows), 0, 0).batch.targets_BL
  assert opened() <= shards.OPEN_FILES < len(lines.about.shards) == len(rows)
  assert sorted(found[:, 0]) == list(range(1, len(rows) + 1))


def test_a_failing_teacher_leaves_no_folder(tmp_path):
  def teach(made):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    shards.write(tmp_path / 'f', ABOUT, shards.taught(ROWS, ABOUT, 2, teach))
  assert not list(tmp_path.iterdir())


def test_the_fingerprint_is_that_of_the_lines(folder, tmp_path):
  again, other = (tmp_path / name for name in 'ab')
  shards.write(again, ABOUT, shards.taught(ROWS, ABOUT, 2, lambda made: say(made.targets_BL)))
  shards.write(other, ABOUT, shards.taught(ROWS, ABOUT, 2, lambda made: say(made.targets_BL + 1)))
  first, same, different = (shards.fingerprint(str(f)) for f in (folder, again, other))
  assert first == same != different


def test_the_fingerprint_sees_every_shard(tmp_path):
  about = dataclasses.replace(ABOUT, length=8)
  rows = [Row([n + 1] * 9, [1.0] * 9) for n in range(600)]
  teach = lambda made: say(made.targets_BL)
  shards.write(tmp_path / 'f', about, shards.taught(rows, about, 1, teach))
  before = shards.fingerprint(str(tmp_path / 'f'))
  changed = np.load(tmp_path / 'f' / '00123.npy')
  changed['logp'] -= 1
  np.save(tmp_path / 'f' / '00123.npy', changed)
  assert shards.fingerprint(str(tmp_path / 'f')) != before
