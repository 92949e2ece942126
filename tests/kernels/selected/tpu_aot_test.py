"""Selected attention compiled for TPUs that are not here: MLA's single tokens and NSA's pages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.selected import selected_attention
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from tests.kernels.topologies import CHIPS, chips, compiled, vmem

pytestmark = [pytest.mark.tpu_aot, pytest.mark.optimized]


@dataclasses.dataclass(frozen=True)
class Case:
  """Heads, widths and lists of a model's selected attention; without `value` the key holds it."""

  heads: int
  kv_heads: int
  key: int
  value: int | None
  width: int | None
  size: int
  listed: int
  lists: int

  def arguments(self, length, dtype=jnp.bfloat16):
    """Shapes of one row of this length."""
    array = lambda *shape: jax.ShapeDtypeStruct((1, length, *shape), dtype)
    v = None if self.value is None else array(self.kv_heads, self.value)
    ids = jax.ShapeDtypeStruct((1, length, self.lists, self.listed), np.int32)
    tokens = Tokens(*(jax.ShapeDtypeStruct((1, length), np.int32),) * 2)
    return array(self.heads, self.key), array(self.kv_heads, self.key), v, ids, tokens

  def forward(self, q, k, v, ids, tokens):
    """The kernel, by its name: the platform that compiles is a CPU."""
    return selected_attention(
      q, k, v, ids, self.size, tokens, tokens, 0.1, self.width, implementation='tpu'
    )

  def gradient(self, q, k, v, ids, tokens):
    """Both kernels: the forward gives the lse, the backward all gradients."""
    of = lambda q, k, v: self.forward(q, k, v, ids, tokens)[0].astype(jnp.float32).sum()
    return jax.grad(of, (0, 1) if v is None else (0, 1, 2))(q, k, v)


CASES = {
  'MLA, 2048 tokens': Case(128, 1, 576, None, 512, 1, 2048, 1),
  'GQA, 16 pages of 64': Case(128, 8, 128, 128, None, 64, 16, 8),
  'MHA, 16 pages of 64': Case(8, 8, 64, 64, None, 64, 16, 1),
}


def compiles(case, chip, length, dtype):
  """The gradient; prints what the kernels and the whole program take."""
  program = compiled(CASES[case].gradient, chips(chip)[0], *CASES[case].arguments(length, dtype))
  kernels = [f'{used} MiB' for _, used in vmem(program)]
  peak = program.memory_analysis().peak_memory_in_bytes
  print(
    f'{case} on {chip}, {length} queries in {dtype.__name__}: '
    f'{", ".join(kernels)} of vector memory, peak {peak / 2**30:.2f} GiB'
  )
  assert len(kernels) == 2


@pytest.mark.parametrize('chip', CHIPS)
@pytest.mark.parametrize('case', CASES)
def test_forward_and_backward_compile(case, chip):
  compiles(case, chip, 8192, jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize('chip', CHIPS)
@pytest.mark.parametrize('case', CASES)
def test_float32_compiles(case, chip):
  compiles(case, chip, 4096, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize('chip', CHIPS)
@pytest.mark.parametrize('case', CASES)
def test_long_gradients_compile(case, chip):
  compiles(case, chip, 32768, jnp.bfloat16)


@pytest.mark.parametrize(
  'case', ['MLA, 2048 tokens', pytest.param('GQA, 16 pages of 64', marks=pytest.mark.slow)]
)
def test_memory_is_linear_in_the_length(case):
  device = chips('v5p')[0]
  run = CASES[case].gradient
  used = []
  for length in (4096, 8192, 16384):
    analysis = compiled(run, device, *CASES[case].arguments(length)).memory_analysis()
    used.append(analysis.temp_size_in_bytes)
    print(f'{case}, gradient of {length} queries: {used[-1] / 2**20:.0f} MiB of temporaries')
  assert used[2] - used[1] <= 2.2 * (used[1] - used[0]) + 2**24


def test_the_kernels_compile_on_a_mesh_of_eight_chips():
  mesh = meshes.make(Mesh(fsdp=2, context=2, tensor=2), chips('v5p'))
  whole = jax.sharding.NamedSharding(mesh, jax.P())
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype, sharding=whole),
    CASES['GQA, 16 pages of 64'].arguments(2048),
  )
  with jax.set_mesh(mesh):
    program = jax.jit(CASES['GQA, 16 pages of 64'].gradient).lower(*arguments).compile()
  assert 'tpu_custom_call' in program.as_text()
