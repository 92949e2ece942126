"""The gradients' TPU kernel in interpret mode against the dense specification in float64."""

import contextlib
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.selected import reference, selected_attention, tpu, tpu_backward, tpu_pages
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from tests.kernels.selected.packed import CASES, LENGTHS, SCALE, K, draw, keys_of, lists, some

KEPT = ('dq', 'dk', 'dv')


@functools.partial(jax.jit, static_argnames=('size', 'width'))
def oracle(q, k, v, ids, queries, keys, do, dlse, size, width):
  """lse, delta and the gradients; without v dv is in dk."""

  def run(q, k, v):
    values = k[..., :width] if v is None else v
    return reference.selected_attention(q, k, values, ids, size, queries, keys, SCALE)

  (o, lse), back = jax.vjp(run, q, k, v)
  delta = (do * o).sum(-1) - dlse
  return lse, delta, back((do, jnp.where(lse == -jnp.inf, 0, dlse)))


@functools.partial(jax.jit, static_argnames=('size', 'width', 'interpret'))
def interpreted(q, k, v, ids, queries, keys, do, lse, delta, size, width, interpret=True):
  tokens = (queries, keys)
  return tpu_backward.backward(q, k, v, ids, *tokens, do, lse, delta, size, SCALE, width, interpret)


def check(arrays, shared, ids, size, queries, keys, tolerance, seed=0, interpret=True):
  (q, k, v), rng = arrays, np.random.default_rng(seed + 1)
  width = v.shape[-1]
  v = None if shared else v
  do = jnp.asarray(rng.normal(size=(*q.shape[:3], width)), q.dtype)
  dlse = rng.normal(size=q.shape[:3])
  wide = [None if x is None else np.float64(x) for x in (q, k, v, do)]
  with jax.enable_x64(True):
    lse, delta, expected = oracle(*wide[:3], ids, queries, keys, wide[3], dlse, size, width)
  lse, delta = np.array(lse), np.array(delta)
  delta[lse == -np.inf] = np.nan  # of what saw nothing: nothing of it is read
  rest = (do, np.float32(lse), np.float32(delta), size, width, interpret)
  got = interpreted(q, k, v, ids, queries, keys, *rest)
  assert [x is None for x in got] == [False, False, shared]
  for name, a, b in zip(KEPT, got, expected):
    if b is not None:
      bound = tolerance * max(1, np.abs(b).max())
      np.testing.assert_allclose(np.float64(a), b, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize(
  'case', ['tokens, half words', 'tokens of each head', 'pages', 'pages that hold values']
)
@hypothesis.given(seed=st.integers(0, 99), lengths=LENGTHS)
@hypothesis.settings(max_examples=3)
def test_pages_of_packed_rows(case, seed, lengths):
  (size, heads, T, H, V, shared, dtype), keys = CASES[case], keys_of(lengths)
  arrays, ids = draw(seed, H, V, dtype), lists(seed, size, heads, T)
  tolerance = 1e-5 if dtype == 'float32' else 1e-2
  check(arrays, shared, ids, size, some(keys, seed), keys, tolerance, seed)


@pytest.mark.parametrize('size, T', [(1, 20), (8, 6)])
def test_a_list_takes_several_steps(monkeypatch, size, T):
  monkeypatch.setattr(tpu_pages, 'ROWS', 16)
  keys = keys_of([[64], [20, 30]])
  check(draw(0, 64, 48), False, lists(0, size, K, T), size, some(keys, 0), keys, 1e-5)


def test_one_row_is_split_between_two_cores():
  """Both halves of the queries list the same pages, and one behind the last, which is none."""
  keys = keys_of([[64], [20, 30]])
  queries, keys = Tokens(*(x[:1] for x in some(keys, 0))), Tokens(*(x[:1] for x in keys))
  arrays = [x[:1] for x in draw(0, 64, 64)]
  ids = np.tile(np.arange(9, dtype=np.int32), (1, len(queries.index_BM[0]), 1, 1))
  check(arrays, False, ids, 8, queries, keys, 1e-5)


def test_copies_and_sums_do_not_race(monkeypatch, capsys):
  """Of queries that follow each other and list the same pages, and −1 twice in a step."""
  monkeypatch.setattr(tpu_pages, 'ROWS', 16)
  keys = Tokens(*(x[:1] for x in keys_of([[20, 30], [64]])))
  q, k, v = draw(0, 64, 64)
  arrays = q[:1, :4, :2], k[:1, :, :1], v[:1, :, :1]
  queries = Tokens(*(x[:1, :4] for x in some(keys, 0)))
  ids = np.tile(np.arange(3, dtype=np.int32), (1, 4, 1, 1))
  ids[:, 2, :, :2] = -1
  params = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory='nan', num_cores_or_threads=2
  )
  check(arrays, False, ids, 8, queries, keys, 1e-5, interpret=params)
  assert 'RACE' not in capsys.readouterr().out


def gradients(arrays, ids, queries, keys, implementation):
  """(o, lse, dq, dk, dv) of some function of both outputs."""
  run = lambda *x: selected_attention(
    *x, ids, 8, queries, keys, SCALE, implementation=implementation
  )
  (o, lse), back = jax.vjp(run, *arrays)
  return o, lse, *back((jnp.cos(o), jnp.where(lse == -jnp.inf, 0, jnp.sin(lse))))


@pytest.mark.parametrize('mesh', [None, Mesh(data=2, context=2, tensor=2)])
def test_both_kernels_serve_the_public_function_on_one_device_and_on_eight(monkeypatch, mesh):
  # In shard_map only the slow interpreter knows what varies.
  interpret = True if mesh is None else pltpu.InterpretParams()
  for module, name in ((tpu, 'forward'), (tpu_backward, 'backward')):
    run = functools.partial(getattr(module, name), interpret=interpret)
    monkeypatch.setattr(module, name, run)
  keys = keys_of([[64], [11, 9]])
  (q, k, v), queries = draw(0, 64, 64), Tokens(*(x[:, 4:8] for x in some(keys, 0)))
  given = (q[:, 4:8], k, v), lists(0, 8, K, 2)[:, 4:8], queries, keys
  expected = jax.jit(gradients, static_argnums=4)(*given, 'reference')
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(meshes.make(mesh)):
    got = jax.jit(gradients, static_argnums=4)(*given, 'tpu')
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
