"""The Mosaic GPU kernel: against float64 in jax's interpreter, and lowered for an H200."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from r1jax.kernels.paged import gpu, gpu_chain, paged_attention
from r1jax.kernels.paged.memory import Int8, memory_of
from r1jax.kernels.paged.visible import Visible, padded
from tests.kernels.cuda import INTERPRET, lowered, without_races
from tests.kernels.paged import pool


def patched(monkeypatch, module, **values):
  for name, value in values.items():
    monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize(
  'kind, size, heads, rows, splits, cap, seed',
  [
    ('grouped', 8, 4, 1, 1, 1.5, 2),  # a stage of two pages
    ('latent', 32, 4, 2, 2, None, 6),  # a page of two stages
    ('latent int8', 16, 65, 1, 1, None, 4),
    pytest.param('grouped int8', 16, 4, 2, 2, 1.5, 2, marks=pytest.mark.slow),
  ],
)
def test_lists_of_pages_in_the_interpreter(kind, size, heads, rows, splits, cap, seed, monkeypatch):
  patched(monkeypatch, pool, WIDTH=64, VALUE=64, LATENT=(128, 64), SPARE=64, PAGES=4)
  monkeypatch.setattr(pool, 'SIZE', size)
  # Stages that are used again, and values over two warpgroups.
  patched(monkeypatch, gpu, PLACES=(16,), STAGES=2, LEAST=2, COLUMNS=64)
  monkeypatch.setattr(gpu, 'splits_of', lambda *_: splits)
  rng = np.random.default_rng(seed)
  q, keys, values, width = pool.draw(rng, kind, rows, heads)
  # The first row of two sees nothing.
  visible = Visible(*(x[2 - rows : 2] for x in pool.lists(rng, 3, 64 // size + 1)))
  seen = pool.places(visible)
  assert len(seen[-1]) > 32  # more than two stages
  keys, values = pool.poisoned((keys, values), seen)

  def run(q, keys, values, visible):
    memory = memory_of(keys, values, q.shape[-1], width)
    assert gpu.refusal(q, memory, INTERPRET) is None
    return gpu.paged_attention(q, memory, 1, visible, pool.SCALE, cap, INTERPRET)

  got = without_races(run, q, keys, values, visible)
  pool.check(got, pool.oracle(q, keys, values, width, 1, seen, cap))


@hypothesis.settings(max_examples=8)
@hypothesis.given(seed=st.integers(0, 999), copy=st.sampled_from([(4, 16), (2, 2), (2, 6)]))
def test_stages_hold_what_rows_list_and_no_more_before_and_behind_it(seed, copy):
  (unit, places), visible = copy, pool.lists(np.random.default_rng(seed), 3, 7)
  memory = memory_of(np.zeros((2, pool.PAGES, pool.SIZE, 64), 'f4'), None, 64)
  job = gpu_chain.Job(places, unit, 2, 0, 1, 1, 8, ((0, 0, 64),), (64,), 64, False, 1, None, True)
  made = gpu.lists_of(padded(Visible(*map(jnp.asarray, visible)), places // unit), memory, 1, job)
  copies_BTC, bounds_BTX, span_B2 = map(np.asarray, made)
  for row, (first, count), copies, bounds in zip(
    pool.places(visible), span_B2, copies_BTC, bounds_BTX
  ):
    got, parts = [], bounds[:, 1 : 1 + places // unit]
    for t in range(first, first + count):
      got += [c * unit + i for c, x in zip(copies[t], parts[t]) for i in range(x & 65535, x >> 16)]
      assert bounds[t, 0] == (parts[t] == unit << 16).all()
    assert got == [(pool.PAGES + page) * pool.SIZE + place for page, place in row]  # of layer 1
    assert not count or all(parts[t].any() for t in (first, first + count - 1))


@pytest.mark.parametrize(
  'programs, steps, want', [(64, 256, 2), (512, 128, 1), (8, 128, 16), (1, 1, 1), (128, 256, 1)]
)
def test_few_rows_fill_the_device_by_more_parts(programs, steps, want):
  assert gpu.splits_of(programs, steps) == want


def shapes(heads, kv_heads, size, dtype, query=jnp.bfloat16, head=128, stored=576):
  """Arguments of `paged_attention` for 8K places a row; kv heads None: MLA, 512 + 64."""
  array, B, lead = jax.ShapeDtypeStruct, 64, (2, 64, size)

  def stack(*shape):
    made = array((*lead, *shape), dtype)
    return Int8(made, array(made.shape[:-1], jnp.bfloat16)) if dtype == 'int8' else made

  table = array((B, 8192 // size), jnp.int32)
  rest = array((), jnp.int32), Visible(table, table, table)
  if kv_heads:
    keys = stack(kv_heads, head)
    return (array((B, heads, head), query), keys, keys, *rest), None
  keys = (stack(512), stack(64)) if dtype == 'int8' else stack(stored)
  return (array((B, heads, 576), query), keys, None, *rest), 512


@pytest.mark.parametrize(
  'given',
  [
    (32, 8, 64, 'bfloat16'),
    (28, 4, 16, 'float16', 'float16'),
    (32, 8, 128, 'int8'),
    (8, 8, 24, 'bfloat16', 'bfloat16', 256),
    (128, None, 64, 'bfloat16'),
    (16, None, 16, 'bfloat16', 'bfloat16', None, 640),
    (16, None, 64, 'int8'),
  ],
)
def test_lowers_for_an_h200(given):
  args, width = shapes(*given)
  run = functools.partial(
    paged_attention, scale=0.1, value_width=width, soft_cap=30.0, implementation='gpu'
  )
  assert 'paged_attention' in lowered(run, *args)


@pytest.mark.gpu
@pytest.mark.parametrize('rows', [1, 5])
@pytest.mark.parametrize('size', [16, 64])
@pytest.mark.parametrize('kind', pool.KINDS)
def test_agrees_with_float64_on_a_gpu(kind, size, rows, monkeypatch):
  patched(monkeypatch, pool, WIDTH=128, VALUE=128, LATENT=(512, 64), SPARE=64, PAGES=40)
  monkeypatch.setattr(pool, 'SIZE', size)
  rng = np.random.default_rng(0)
  q, keys, values, width = pool.draw(rng, kind, rows + 1, heads=72 if 'latent' in kind else 8)
  short = lambda x: x if x.dtype == np.int8 else np.asarray(x, jnp.bfloat16)
  q, keys, values = jax.tree.map(short, (q, keys, values))
  visible = pool.lists(rng, rows + 1, 30)
  seen = pool.places(visible)
  keys, values = pool.poisoned((keys, values), seen)
  run = functools.partial(
    paged_attention, scale=pool.SCALE, value_width=width, implementation='gpu'
  )
  got = jax.jit(run)(q, keys, values, jnp.int32(1), visible)
  pool.check(got, pool.oracle(q, keys, values, width, 1, seen), 2e-2)


@pytest.mark.parametrize(
  'change, why',
  [
    ({}, None),
    ({'size': 12}, 'pages of 12 places; a multiple of 8'),
    ({'dtype': 'float32'}, 'pages of float32 for queries in bfloat16'),
    ({'query': 'float32'}, 'for queries in bfloat16 or float16'),
    ({'head': 96}, 'keys of 96 numbers, values of 96; multiples of 64'),
    ({'head': 640}, 'values of 640 numbers; 512 are served'),
    ({'kv_heads': None, 'stored': 579}, 'keys of 576 numbers, values of 512; multiples of 64'),
    ({'kv_heads': None}, None),
    ({'head': 512}, 'keys of 512 numbers; too few stages fit into 231424 bytes'),
  ],
)
def test_what_the_kernel_cannot_do_is_refused(change, why):
  (q, keys, values, *_), width = shapes(
    **{'heads': 16, 'kv_heads': 8, 'size': 64, 'dtype': 'bfloat16'} | change
  )
  got = gpu.refusal(q, memory_of(keys, values, q.shape[-1], width))
  assert got is None if why is None else why in got
