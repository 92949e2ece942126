"""Programs compile once, or a known number of times, say so and why, and refuse all else."""

import contextlib
import functools
import timeit
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.program import Program, guarded, silent

pytestmark = pytest.mark.optimized


class Batch(NamedTuple):
  inputs: dict
  weight_B: np.ndarray | None = None


class Heard(list):
  """An announcer that keeps what it was told."""

  @contextlib.contextmanager
  def __call__(self, what):
    self.append(f'begin {what}')
    yield
    self.append('end')


def batch(rows, columns=2):
  return Batch({'tokens_BL': np.ones((rows, columns), 'i4')})


def total(scale, batch):
  return scale * batch.inputs['tokens_BL'].sum()


def test_a_program_announces_its_one_compilation():
  heard = Heard()
  double = Program('doubling', lambda x: 2 * x, heard)
  assert heard == []
  for x in (jnp.arange(3.0), jnp.ones(3)):
    np.testing.assert_array_equal(double(x), 2 * np.asarray(x))
  assert heard == ['begin doubling', 'end']


def test_other_shapes_and_types_are_an_error_that_says_what_changed():
  double = Program('doubling', lambda x: 2 * x)
  double(jnp.ones(3))
  for x, kind in ((jnp.ones(4), 'float32[4]'), (jnp.ones(3, jnp.int32), 'int32[3]')):
    with pytest.raises(RuntimeError) as error:
      double(x)
    assert str(error.value) == (
      f'doubling again: x float32[3] -> {kind}; the limit is traces=1: '
      'pad to shapes seen before, or raise it'
    )
  np.testing.assert_array_equal(double(jnp.ones(3)), [2, 2, 2])


def test_a_known_number_of_shapes_compile_each_once():
  heard = Heard()
  step = Program('step', total, heard, traces=2)
  assert [int(step(3, batch(n))) for n in (8, 16, 8, 16, 16)] == [48, 96, 48, 96, 96]
  assert heard == [
    'begin step',
    'end',
    'begin step again: batch/inputs/tokens_BL int32[8, 2] -> int32[16, 2]',
    'end',
  ]
  with pytest.raises(RuntimeError, match=r'L int32\[16, 2\] -> int32\[8, 9\]; .* traces=2:'):
    step(3, batch(8, 9))


def test_leaves_that_come_go_or_are_many_are_told():
  step = Program('step', total)
  step(3, batch(4))
  with pytest.raises(RuntimeError, match=r'again: batch/weight_B absent -> float32\[4\];'):
    step(3, batch(4)._replace(weight_B=np.ones(4, 'f4')))
  many = Program('sum', lambda *x: x)
  many(*np.ones((5, 2)))
  with pytest.raises(RuntimeError, match=r'x/0 float32\[2\] -> float32\[3\], x/1 .*, 2 more;'):
    many(*np.ones((5, 3)))
  pair = Program('pair', lambda x: x)
  pair((1.0, 2.0))
  with pytest.raises(RuntimeError, match='pair again: the containers of the same leaves;'):
    pair([1.0, 2.0])


def test_what_is_no_array_and_what_is_missing_stay_type_errors():
  step = Program('step', total)
  step(3, batch(4))
  for args in ((3, 'text'), (3,)):
    with pytest.raises(TypeError):
      step(*args)


def test_another_sharding_is_an_error_and_not_a_silent_copy():
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  split, whole = (jax.sharding.NamedSharding(mesh, jax.P(*axes)) for axes in (('x',), ()))
  double = Program('doubling', lambda x: 2 * x, traces=2)
  double(jax.device_put(np.ones(8), split))
  with pytest.raises(ValueError, match='sharding'):
    double(jax.device_put(np.ones(8), whole))
  assert double(np.ones(8)).sharding.is_equivalent_to(split, 1)


def test_options_reach_jit():
  x = jnp.ones(3)
  Program('adding', lambda x: x + 1, donate_argnums=0)(x)
  assert x.is_deleted()


def test_a_refused_call_consumes_no_donated_argument():
  x = jnp.ones(3)
  add = Program('adding', lambda x, y: x + y, traces=2, donate_argnums=0)
  add(jnp.zeros(3), np.ones(3, 'f4'))
  np.testing.assert_array_equal(add(x, np.ones((), 'f4')), [2, 2, 2])


def test_chex_counts_each_program_by_itself_and_stops_the_trace_too_many():
  for n in (1, 2, 3):  # one stack, one source: to chex alone these would be one function
    Program('adding', functools.partial(lambda y, x: x + y, 1))(jnp.ones(n))
  f = jax.jit(guarded(lambda x: x, 'the step', 1))
  f(1.0)
  f(2.0)
  with pytest.raises(AssertionError, match=r'the step .* is traced > 1 times'):
    f(jnp.ones(2))


def test_the_name_in_profiles_and_in_the_compilation_cache_does_not_vary():
  texts = [jax.jit(guarded(lambda x: x, 'sft step', 1)).lower(1.0).as_text() for _ in range(2)]
  assert texts[0] == texts[1] and '@jit_sft_step' in texts[0]


def test_the_check_costs_nothing_that_can_be_felt():
  leaves = {f'layer{i}': jnp.ones(4) for i in range(100)}
  program = Program('first', lambda x: x['layer0'])
  program(leaves)
  compiled = next(iter(program._programs.values()))
  best = lambda f: min(timeit.repeat(lambda: f(leaves), number=200, repeat=7)) / 200
  assert best(program) - best(compiled) < 50e-6


def test_silent_announces_nothing(capsys):
  with silent('anything'):
    pass
  assert capsys.readouterr() == ('', '')
