"""Files are whole or absent, and JSON is strict."""

import json

import numpy as np
import pytest

from r1jax.core import files


def test_write_replaces_and_leaves_nothing_beside(tmp_path):
  path = tmp_path / 'new' / 'a.txt'
  files.write_text(path, 'one')
  files.write_text(path, 'two ü')
  assert path.read_text() == 'two ü'
  assert [p.name for p in path.parent.iterdir()] == ['a.txt']


def test_a_value_that_fails_keeps_the_old_file(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(path, {'x': 1})
  with pytest.raises(TypeError):
    files.write_json(path, {'x': object()})
  assert json.loads(path.read_text()) == {'x': 1}


def test_plain():
  value = {1: (np.float32(0.5), np.int64(2)), 'a': np.asarray([[1.0, np.nan]]), 'b': [True, None]}
  assert files.plain(value) == {'1': [0.5, 2], 'a': [[1.0, None]], 'b': [True, None]}
  assert files.json_text({'x': [float('inf'), 'é']}) == '{"x": [null, "é"]}'
