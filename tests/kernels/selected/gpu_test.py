"""The Mosaic GPU kernels: against float64 in jax's interpreter, and lowered for H200s."""

import contextlib
import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # private until 0.12

from r1jax.kernels.attention.lists import Band, Tokens
from r1jax.kernels.attention.reference import sees
from r1jax.kernels.selected import gpu, gpu_backward, gpu_tiles, selected_attention, xla
from tests.kernels.attention.gpu_test import without_races
from tests.kernels.selected.xla_test import SCALE, check, oracle

M = 192
SEGMENTS = np.int32([1] * 100 + [2] * 60 + [0] * 32)


@dataclasses.dataclass(frozen=True)
class Case:
  """Heads, widths and lists; without `value` the key holds it."""

  heads: int
  kv_heads: int
  key: int
  value: int | None
  width: int
  size: int
  listed: int
  lists: int
  places: tuple[int, ...] = ()  # of the queries in interpreted cases

  def arrays(self, L, memory, seed=0):
    """q, k, v and cotangents of both outputs."""
    rng = np.random.default_rng(seed)
    N, K, H, V = self.heads, self.kv_heads, self.key, self.width
    shapes = ((1, L, N, H), (1, memory, K, H), (1, memory, K, V), (1, L, N, V), (1, L, N))
    q, k, v, do, dlse = (0.5 * rng.normal(size=s).astype(np.float32) for s in shapes)
    return q, k, None if self.value is None else v, do, dlse

  def shapes(self, B, L, dtype=jnp.bfloat16):
    """Arguments of a compiled program."""
    array = lambda *shape: jax.ShapeDtypeStruct((B, L, *shape), dtype)
    v = None if self.value is None else array(self.kv_heads, self.value)
    ids = jax.ShapeDtypeStruct((B, L, self.lists, self.listed), np.int32)
    tokens = Tokens(*(jax.ShapeDtypeStruct((B, L), np.int32),) * 2)
    return array(self.heads, self.key), array(self.kv_heads, self.key), v, ids, tokens


def random_lists(case, L, memory, seed=0):
  """Pages without repetition, some of them −1."""
  rng = np.random.default_rng(seed)
  every = np.tile(np.arange(memory // case.size, dtype=np.int32), (1, L, case.lists, 1))
  ids = rng.permuted(every, axis=-1)[..., : case.listed]
  ids[rng.random(ids.shape) < 0.1] = -1
  return ids


def keys_and_some(places):
  """A row packed with two segments and padding, and queries at some of its places."""
  keys = Tokens(np.arange(M, dtype=np.int32)[None], SEGMENTS[None])
  return keys, Tokens(*(x[:, list(places)] for x in keys))


CASES = {
  'pages': Case(24, 1, 64, 64, 64, 64, 3, 1, (155, 20)),
  'tokens, two warpgroups': Case(8, 1, 384, None, 320, 1, 70, 1, (120,)),
  'pages of 16 by head, gathered': Case(4, 2, 128, 64, 64, 16, 7, 2, (90, 140)),
  'pages, two blocks of heads': Case(72, 1, 128, None, 128, 64, 3, 1, (159, 170)),
  'values apart, two warpgroups': Case(6, 2, 320, 320, 320, 64, 2, 2, (110,)),
}


@pytest.mark.parametrize(
  'name',
  [name if i < 2 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(CASES)],
)
def test_outputs_and_gradients_in_the_interpreter(name, monkeypatch):
  # So few that stages are used again, so many that one warpgroup may run ahead of the other.
  monkeypatch.setattr(gpu_tiles, 'STAGES', 3 if 'two warpgroups' in name else 2)
  monkeypatch.setattr(gpu_tiles, 'SHARED', 2 * gpu_tiles.SHARED)  # fp32 takes twice the room
  case, how = CASES[name], InterpretGPUParams(detect_races=True)
  keys, queries = keys_and_some(case.places)
  L = len(case.places)
  q, k, v, do, dlse = case.arrays(L, M)
  ids = random_lists(case, L, M)
  if name == 'pages':
    ids[0, :, 0] = [[2, -1, 1], [2, -1, -1]]  # the second query sees nothing of what it lists
  by = case.size, SCALE, case.width, 8
  o, lse = without_races(lambda q: gpu.forward(q, k, v, ids, queries, keys, *by, interpret=how), q)
  delta = np.einsum('BLNV,BLNV->BLN', do, o) - np.where(lse == -np.inf, np.nan, dlse)
  store = jax.jit(lambda: gpu_tiles.stored(k, v, ids, keys, case.size))()
  rest = do, lse, delta, gpu_tiles.How(case.kv_heads, case.width, v is None, SCALE, how)
  dq = without_races(lambda q: gpu_backward.d_query(q, store, queries, *rest), q)
  made = without_races(lambda q: gpu_backward.d_key_value(q, store, queries, *rest), q)
  places = case.listed * case.size
  sums = [
    xla.scatter_add(jnp.zeros(x.shape), ids, case.size, y[None, :, :, :places])
    for x, y in zip((k, v), made)
  ]
  expected = oracle(q, k, v, do, dlse, ids, case.size, queries, keys)
  check((o, lse, dq, *sums), expected)
  assert name != 'pages' or (lse[0, 1] == -np.inf).all()


@hypothesis.given(
  seed=st.integers(0, 99),
  size=st.sampled_from([1, 4, 64, 96]),
  lists=st.sampled_from([1, 2]),
  listed=st.integers(1, 3),
)
@hypothesis.settings(max_examples=4)
def test_tiles_hold_what_is_listed_and_nothing_else_that_is_seen(seed, size, lists, listed):
  keys, queries = keys_and_some((30, 120, 180))
  case = Case(2, 2, 4, 4, 4, size, min(listed * 64 // size + 1, M // size), lists)
  _, k, v, _, _ = case.arrays(3, M, seed)
  ids = random_lists(case, 3, M, seed)
  store = gpu_tiles.stored(k, v, ids, keys, size)
  k_there, v_there, (index, segments) = store.k_BMKH[0], store.v_BMKV[0], store.tokens_B2M[0]
  seen = np.asarray(sees(queries, keys, Band()))[0]
  for x, kv in np.ndindex(3, 2):
    tiles = np.asarray(store.ids_XJT[x, kv % store.ids_XJT.shape[1]])
    none = len(k_there) // 64
    assert (tiles[int(store.count_XJ[x, kv % store.ids_XJT.shape[1]]) :] == none).all()
    at = np.array([64 * t + z for t in tiles[tiles < none] for z in range(64)], int)
    own = np.asarray((segments == queries.segments_BM[0, x]) & (index <= queries.index_BM[0, x]))
    at = at[own[at]] if len(at) else at
    pages = ids[0, x, kv % lists]
    wanted = [m for p in pages[pages >= 0] for m in range(p * size, p * size + size) if seen[x, m]]
    for there, everything in ((k_there, k), (v_there, v)):
      rows = np.asarray(there)[at, kv % there.shape[1]]
      np.testing.assert_array_equal(rows, everything[0, wanted, kv])


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('H, V', [(64, 64), (192, 128), (576, 512), (384, 320)])
def test_each_column_is_summed_once(H, V, parts):
  cut = gpu_tiles.spans(H, V, parts)
  assert [span.start for span in cut] == [sum(s.width for s in cut[:i]) for i in range(len(cut))]
  assert sum(s.width for s in cut) == H
  assert sum(s.width for s in cut if s.of_value) == V


MLA = Case(128, 1, 576, None, 512, 1, 2048, 1)
REAL = {'MLA, 2048 tokens': MLA, 'GQA, 16 pages of 64': Case(64, 8, 128, 128, 128, 64, 16, 8)}


@contextlib.contextmanager
def eight_h200s():
  """What lowering without a GPU asks for: newer jax takes the architecture from the mesh."""
  device = jax.sharding.AbstractDevice('NVIDIA H200', 132, 'gpu')
  sizes = {'data': 2, 'fsdp': 1, 'expert': 1, 'context': 2, 'tensor': 2}
  auto = (jax.sharding.AxisType.Auto,) * len(sizes)
  names = tuple(sizes)
  mesh = jax.sharding.AbstractMesh(
    tuple(sizes.values()), names, axis_types=auto, abstract_device=device
  )
  with jax.sharding.use_abstract_mesh(mesh):
    yield


def gradients(case):
  """(o, lse, dq, dk, dv) through the public function."""
  width = case.width if case.value is None else None

  def run(q, k, v, ids, queries, keys, do, dlse):
    of = lambda *kept: selected_attention(
      *(*kept, None)[:3], ids, case.size, queries, keys, SCALE, width, implementation='gpu'
    )
    made, back = jax.vjp(of, *(x for x in (q, k, v) if x is not None))
    return *made, *back((do, dlse))

  return run


def lowered(case):
  """For one row of 4,096 on each device of a mesh that splits heads and queries, too."""
  q, k, v, ids, tokens = case.shapes(4, 4096)
  do = jax.ShapeDtypeStruct((*q.shape[:3], case.width), q.dtype)
  dlse = jax.ShapeDtypeStruct(q.shape[:3], np.float32)
  with eight_h200s():
    traced = jax.jit(gradients(case)).trace(q, k, v, ids, tokens, tokens, do, dlse)
    return traced.lower(lowering_platforms=('cuda',)).as_text()


@pytest.mark.parametrize('name', REAL)
def test_lowers_for_h200s(name):
  text = lowered(REAL[name])
  for kernel in ('forward', 'd_query', 'd_key_value'):
    assert f'selected_attention_{kernel}' in text


def test_gradients_are_of_xla_where_only_the_forward_fits():
  case = Case(16, 2, 512, 512, 512, 64, 2, 1)
  assert gpu.refuses(*case.shapes(1, 64)[:3], 512) is None
  refused = gpu_backward.refuses(*case.shapes(1, 64)[:3], 512)
  assert 'of shared memory, there are 225280' in refused
  text = lowered(case)
  assert 'selected_attention_forward' in text
  assert 'selected_attention_d_query' not in text


@pytest.mark.parametrize(
  'case, dtype, message',
  [
    (MLA, np.float32, 'GPU kernel of selected attention takes all bfloat16.*float32.*use xla'),
    (Case(8, 2, 96, 96, 96, 1, 8, 1), jnp.bfloat16, 'multiples of 64.*keys of 96 and values of 96'),
    (Case(8, 2, 64, 128, 128, 1, 8, 1), jnp.bfloat16, 'keys of 64 and values of 128'),
    (Case(8, 2, 640, 640, 640, 1, 8, 1), jnp.bfloat16, 'values up to 512'),
    (Case(8, 2, 640, 512, 512, 1, 8, 1), jnp.bfloat16, r'2·73984 bytes of shared memory'),
  ],
)
def test_what_the_kernel_cannot_do_is_refused(case, dtype, message):
  q, k, v, ids, tokens = (
    None if x is None else jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), x)
    for x in case.shapes(1, 64, dtype)
  )
  width = case.width if v is None else None
  with pytest.raises(NotImplementedError, match=message):
    selected_attention(q, k, v, ids, 1, tokens, tokens, SCALE, width, implementation='gpu')


@pytest.mark.gpu
@pytest.mark.parametrize('name', REAL)
def test_agrees_with_float64_on_a_gpu(name):
  case, memory, L = REAL[name], 4096, 8
  keys = Tokens(np.arange(memory)[None], np.repeat([1, 2, 0], [2500, 1500, 96])[None])
  queries = Tokens(*(x[:, [5, 700, 2499, 2500, 2600, 3999, 4000, 4090]] for x in keys))
  ids = random_lists(case, L, memory)
  q, k, v, do, dlse = case.arrays(L, memory)
  short = [None if x is None else jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, do)]
  got = jax.jit(gradients(case))(*short[:3], ids, queries, keys, short[3], dlse)
  rounded = [None if x is None else np.asarray(x, np.float32) for x in short]
  expected = oracle(*rounded, dlse, ids, case.size, queries, keys)
  check([np.asarray(x, np.float32) for x in got], expected, 2e-2)
