"""Dense attention from libraries: who serves what, and splash against loops in float64."""

import functools
import re
import types

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as fused  # looks for cuDNN when it is traced

from r1jax.kernels import platform
from r1jax.kernels.attention import dense
from r1jax.kernels.attention.dense import Case, choose, refusal
from r1jax.kernels.attention.lists import Band
from r1jax.sharding import mesh as meshes
from tests.kernels.attention.blocks_test import SCALE, draw, mask_of, oracle, rows

WIDE = Case(131072, 128, 128, 'bfloat16')
MLA = Case(8192, 192, 128, 'bfloat16')


@pytest.mark.parametrize(
  'kind, case, library',
  [
    ('TPU v4', WIDE, 'splash'),
    ('TPU v5p', MLA, 'splash'),
    ('TPU v6 lite', Case(8192, 64, 64, 'float32', 30.0), 'splash'),
    ('TPU v3', WIDE, None),
    ('TPU v4', Case(2**20, 128, 128, 'bfloat16'), None),
    ('TPU v4', Case(8192, 128, 128, 'bfloat16', split=True), None),
    ('cpu', WIDE, None),
    ('NVIDIA H200', WIDE, 'cudnn'),
    ('NVIDIA H100 80GB HBM3', MLA, 'cudnn'),
    ('NVIDIA GH200 480GB', MLA, 'cudnn'),
    ('NVIDIA B200', MLA, 'cudnn'),
    ('NVIDIA A100-SXM4-40GB', WIDE, 'cudnn'),
    ('NVIDIA L4', WIDE, 'cudnn'),
    ('NVIDIA A100-SXM4-40GB', MLA, None),
    ('NVIDIA L4', MLA, None),
    ('Tesla T4', WIDE, None),
    ('Tesla V100-SXM2-16GB', WIDE, None),
    ('NVIDIA H200', Case(8192, 128, 128, 'float32'), None),
    ('NVIDIA H200', Case(8192, 576, 512, 'bfloat16'), None),
    ('NVIDIA H200', Case(8192, 128, 128, 'bfloat16', 30.0), None),
    ('NVIDIA H200', Case(8192, 128, 128, 'bfloat16', split=True), None),
  ],
)
def test_which_library_serves_a_device(kind, case, library, monkeypatch):
  monkeypatch.setattr(platform, 'kernels', lambda: 'xla')
  assert choose(None, kind, case) == 'xla'  # none has run on its hardware
  monkeypatch.setattr(platform, 'PROVEN', {('dense', x) for x in dense.LIBRARIES})
  assert choose(None, kind, case) == (library or 'xla')
  assert [x for x in dense.LIBRARIES if not refusal(x, case, kind)] == [library][: bool(library)]


@pytest.mark.parametrize(
  'name, case, kind, why',
  [
    ('splash', WIDE, 'TPU v3', 'runs on TPU v4 and later, not on TPU v3'),
    ('splash', Case(8, 8, 8, 'float16'), None, 'takes bfloat16 and float32, not float16'),
    ('splash', Case(2**20, 128, 128, 'bfloat16'), None, 'keeps 4194304 bytes of block tables'),
    ('splash', Case(8, 8, 8, 'float32', split=True), None, 'split over the mesh axis context'),
    ('cudnn', WIDE, 'Tesla T4', 'runs on NVIDIA GPUs from Ampere on, not on Tesla T4'),
    ('cudnn', Case(8, 8, 8, 'float32'), None, 'takes bfloat16 and float16, not float32'),
    ('cudnn', MLA, 'NVIDIA L4', 'takes heads up to 128 wide, not 192'),
    ('cudnn', Case(8, 8, 8, 'float16', 1.0), None, 'has no soft cap'),
  ],
)
def test_a_refusal_says_why(name, case, kind, why):
  assert why in refusal(name, case, kind)
  if kind is None:
    with pytest.raises(NotImplementedError, match=f'{name} .*{why}.*; use xla'):
      choose(name, 'cpu', case)


def test_a_name_that_nobody_knows_is_refused():
  with pytest.raises(NotImplementedError, match=r"'flash'.*known: splash, cudnn, xla"):
    choose('flash', 'cpu', WIDE)
  assert choose('xla', 'TPU v4', WIDE) == 'xla'


@functools.partial(jax.jit, static_argnums=(2, 3))
def gradients(arrays, tokens, cap, implementation):
  """(o, dq, dk, dv)."""
  q, k, v, do, _ = arrays
  interpret = jax.default_backend() != 'tpu'
  run = lambda q, k, v: dense.dense_attention(
    q, k, v, tokens, SCALE, cap, implementation, interpret
  )
  o, back = jax.vjp(run, q, k, v)
  return o, *back(do)


def expected(arrays, tokens, cap):
  """The same by loops."""
  *qkvdo, _ = arrays
  none = np.zeros(arrays[-1].shape)
  o, _, *rest = oracle(*qkvdo, none, mask_of(tokens, tokens, Band()), cap)
  return o, *rest


def agree(got, want, atol=1e-5):
  for name, a, b in zip(('o', 'dq', 'dk', 'dv'), got, want):
    np.testing.assert_allclose(
      np.float64(a), b, rtol=0, atol=atol * np.abs(b).max(initial=1), err_msg=name
    )


packed = st.lists(st.integers(1, 20), min_size=1, max_size=4).filter(lambda row: sum(row) <= 40)


@pytest.mark.parametrize(
  'heads, widths, cap', [((4, 2), (6, 3), None), ((3, 1), (8, 16), 0.7)], ids=['gqa', 'mqa']
)
@hypothesis.given(seed=st.integers(0, 99), row=packed)
@hypothesis.settings(max_examples=8)
def test_splash_agrees_with_float64(heads, widths, cap, seed, row):
  arrays, tokens = draw(seed, 2, 40, 40, *heads, *widths), rows([row, [40]], 40)
  atol = 2e-2 if jax.default_backend() == 'tpu' else 1e-5  # there fp32 is multiplied in bfloat16
  agree(gradients(arrays, tokens, cap, 'splash'), expected(arrays, tokens, cap), atol)


def test_splash_over_several_blocks(monkeypatch):
  monkeypatch.setattr(dense, 'splash_size', lambda length: 128)
  arrays, tokens = draw(1, 1, 300, 300, 2, 1, 4, 3), rows([[140, 130]], 300)
  agree(gradients(arrays, tokens, None, 'splash'), expected(arrays, tokens, None))


def test_by_blocks_where_no_library_serves():
  arrays, tokens = draw(2), rows([[24], [10, 9]], 24)
  agree(gradients(arrays, tokens, 0.7, None), expected(arrays, tokens, 0.7))


def test_splash_on_a_mesh_gives_what_one_device_gives():
  arrays, tokens = draw(3, 4, 24, 24, 4, 2), rows([[24], [10, 9], [3, 3], [20]], 24)
  want = gradients(arrays, tokens, None, 'splash')
  with jax.set_mesh(meshes.make(meshes.Mesh(data=2, fsdp=2, tensor=2))):
    agree(gradients(arrays, tokens, None, 'splash'), [np.float64(x) for x in want])
  with (
    jax.set_mesh(meshes.make(meshes.Mesh(fsdp=4, context=2))),
    pytest.raises(NotImplementedError, match='split over the mesh axis context'),
  ):
    gradients(arrays, tokens, None, 'splash')


@pytest.mark.parametrize(
  'row, yes',
  [([1, 1, 1], 1), ([1, 1, 0], 1), ([0, 0, 0], 1), ([1, 2, 2], 0), ([0, 1, 1], 0), ([2, 0, 2], 0)],
)
def test_rows_that_a_causal_mask_gets_right(row, yes):
  assert bool(dense.alone(jnp.asarray([row, [3, 3, 0]]))) == bool(yes)


@pytest.fixture
def cudnn_here(monkeypatch):
  """What tracing asks of cuDNN, answered as on a Hopper GPU."""
  monkeypatch.setattr(
    fused, 'cuda_versions', types.SimpleNamespace(cudnn_get_version=lambda: 91000)
  )
  monkeypatch.setattr(fused, 'check_compute_capability', lambda capability: True)
  monkeypatch.setattr(fused, 'is_cuda_compute_capability_equal', lambda capability: False)


@pytest.mark.parametrize('heads, widths', [((8, 2), (128, 128)), ((4, 4), (192, 128))])
def test_cudnn_lowers_for_cuda(heads, widths, cudnn_here):
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw(0, 1, 256, 256, *heads, *widths)]
  tokens = rows([[200]], 256)
  run = gradients.trace(arrays, tokens, None, 'cudnn')
  text = run.lower(lowering_platforms=('cuda',)).as_text()
  calls = set(re.findall(r'custom_call @(\S+?)\(', text))
  assert {'__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward'} <= calls
  assert 'stablehlo.case' in text  # packed rows go another way


def test_only_rows_of_one_segment_go_to_cudnn(monkeypatch):
  """With XLA's attention in cuDNN's place."""
  library, seen = jax.nn.dot_product_attention, []

  def instead(q, k, v, *, scale, is_causal, implementation):
    assert implementation == 'cudnn' and is_causal and q.shape[-1] % 8 == 0
    jax.debug.callback(lambda: seen.append(True))
    return library(q, k, v, scale=scale, is_causal=True, implementation='xla')

  monkeypatch.setattr(dense.jax.nn, 'dot_product_attention', instead)
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw(4, H=10, V=7)]
  for second, by_library in (([24], True), ([11, 7], False)):
    seen.clear()
    tokens = rows([[20], second], 24)
    got = gradients(arrays, tokens, None, 'cudnn')
    jax.effects_barrier()
    assert bool(seen) == by_library
    want = expected([np.asarray(x, np.float32) for x in arrays], tokens, None)
    agree([np.asarray(x, np.float32) for x in got], want, 2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize('heads, widths', [((4, 2), (128, 128)), ((2, 2), (192, 128))])
@pytest.mark.parametrize('lengths', [[200], [100, 90]])
def test_cudnn_agrees_with_float64_on_a_gpu(lengths, heads, widths):
  arrays = [jnp.asarray(x / 4, jnp.bfloat16) for x in draw(5, 1, 256, 256, *heads, *widths)]
  got = gradients(arrays, rows([lengths], 256), None, 'cudnn')
  want = expected([np.asarray(x, np.float32) for x in arrays], rows([lengths], 256), None)
  agree([np.asarray(x, np.float32) for x in got], want, 2e-2)
