"""Leaves made of several arrays, against numpy in float64."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core import qarray, tree
from r1jax.core.qarray import Adapted

RNG = np.random.default_rng(0)
SOME = st.lists(st.integers(1, 3), min_size=1, max_size=2)
ANY = st.lists(st.integers(1, 3), max_size=2)


def adapted(lead, inputs, outputs, rank=2, scale=0.5):
  """(leaf, the array that it stands for), with these sizes of its axes."""
  m, k, n = int(np.prod(lead)), int(np.prod(inputs)), int(np.prod(outputs))
  base, down, up = (RNG.normal(size=s) for s in ((m, k, n), (m, k, rank), (m, rank, n)))
  whole = base + scale * down @ up
  leaf = Adapted(
    jnp.asarray(base.reshape(*lead, *inputs, *outputs)),
    jnp.asarray(down.reshape(*lead, *inputs, rank)),
    jnp.asarray(up.reshape(*lead, rank, *outputs)),
    scale,
  )
  return leaf, whole.reshape(leaf.base.shape)


@hypothesis.given(lead=ANY, inputs=SOME, outputs=SOME)
@hypothesis.settings(max_examples=8)
def test_dense_adds_the_product_wherever_the_axes_lie(lead, inputs, outputs):
  with jax.enable_x64(True):
    leaf, whole = adapted(lead, inputs, outputs)
    assert (leaf.lead, leaf.inputs) == (len(lead), len(inputs))
    assert (leaf.shape, leaf.ndim, leaf.dtype) == (whole.shape, whole.ndim, whole.dtype)
    qarray.check('w', leaf, whole.shape)
    np.testing.assert_allclose(qarray.dense(leaf), whole, rtol=1e-12, atol=1e-12)
    if lead:  # what a scan over layers gives
      row = jax.tree.map(lambda x: x[0], leaf)
      np.testing.assert_allclose(qarray.dense(row), whole[0], rtol=1e-12, atol=1e-12)


def test_a_plain_array_is_itself():
  w = jnp.ones((3, 2))
  assert qarray.dense(w) is w
  assert qarray.by_axes(w, ('a', 'b'), list) == ['a', 'b']
  np.testing.assert_array_equal(qarray.rows(w, jnp.array([2, 0])), w[:2])
  qarray.check('w', w, (3, 2))


def test_a_base_of_few_bits_is_merged_in_fp32():
  leaf = Adapted(jnp.ones((2, 2), jnp.bfloat16), jnp.full((2, 1), 2.0**-12), jnp.ones((1, 2)), 1.0)
  assert leaf.dtype == jnp.bfloat16
  merged = qarray.dense(leaf)
  assert merged.dtype == jnp.float32
  np.testing.assert_array_equal(merged, np.full((2, 2), 1 + 2.0**-12))  # in bfloat16: 1


def test_rows_of_a_table():
  with jax.enable_x64(True):
    leaf, whole = adapted((), (7,), (4,))
    ids = np.array([[3, 3, 0], [6, 1, 2]])
    np.testing.assert_allclose(qarray.rows(leaf, ids), whole[ids], rtol=1e-12, atol=1e-12)


def test_names_of_axes_follow_the_base():
  leaf, _ = adapted((5, 2), (3, 4), (6,))
  named = qarray.by_axes(leaf, ('layers', 'expert', 'heads', 'head', 'embed'), tuple)
  assert named.down == ('layers', 'expert', 'heads', 'head', None)
  assert named.up == ('layers', 'expert', None, 'embed')
  assert named.base == ('layers', 'expert', 'heads', 'head', 'embed')
  down, up = qarray.factors((5, 2, 3, 4, 6), 2, 2, 9)
  assert (down, up) == ((5, 2, 3, 4, 9), (5, 2, 9, 6))


def test_in_a_tree_its_arrays_have_names_and_its_scale_is_no_leaf():
  leaf, _ = adapted((), (3,), (2,))
  params = {'mlp': {'up': leaf, 'scale': jnp.ones(3)}}
  assert tree.paths(params) == ['mlp/scale', 'mlp/up/base', 'mlp/up/down', 'mlp/up/up']
  mine, rest = tree.split(params, lambda path, _: path.endswith(('up/down', 'up/up')))
  assert mine['mlp']['up'].base is None and rest['mlp']['up'].up is None
  assert mine['mlp']['up'].scale == rest['mlp']['up'].scale == 0.5
  joined = tree.merge(mine, rest)
  assert jax.tree.structure(joined) == jax.tree.structure(params)
  assert joined['mlp']['up'].base is leaf.base


@pytest.mark.parametrize(
  'down, up',
  [((3, 2), (3, 4)), ((3, 2), (2, 5)), ((4, 2), (2, 4)), ((2,), (2, 4)), ((3, 1, 2), (2, 4))],
)
def test_a_pair_whose_product_has_another_shape_is_refused(down, up):
  leaf = Adapted(jnp.zeros((3, 4)), jnp.zeros(down), jnp.zeros(up), 1.0)
  with pytest.raises(ValueError, match=r'weight a/w of shape \(3, 4\) has adapters of shapes'):
    qarray.check('a/w', leaf, (3, 4))


def test_another_shape_than_the_configs_is_refused():
  leaf, _ = adapted((), (3,), (4,))
  with pytest.raises(ValueError, match=r'weight a/w has shape \(3, 4\), .* asks for \(3, 5\)'):
    qarray.check('a/w', leaf, (3, 5))
