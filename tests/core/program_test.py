"""Programs compile once, say so, and refuse other shapes."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.program import Program, silent


def test_a_program_announces_its_one_compilation():
  heard = []

  @contextlib.contextmanager
  def announce(what):
    heard.append(f'begin {what}')
    yield
    heard.append('end')

  double = Program('doubling', lambda x: 2 * x, announce)
  assert heard == []
  for x in (jnp.arange(3.0), jnp.ones(3)):
    np.testing.assert_array_equal(double(x), 2 * np.asarray(x))
  assert heard == ['begin doubling', 'end']


def test_other_shapes_and_types_are_an_error_not_a_recompilation():
  double = Program('doubling', lambda x: 2 * x)
  double(jnp.ones(3))
  for x in (jnp.ones(4), jnp.ones(3, jnp.int32)):
    with pytest.raises(TypeError):
      double(x)


def test_options_reach_jit():
  x = jnp.ones(3)
  Program('adding', lambda x: x + 1, donate_argnums=0)(x)
  assert x.is_deleted()


def test_silent_announces_nothing(capsys):
  with silent('anything'):
    pass
  assert capsys.readouterr() == ('', '')
