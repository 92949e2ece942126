"""Decode attention over lists of pages and of places, as XLA does it and as specified."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from r1jax.kernels.attention.blocks import merge
from r1jax.kernels.paged import paged_attention, selected_rows, xla
from r1jax.kernels.paged.visible import Visible
from r1jax.sharding import mesh as meshes
from tests.kernels.paged import pool

B, T = 5, 7


@pytest.fixture(autouse=True, scope='module')
def short_chunks():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(xla, 'CHUNK', 3 * pool.SIZE)
    yield


@functools.partial(jax.jit, static_argnames=('width', 'cap', 'kind', 'op'))
def run(q, keys, values, layer, what, width, cap=None, kind='xla', op=paged_attention):
  return op(q, keys, values, layer, what, pool.SCALE, width, cap, kind)


@pytest.mark.parametrize('implementation', ['xla', 'reference'])
@pytest.mark.parametrize('kind', pool.KINDS)
@hypothesis.settings(max_examples=8)
@hypothesis.given(
  seed=st.integers(0, 999), layer=st.integers(0, 1), cap=st.sampled_from([None, 1.5])
)
def test_lists_of_pages(kind, implementation, seed, layer, cap):
  rng = np.random.default_rng(seed)
  q, keys, values, width = pool.draw(rng, kind, B)
  visible = pool.lists(rng, B, T)
  seen = pool.places(visible)
  keys, values = pool.poisoned((keys, values), seen)
  got = run(q, keys, values, layer, visible, width, cap, implementation)
  assert got[1].dtype == jnp.float32
  pool.check(got, pool.oracle(q, keys, values, width, layer, seen, cap))


@pytest.mark.parametrize('implementation', ['xla', 'reference'])
@pytest.mark.parametrize('kind', pool.KINDS)
@hypothesis.settings(max_examples=5)
@hypothesis.given(seed=st.integers(0, 999), layer=st.integers(0, 1))
def test_lists_of_places(kind, implementation, seed, layer):
  rng = np.random.default_rng(seed)
  q, keys, values, width = pool.draw(rng, kind, B)
  ids = np.int32(rng.integers(-1, pool.PAGES * pool.SIZE, (B, 29)))
  ids[0], ids[1, 2:] = -1, -1
  seen = [[divmod(i, pool.SIZE) for i in row if i >= 0] for row in ids]
  keys, values = pool.poisoned((keys, values), seen)
  got = run(q, keys, values, layer, ids, width, None, implementation, selected_rows)
  pool.check(got, pool.oracle(q, keys, values, width, layer, seen))


@pytest.mark.parametrize('implementation', ['xla', 'reference'])
@pytest.mark.parametrize('kind', pool.KINDS[:3])
@hypothesis.settings(max_examples=5)
@hypothesis.given(seed=st.integers(0, 999), layer=st.integers(0, 1))
def test_lists_of_places_by_head(kind, implementation, seed, layer):
  rng = np.random.default_rng(seed)
  q, keys, values, width = pool.draw(rng, kind, B)
  heads = pool.HEADS if 'grouped' in kind else 1
  ids = np.int32(rng.integers(-1, pool.PAGES * pool.SIZE, (B, heads, 29)))
  ids[0, 0], ids[1, -1, 2:] = -1, -1
  seen = [
    [[divmod(i, pool.SIZE) for i in row if i >= 0] for row in ids[:, k]] for k in range(heads)
  ]
  keys, values = pool.poisoned((keys, values), [row for of_head in seen for row in of_head])
  got = run(q, keys, values, layer, ids, width, None, implementation, selected_rows)
  of_head = np.arange(q.shape[1]) * heads // q.shape[1]
  each = [pool.oracle(q, keys, values, width, layer, s) for s in seen]
  want = [np.stack([x[k][:, n] for n, k in enumerate(of_head)], 1) for x in zip(*each)]
  pool.check(got, want)


def test_calls_over_two_lists_merge_into_one():
  rng = np.random.default_rng(0)
  q, keys, values, width = pool.draw(rng, 'grouped', B)
  visible = pool.lists(rng, B, T)
  halves = [Visible(*(x[:, at] for x in visible)) for at in (slice(0, 3), slice(3, T))]
  merged = merge([run(q, keys, values, 1, half, width) for half in halves])
  pool.check(merged, run(q, keys, values, 1, visible, width))


@pytest.mark.parametrize('kind', pool.KINDS)
def test_bfloat16_stays_within_a_hundredth(kind):
  rng = np.random.default_rng(1)
  q, keys, values, width = pool.draw(rng, kind, B)
  short = lambda x: x if x.dtype == np.int8 else np.asarray(x, jnp.bfloat16)
  q, keys, values = jax.tree.map(short, (q, keys, values))
  visible = pool.lists(rng, B, T)
  got = run(q, keys, values, 0, visible, width)
  assert [x.dtype.name for x in got] == ['bfloat16', 'float32']
  pool.check(got, pool.oracle(q, keys, values, width, 0, pool.places(visible)), 1.5e-2)


@pytest.mark.parametrize('kind, op, by_head', [
  *((kind, op, False) for kind in pool.KINDS for op in (paged_attention, selected_rows)),
  *((kind, selected_rows, True) for kind in pool.KINDS[:2]),
])  # fmt: skip
def test_on_a_mesh_rows_read_their_own_pages(kind, op, by_head):
  rng = np.random.default_rng(5)
  q, keys, values, width = pool.draw(rng, kind, 4)
  lists = (4, pool.HEADS, T) if by_head else (4, T)
  pages = np.int32(rng.integers(-1, pool.PAGES // 2, lists))  # counted from each half's first
  shift = np.int32([0, 0, 3, 3]).reshape(4, *[1] * (len(lists) - 1)) * (pages >= 0)
  if op is paged_attention:
    low, high = np.sort(rng.integers(0, pool.SIZE + 1, (2, 4, T)).astype('i4'), 0)
    what, whole = (Visible(p, low, high) for p in (pages, pages + shift))
  else:
    places = rng.integers(0, pool.SIZE, lists)
    what, whole = (
      np.int32(np.where(p < 0, -1, p * pool.SIZE + places)) for p in (pages, pages + shift)
    )
  want = run(q, keys, values, 1, whole, width, op=op)
  mesh = meshes.make(meshes.Mesh(data=2, fsdp=1, tensor=2), jax.devices()[:4])
  with jax.set_mesh(mesh):
    got = jax.jit(functools.partial(op, scale=pool.SCALE, value_width=width))(
      q, keys, values, jnp.int32(1), what
    )
  pool.check(got, want)
  assert got[0].sharding.spec[1] == 'tensor'


def test_a_long_list_is_gathered_a_chunk_at_a_time():
  shape = jax.ShapeDtypeStruct
  q, keys = shape((4, 8, 64), 'f4'), shape((2, 512, 16, 64), 'f4')
  list_BT = shape((4, 512), 'i4')
  args = q, keys, None, shape((), 'i4'), Visible(list_BT, list_BT, list_BT), None
  memory = run.lower(*args).compile().memory_analysis()
  assert memory.temp_size_in_bytes < keys.size * 4 / 10


@pytest.mark.parametrize(
  'change, error, message',
  [
    ({'q': np.zeros((B, 4, 7), 'f4')}, ValueError, 'queries are 7 wide, the keys 6'),
    ({'q': np.zeros((B, 3, 6), 'f4')}, ValueError, '3 query heads are not a multiple of 2'),
    ({'q': np.zeros((4, 4, 6), 'f4')}, ValueError, '4 queries and lists of 5 rows'),
    (
      {'what': np.zeros((B, 3, 2), 'i4'), 'op': selected_rows},
      ValueError,
      '3 lists a row; expected one for each of 2 key-value heads',
    ),
    (
      {'values': np.zeros((2, 6, 3, 2, 5), 'f4')},
      ValueError,
      r'values of shape \(2, 6, 3, 2, 5\)',
    ),
    ({'width': 3}, ValueError, 'value_width=3 of values that are 5 wide'),
    ({'values': None, 'width': 7}, ValueError, 'value_width=7 of values that are 6 wide'),
    ({'kind': 'cuda'}, NotImplementedError, "'cuda'; known: tpu, gpu, xla, reference"),
    ({'kind': 'tpu'}, NotImplementedError, 'on tpu: pages of 4 places and 2 heads'),
    ({'kind': 'gpu'}, NotImplementedError, 'on gpu: pages of float32'),
  ],
)
def test_what_does_not_fit_is_refused(change, error, message):
  rng = np.random.default_rng(0)
  names = ('q', 'keys', 'values', 'layer', 'what', 'width', 'cap', 'kind')
  q, keys, values, width = pool.draw(rng, 'grouped', B)
  given = dict(zip(names, (q, keys, values, 0, pool.lists(rng, B, T), width, None, 'xla')))
  with pytest.raises(error, match=message):
    run(**given | change)
