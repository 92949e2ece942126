"""Decode over pools of GiB compiles for TPUs, and makes nothing of the pool's size."""

import re

import jax
import jax.numpy as jnp
import pytest

from r1jax.kernels.paged import paged_attention
from r1jax.kernels.paged.memory import Int8
from r1jax.kernels.paged.visible import visible_full
from r1jax.sharding import mesh as meshes
from r1jax.sharding import rules
from tests.kernels import topologies

pytestmark = [pytest.mark.tpu_aot, pytest.mark.optimized]
B, LENGTH = 64, 32768


def pool(shape, dtype):
  if dtype == 'int8':
    return Int8(jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:-1], jnp.bfloat16))
  return jax.ShapeDtypeStruct(shape, dtype)


def grouped(dtype, size, heads=32, kv_heads=8, width=128):
  """One layer's attention of several, 2 GiB of keys and as much of values in bfloat16."""
  shape = (4, 2**27 // (size * kv_heads * width) * 2, size, kv_heads, width)
  return (heads, width), pool(shape, dtype), pool(shape, dtype), None


def latent(dtype, size, heads):
  lead = (4, 2**20 // size, size)
  widths = (512, 128) if dtype == 'int8' else (640,)  # 576 = 512 + 64 of them in use
  return (heads, 576), tuple(pool((*lead, w), dtype) for w in widths), None, 512


CASES = {
  'grouped bf16 64': grouped('bfloat16', 64),
  'grouped bf16 16': grouped('bfloat16', 16),
  'grouped bf16 128': grouped('bfloat16', 128),
  'grouped fp32 64': grouped('float32', 64),
  'grouped int8 64': grouped('int8', 64),
  'grouped int8 16': grouped('int8', 16),
  'grouped bf16 32, 64 heads': grouped('bfloat16', 32, 64),
  'grouped bf16 64, 2 heads': grouped('bfloat16', 64, 8, 2),
  'grouped bf16 64, 1 head': grouped('bfloat16', 64, 4, 1),
  'grouped int8 64, 4 heads': grouped('int8', 64, 28, 4),
  'grouped int8 64, 1 head': grouped('int8', 64, 4, 1),
  'grouped bf16 64, 4 heads': grouped('bfloat16', 64, 28, 4),
  'latent bf16 64': latent('bfloat16', 64, 128),
  'latent bf16 64, 16 heads': latent('bfloat16', 64, 16),
  'latent bf16 128': latent('bfloat16', 128, 128),
  'latent int8 64': latent('int8', 64, 128),
}


COMMON = ('grouped bf16 64', 'grouped int8 64', 'latent bf16 64', 'latent int8 64')


@pytest.mark.parametrize('chip', topologies.CHIPS)
@pytest.mark.parametrize(
  'name', [x if x in COMMON else pytest.param(x, marks=pytest.mark.slow) for x in CASES]
)
def test_a_layer_of_a_pool(chip, name):
  (N, H), keys, values, width = CASES[name]
  short = jax.tree.leaves(keys)[0].dtype != jnp.float32
  q = jax.ShapeDtypeStruct((B, N, H), jnp.bfloat16 if short else jnp.float32)
  size = jax.tree.leaves(keys)[0].shape[2]

  def f(q, keys, values, layer, table, newest):
    visible = visible_full(table, newest, size)
    return paged_attention(q, keys, values, layer, visible, 0.1, width, implementation='tpu')

  args = q, keys, values, integers(), integers(B, LENGTH // size), integers(B)
  made = topologies.compiled(f, topologies.chips(chip)[0], *args)
  check(f'{chip} {name}', made, keys, values)


def put(x, layer, page_B, place_B, new):
  """One entry a row. To scatter int8 [S, W] XLA copies the pool into tiles of another kind."""
  if x.dtype != jnp.int8 or x.ndim > 4:
    return x.at[layer, page_B, place_B].set(new.astype(x.dtype), mode='drop')
  entry = jnp.broadcast_to(new.astype(x.dtype), (1, 1, 1, x.shape[-1]))
  one = lambda b, x: jax.lax.dynamic_update_slice(x, entry, (layer, page_B[b], place_B[b], 0))
  return jax.lax.fori_loop(0, B, one, x)


@pytest.mark.parametrize('name', COMMON)
def test_layers_that_write_and_read_a_pool_keep_it_in_place(name):
  (N, H), keys, values, width = CASES[name]
  layers, _, size = jax.tree.leaves(keys)[0].shape[:3]
  q = jax.ShapeDtypeStruct((B, N, H), jnp.bfloat16)

  def f(stacks, q, table, newest):
    visible = visible_full(table, newest, size)
    page = jnp.take_along_axis(table, newest[:, None] // size, 1)[:, 0]

    def one(carry, layer):
      stacks, q = carry
      stacks = jax.tree.map(lambda x: put(x, layer, page, newest % size, q.sum()), stacks)
      o, _ = paged_attention(q, *stacks, layer, visible, 0.1, width, implementation='tpu')
      return (stacks, q.at[..., : o.shape[-1]].add(o)), None

    return jax.lax.scan(one, (stacks, q), jnp.arange(layers))[0]

  args = (keys, values), q, integers(B, LENGTH // size), integers(B)
  check(name, topologies.compiled(f, topologies.chips('v4')[0], *args, donate=(0,)), keys, values)


def test_each_device_has_its_rows_and_heads():
  (N, H), keys, values, width = CASES['grouped bf16 64']
  devices = topologies.chips('v5p')[:4]
  mesh = meshes.make(meshes.Mesh(data=2, fsdp=1, tensor=2), devices)
  size = keys.shape[2]

  def f(q, keys, values, layer, table, newest):
    visible = visible_full(table, newest, size)
    return paged_attention(q, keys, values, layer, visible, 0.1, width, implementation='tpu')

  def on(x, *names):
    place = jax.sharding.NamedSharding(mesh, rules.fitting(x.shape, names, mesh))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  pools = (on(x, None, 'batch', None, 'kv_heads', None) for x in (keys, values))
  q = on(jax.ShapeDtypeStruct((B, N, H), jnp.bfloat16), 'batch', 'heads', None)
  rows = (on(integers(*shape), 'batch') for shape in ((B, LENGTH // size), (B,)))
  with jax.set_mesh(mesh):
    made = jax.jit(f).lower(q, *pools, integers(), *rows).compile()
  check('four v5p', made, keys, values)
  assert not {'all-gather', 'all-reduce', 'all-to-all'} & set(
    re.findall(r'all-\w+', made.as_text())
  )


def integers(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def check(name, made, keys, values):
  """Temporaries are far below the pool; of int8 they hold the listed scales, a few times."""
  assert 'tpu_custom_call' in made.as_text()
  arrays = jax.tree.leaves((keys, values))
  stack = max(x.size * x.dtype.itemsize for x in arrays)
  coded = sum(
    isinstance(s, Int8) for s in (*(keys if isinstance(keys, tuple) else ()), keys, values)
  )
  listed = coded * 2 * B * LENGTH * (arrays[0].shape[3] if arrays[0].ndim == 5 else 1)
  temporary = made.memory_analysis().temp_size_in_bytes
  sizes = [f'{x / 2**20:.0f} MiB' for x in (temporary, stack, listed)]
  print('{}: {} beside stacks of {}, scales of {}'.format(name, *sizes))
  assert temporary < stack / 32 + 5 * listed
