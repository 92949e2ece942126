"""The TPU kernel, interpreted on the CPU, against float64 loops."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.paged import reference, tpu
from r1jax.kernels.paged.memory import memory_of
from r1jax.kernels.paged.visible import Visible, padded
from tests.kernels.paged import pool

B, T = 5, 7


@functools.partial(jax.jit, static_argnames=('width', 'cap', 'pages', 'entries', 'interpret'))
def run(q, keys, values, layer, visible, width, cap, pages, entries=2**16, interpret=True):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tpu, 'PAGES', pages)
    patch.setattr(tpu, 'ENTRIES', entries)
    memory = memory_of(keys, values, q.shape[-1], width)
    return tpu.paged_attention(q, memory, layer, visible, pool.SCALE, cap, interpret)


@pytest.mark.parametrize('kind', pool.KINDS)
@hypothesis.settings(max_examples=6)
@hypothesis.given(
  seed=st.integers(0, 999),
  layer=st.integers(0, 1),
  way=st.sampled_from([(None, 1), (1.5, 3)]),
)
def test_lists_of_pages(kind, seed, layer, way):
  (cap, pages), rng = way, np.random.default_rng(seed)
  q, keys, values, width = pool.draw(rng, kind, B)
  visible = pool.lists(rng, B, T)
  seen = pool.places(visible)
  keys, values = pool.poisoned((keys, values), seen)
  got = run(q, keys, values, layer, visible, width, cap, pages)
  pool.check(got, pool.oracle(q, keys, values, width, layer, seen, cap))


@pytest.mark.parametrize('rows, entries', [(1, 2**16), (5, 18)])
def test_one_row_and_more_rows_than_scalars_fit(rows, entries):
  rng = np.random.default_rng(2)
  q, keys, values, width = pool.draw(rng, 'grouped int8', rows)
  visible = pool.lists(rng, rows + 1, T)
  visible = Visible(*(x[1:] for x in visible))
  got = run(q, keys, values, 0, visible, width, None, 2, entries)
  memory = memory_of(keys, values, q.shape[-1], width)
  want = jax.jit(reference.paged_attention, static_argnums=4)(q, memory, 0, visible, pool.SCALE)
  pool.check(got, want)


@pytest.mark.parametrize('kind', pool.KINDS)
def test_bfloat16_stays_within_a_hundredth(kind):
  rng = np.random.default_rng(1)
  q, keys, values, width = pool.draw(rng, kind, B)
  short = lambda x: x if x.dtype == np.int8 else np.asarray(x, jnp.bfloat16)
  q, keys, values = jax.tree.map(short, (q, keys, values))
  visible = pool.lists(rng, B, T)
  got = run(q, keys, values, 0, visible, width, None, 3)
  assert [x.dtype.name for x in got] == ['bfloat16', 'float32']
  pool.check(got, pool.oracle(q, keys, values, width, 0, pool.places(visible)), 1.5e-2)


def test_simulated_copies_do_not_race():
  rng = np.random.default_rng(3)
  q, keys, values, width = pool.draw(rng, 'grouped', 3)
  visible = pool.lists(rng, 3, 4)
  params = pltpu.InterpretParams(detect_races=True)
  got = run(q, keys, values, 1, visible, width, None, 2, interpret=params)
  pool.check(got, pool.oracle(q, keys, values, width, 1, pool.places(visible)))


@hypothesis.settings(max_examples=30)
@hypothesis.given(seed=st.integers(0, 999), rows=st.sampled_from([1, 4]), m=st.sampled_from([1, 3]))
def test_items_meet_every_listed_page_once_and_no_more_steps_than_that_needs(seed, rows, m):
  steps = -(-T // m)
  listed = pool.lists(np.random.default_rng(seed), rows, T)
  visible = Visible(*map(np.asarray, padded(listed, m)))
  shape = tpu.Shape(m, steps, 8, 2, (), (), True, 1, 1.0, None)
  items = jax.tree.map(np.asarray, jax.jit(tpu.items_of, static_argnums=2)(visible, 0, shape))
  there = (visible.pages_BT >= 0) & (visible.from_BT < visible.to_BT)
  filled = [np.flatnonzero(row.reshape(steps, m).any(1)) for row in there]
  spans = [range(x[0], x[-1] + 1) if len(x) else [0] for x in filled]
  cuts, cores = items.core_C, range(len(items.core_C) - 1)
  got = [[tuple(map(int, items.at(c, i))) for i in range(cuts[c + 1] - cuts[c])] for c in cores]
  assert [item for core in got for item in core] == [
    (b, s) for b, span in enumerate(spans) for s in span
  ]
  rows_of = [{b for b, _ in core} for core in got]
  assert all(rows_of) and sum(map(len, rows_of)) == rows  # each has some, none has two


@pytest.mark.parametrize(
  'shape, dtype, why',
  [
    ((16, 8, 128), 'f4', None),
    ((32, 640), 'f4', None),
    ((16, 1, 128), 'f4', 'pages of 16 places and 1 heads'),
    ((16, 8, 128), 'f2', 'pages of float16'),
    ((16, 8, 64), 'f4', 'vectors of 64 numbers'),
    ((32, 576), 'f4', 'vectors of 576 numbers'),
    ((16, 2, 128), 'f4', None),
    ((16, 4, 256), 'f4', '4 heads of 256 numbers'),
    ((32, 12, 128), 'f4', '12 heads of 128 numbers'),
  ],
)
def test_what_mosaic_would_not_take_is_refused(shape, dtype, why):
  keys = np.zeros((1, 2, *shape), dtype)
  got = tpu.refusal(np.zeros((1, 8, shape[-1]), 'f4'), memory_of(keys, keys, shape[-1]))
  assert (got is None) if why is None else why in got
