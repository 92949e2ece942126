"""Damage of every kind is found, named, and told from what is only out of reach."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.checkpoint import marker
from r1jax.checkpoint.errors import CheckpointError, Damaged
from r1jax.checkpoint.store import Store

TREE = {
  'params': {'w': jnp.arange(1.0, 3001.0).reshape(60, 50), 'h': jnp.arange(8, dtype=jnp.bfloat16)},
  'opt': {'mu': jnp.arange(5001.0, 5601.0).reshape(60, 10)},
}
SHAPES = jax.eval_shape(lambda: TREE)


@pytest.fixture
def store(tmp_path):
  """Steps 1 and 2 of the same tree."""
  with Store(tmp_path) as made:
    made.save(1, TREE, {'a': 1})
    made.save(2, TREE, {'a': 2})
  return made


def written(store, step=2):
  folder = pathlib.Path(store.directory / str(step))
  paths = [path for path in folder.rglob('*') if path.is_file()]
  return [path for path in paths if path.name != marker.MARKER]


def damage(store, **kwargs):
  """The line of what a restore of the latest finds."""
  with pytest.raises(Damaged) as error:
    store.restore(SHAPES, **kwargs)
  text = str(error.value)
  assert '\n' not in text and len(text) < 1000
  assert (
    'step 2' in text
    and str(store.directory) in text
    and text.endswith('; step 1 can be used instead')
  )
  return text


def flip(store, values):
  """Changes one bit of an array in the data file, whose size stays; nothing is compressed."""
  raw = np.asarray(values).tobytes()
  holder = [path for path in written(store) if raw in path.read_bytes()]
  whole = holder[0].read_bytes()
  at = whole.index(raw) + len(raw) // 2
  holder[0].write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
  return len(holder)


@pytest.mark.parametrize('harm', ['missing', 'truncated', 'flipped'])
def test_every_file_is_watched(store, harm, capfd):
  for path in written(store):
    whole = path.read_bytes()
    if harm == 'missing':
      path.unlink()
    elif harm == 'truncated':
      path.write_bytes(whole[: len(whole) // 2])
    else:
      path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert path.name in damage(store)
    path.write_bytes(whole)
  store.restore(SHAPES)
  assert capfd.readouterr().err == ''


def test_a_flipped_bit_of_an_array_is_found(store, monkeypatch):
  """Where the data file is large no digest covers it."""
  monkeypatch.setattr(marker, 'SMALL', 2000)
  store.discard(2)
  store.save(2, TREE, {}, block=True)
  record = json.loads((store.directory / '2' / 'checkpoint.json').read_text())
  assert max(record['files'].values()) > 2000 > min(record['files'].values())
  assert 0 < len(record['digests']) < len(record['files'])
  store.restore(SHAPES)
  assert flip(store, TREE['params']['w']) == 1
  assert '(the bytes of params/w have changed)' in damage(store)
  opt = store.restore({'opt': SHAPES['opt']}, partial=True)['opt'][
    'mu'
  ]  # whole, and all that is read
  assert np.array_equal(opt, TREE['opt']['mu'])
  with pytest.raises(Damaged, match='params/w'):
    store.restore({'params': {'w': SHAPES['params']['w']}}, partial=True)
  flip(store, TREE['opt']['mu'])
  assert 'of opt/mu and of 1 more have changed' in damage(store)


def test_without_digests_a_broken_index_is_damage_too(store, monkeypatch):
  monkeypatch.setattr(marker, 'broken_file', lambda *_: None)
  for path in written(store):
    if path.name == 'manifest.ocdbt' and path.parent.name == 'tree':
      path.write_bytes(b'\xff' + path.read_bytes()[1:])
  assert 'Error opening' in damage(store)


@pytest.mark.parametrize('text', ['', '{"step": 2', '{"step": 1}', '[]', '{"step": 2}', 'null'])
def test_a_broken_marker_is_damage(store, text):
  (store.directory / '2' / 'checkpoint.json').write_text(text)
  for read in (store.meta, store.describe):
    with pytest.raises(Damaged, match=r'damaged.*; step 1 can be used instead$'):
      read()


def test_a_flipped_bit_of_the_marker_is_found(store):
  """Wherever it is: in a value, a name, the checksum itself or its name."""
  path, want = store.directory / '2' / 'checkpoint.json', store.meta()
  whole = path.read_bytes()
  accepted = []
  for at in range(len(whole)):
    for bit in (1, 4):
      path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
      try:
        accepted.append(store.meta())
      except Damaged as error:
        said = str(error)
  assert accepted == [], said
  path.write_bytes(whole)
  assert store.meta() == want == {'a': 2}
  path.write_bytes(whole.replace(b'"a": 2', b'"a": 3'))
  with pytest.raises(Damaged, match=r'checkpoint\.json: .*its bytes have changed'):
    store.meta()


def test_the_marker_may_be_written_in_another_order(store):
  """The checksum is of what it says, not of how."""
  path = store.directory / '2' / 'checkpoint.json'
  record = json.loads(path.read_text())
  path.write_text(json.dumps(dict(reversed(record.items()))))
  assert store.meta() == {'a': 2}


@pytest.mark.parametrize('meta', [{'at': [1e-300, -0.0, 7**99], 'ü': '\u2028"'}, {'n': None}, {}])
def test_any_meta_passes_its_checksum(tmp_path, meta):
  with Store(tmp_path) as store:
    store.save(1, TREE, meta)
  assert json.dumps(store.meta()) == json.dumps(meta)


def test_a_marker_of_another_step_is_damage(store):
  whole = (store.directory / '1' / 'checkpoint.json').read_text()
  (store.directory / '2' / 'checkpoint.json').write_text(whole)
  with pytest.raises(Damaged, match='is of step 1'):
    store.meta()


def test_falling_back(store):
  """What a training loop does: the newest that is whole; damaged ones go aside."""
  flip(store, TREE['params']['w'])
  said = []
  for step in reversed(store.steps()):
    try:
      got = store.restore(SHAPES, step)
      break
    except Damaged as error:
      said.append(str(error))
      store.discard(step)
  assert len(said) == 1 and store.steps() == [1] and store.meta() == {'a': 1}
  assert sorted(path.name for path in store.directory.iterdir()) == ['1', '2.damaged']
  assert np.array_equal(got['params']['w'], TREE['params']['w'])


def test_discard_loses_nothing(store):
  whole = {path.name: path.read_bytes() for path in written(store)}
  store.discard(2)
  aside = store.directory / '2.damaged'
  assert store.steps() == [1]
  assert {p.name: p.read_bytes() for p in written(store, aside.name)} == whole
  store.save(2, TREE, {'a': 3}, block=True)
  store.save(3, TREE, {}, block=True)
  store.discard(2)  # in place of the older one
  assert store.steps() == [1, 3]
  assert json.loads((aside / 'checkpoint.json').read_text())['meta'] == {'a': 3}
  store.discard(2)  # there is none
  assert json.loads((aside / 'checkpoint.json').read_text())['meta'] == {'a': 3}
  aside.rename(store.directory / '2')  # it was whole after all
  assert np.array_equal(store.restore(SHAPES, 2)['params']['w'], TREE['params']['w'])


def test_a_discard_that_fails_says_so(store, monkeypatch):
  def refuse(*_):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(type(store.directory), 'rename', refuse)
  with pytest.raises(CheckpointError, match=r'2 cannot be set aside \(Permission denied\); mend'):
    store.discard(2)
  assert store.steps() == [1, 2]


def test_damage_without_another(store):
  store.discard(1)
  (store.directory / '2' / 'checkpoint.json').write_text('')
  with pytest.raises(
    Damaged, match=r'damaged \(.*\); no other is complete: train again in another'
  ):
    store.meta()


def test_what_is_out_of_reach_is_not_damage(store, monkeypatch):
  def refuse(*_):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(marker, 'broken_file', refuse)
  with pytest.raises(CheckpointError, match=r'cannot be read \(Permission denied\)') as error:
    store.restore(SHAPES)
  assert not isinstance(error.value, Damaged)
  monkeypatch.setattr(marker, 'broken_file', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):  # a bug stays one
    store.restore(SHAPES)


@pytest.mark.parametrize('kept', [(), ('digests',), ('digests', 'checksums')])
def test_a_checkpoint_from_before_checksums_is_read(store, kept):
  path = store.directory / '2' / 'checkpoint.json'
  record = json.loads(path.read_text())
  path.write_text(json.dumps({key: record[key] for key in (*marker.ENTRIES, *kept)}))
  assert np.array_equal(store.restore(SHAPES)['params']['w'], TREE['params']['w'])
