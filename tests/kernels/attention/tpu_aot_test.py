"""Attention through the TPU compiler, forward and backward: our kernels, and splash's.

bash launch/tpu_aot.sh prints what each program takes.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from r1jax.kernels.attention import tpu
from r1jax.kernels.attention.dense import dense_attention
from r1jax.kernels.attention.lists import Band, Listed, Tokens, banded, most_visited
from tests.kernels.topologies import CHIPS, chips, compiled, vmem

pytestmark = [pytest.mark.tpu_aot, pytest.mark.optimized]

WINDOW, BEFORE = Band(0, 512), Band(512)
KEYS = 1024  # gathered from the sequence, however long

# Query heads, kv heads and widths on a chip; of MLA's 128 heads these are an eighth.
GQA, MLA = (32, 8, 128, 128), (16, 16, 192, 128)


def outputs_and_gradients(q, k, v, do, queries, keys, visits, most, sizes, band, cap=None):
  """All three kernels; `visits` and `most` of blocks of queries, then of blocks of keys."""
  rest = (sizes, band, 0.1, cap)
  o, lse = tpu.forward(q, k, v, queries, keys, visits[0], most[0], *rest)
  delta = jnp.einsum('BLNV,BLNV->BLN', do, o, preferred_element_type=jnp.float32)
  args = (q, k, v, do, lse, delta, queries, keys)
  dq = tpu.d_query(*args, visits[0], most[0], *rest)
  return o, lse, dq, *tpu.d_key_value(*args, visits[1], most[1], *rest)


def branch(q, k, v, do, queries, keys, band):
  """Ranges of blocks as default sizes make them."""
  L, M = q.shape[1], k.shape[1]
  sizes = tpu.default_sizes(band, q.shape[2] // k.shape[2], L, M)
  visits = [banded(queries, keys, band, sizes, transposed) for transposed in (False, True)]
  most = most_visited(band, sizes.query, sizes.key, M // sizes.key), L // sizes.query
  return outputs_and_gradients(q, k, v, do, queries, keys, visits, most, sizes, band)


def hybrid(q, k, v, do, tokens, at):
  """A window, and keys gathered from before it."""
  near = branch(q, k, v, do, tokens, tokens, WINDOW)
  chosen = lambda x: jnp.take_along_axis(x, at.reshape(1, -1, *(1,) * (x.ndim - 2)), 1)
  far = branch(q, chosen(k), chosen(v), do, tokens, Tokens(*map(chosen, tokens)), BEFORE)
  return near, far


def arrays(heads, length, dtype=jnp.bfloat16):
  """Shapes of q, k, v and do, and of where tokens stand; one row."""
  N, K, H, V = heads
  ahead = ((N, H), (K, H), (K, V), (N, V))
  tokens = Tokens(*[jax.ShapeDtypeStruct((1, length), jnp.int32)] * 2)
  return *(jax.ShapeDtypeStruct((1, length, *x), dtype) for x in ahead), tokens


def dense(q, k, v, do, tokens):
  """jax's library, behind our function."""
  run = lambda q, k, v: dense_attention(q, k, v, tokens, 0.1, None, 'splash')
  o, back = jax.vjp(run, q, k, v)
  return o, *back(do)


def peaks(chip, heads, lengths, f, *more):
  """The most memory that f needs at each length, printed with what its kernels take."""
  found = []
  for S in lengths:
    program = compiled(f, chips(chip)[0], *arrays(heads, S), *more)
    memory = program.memory_analysis()
    found.append(memory.peak_memory_in_bytes)
    gib = lambda n: f'{n / 2**30:.2f} GiB'
    print(
      f'{f.__name__} on {chip}, {heads}, S {S}: peak {gib(found[-1])}, temporaries '
      f'{gib(memory.temp_size_in_bytes)}, arguments {gib(memory.argument_size_in_bytes)}; '
      f'VMEM in MiB {vmem(program)}'
    )
  return found


@pytest.mark.parametrize('chip', CHIPS)
@pytest.mark.parametrize('heads', [GQA, MLA], ids=['gqa', 'mla'])
@pytest.mark.parametrize('f', [hybrid, dense])
def test_memory_grows_with_the_length_and_no_faster(chip, heads, f):
  at = (jax.ShapeDtypeStruct((1, KEYS), jnp.int32),) if f is hybrid else ()
  short, long = peaks(chip, heads, (8192, 131072), f, *at)
  assert long < 20 * short  # 16 times the length; short arrays are partly kept out of HBM
  assert long < 4 * 131072**2  # fp32 scores of one head


@pytest.mark.slow
@pytest.mark.parametrize('heads', [GQA, MLA], ids=['gqa', 'mla'])
def test_temporaries_are_linear_in_the_length(heads):
  at = jax.ShapeDtypeStruct((1, KEYS), jnp.int32)
  S = (16384, 32768, 65536)
  a, b, c = peaks('v4', heads, S, hybrid, at)
  assert c - b <= 2.1 * (b - a)


@pytest.mark.slow
@pytest.mark.parametrize('chip', CHIPS)
@pytest.mark.parametrize('heads', [(8, 2, 64, 64), (2, 2, 192, 128), (16, 1, 128, 128)], ids=str)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_listed_blocks_and_soft_caps_compile(chip, heads, dtype):
  sizes, band = tpu.default_sizes(Band(), heads[0] // heads[1], 1024, 1024), Band(16)
  I, J = 1024 // sizes.query, 1024 // sizes.key
  run = functools.partial(outputs_and_gradients, most=(3, 3), sizes=sizes, band=band, cap=30.0)
  *qkv, tokens = arrays(heads, 1024, dtype)
  visits = [Listed(jax.ShapeDtypeStruct((1, n, 3), jnp.int32)) for n in (I, J)]
  program = compiled(run, chips(chip)[0], *qkv, tokens, tokens, visits)
  assert len(vmem(program)) == 3
