"""Which steps are kept and which go."""

import jax.numpy as jnp
import pytest

from r1jax.checkpoint.errors import CheckpointError
from r1jax.checkpoint.steps import Steps
from r1jax.checkpoint.store import Store


def make(directory, complete=(), partial=()):
  for step in (*complete, *partial):
    (directory / str(step) / 'tree').mkdir(parents=True)
  for step in complete:
    (directory / str(step) / 'checkpoint.json').write_text('{}')
  return Steps(directory)


def names(directory):
  return sorted(int(path.name) for path in directory.iterdir())


@pytest.mark.parametrize(
  ('keep', 'every', 'left'),
  [
    (1, None, [60]),
    (2, None, [50, 60]),
    (9, None, [0, 10, 20, 30, 40, 50, 60]),
    (1, 20, [0, 20, 40, 60]),
    (2, 30, [0, 30, 50, 60]),
    (1, 7, [0, 60]),
  ],
)
def test_newest_and_multiples_are_kept(tmp_path, keep, every, left):
  steps = make(tmp_path, range(0, 70, 10), partial=(5, 70))
  steps.drop_old(keep, every)
  assert steps.complete() == left
  assert names(tmp_path) == [*left, 70]  # a newer interrupted save may be under way


def test_a_store_drops_as_it_saves(tmp_path):
  with Store(tmp_path, keep=2, keep_every=15) as store:
    for step in (0, 5, 10, 15, 20, 25):
      store.save(step, {'x': jnp.asarray(step)}, {})
  assert store.steps() == names(tmp_path) == [0, 15, 20, 25]
  with pytest.raises(CheckpointError, match='keep=0'):
    Store(tmp_path, keep=0)
  with pytest.raises(CheckpointError, match='0 was given'):
    Store(tmp_path, keep_every=0)


def test_removal(tmp_path):
  steps = make(tmp_path, (1, 2, 3), partial=(4,))
  steps.remove(2)
  steps.remove(4)
  steps.remove(9)
  steps.remove_unfinished(3)  # is complete
  assert names(tmp_path) == [1, 3]
  (tmp_path / '3' / 'checkpoint.json').unlink()
  steps.remove_unfinished(3)
  assert names(tmp_path) == [1]
  assert steps.newest() == 'the newest complete checkpoint is step 1'
  steps.remove(1)
  assert steps.newest() == 'none is complete yet'


def test_an_old_step_that_cannot_be_removed(tmp_path, monkeypatch):
  steps = make(tmp_path, (1, 2))

  def refuse(step):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(steps, 'remove', refuse)
  with pytest.raises(CheckpointError) as error:
    steps.drop_old(1, None)
  assert 'Permission denied' in str(error.value) and 'is step 2' in str(error.value)
