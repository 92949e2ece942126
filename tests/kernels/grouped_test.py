"""Grouped matmul: three implementations against loops in numpy, dropless under any imbalance."""

import functools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.qarray import Adapted
from r1jax.kernels import grouped
from r1jax.kernels.grouped import reference

KINDS = grouped.IMPLEMENTATIONS
T, A, E, D, F = 20, 2, 4, 3, 5
R = T * A
RNG = np.random.default_rng(0)
X, W, G = RNG.normal(size=(T, D)), RNG.normal(size=(E, D, F)), RNG.normal(size=(R, F))
IDS = st.lists(st.integers(0, E), min_size=R, max_size=R)  # E: a row that is not computed


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


@functools.partial(jax.jit, static_argnames='kind')
def through(x_TD, w_EDF, ids_R, g_RF, kind):
  """((y_RF, dx_TD, dw_EDF), groups) for the loss Σ y ⊙ g."""
  groups = grouped.arrange(ids_R, E, kind)

  def forward(x_TD, w_EDF):
    y_SF = grouped.grouped_matmul(grouped.gather_rows(x_TD, groups), w_EDF, groups)
    return grouped.return_rows(y_SF, groups)

  y_RF, back = jax.vjp(forward, x_TD, w_EDF)
  return (y_RF, *back(g_RF)), groups


def oracle(ids_R):
  """The same by a loop over rows."""
  y, dx, dw = np.zeros((R, F)), np.zeros((T, D)), np.zeros((E, D, F))
  for r, e in enumerate(ids_R):
    if e < E:
      y[r] = X[r // A] @ W[e]
      dx[r // A] += W[e] @ G[r]
      dw[e] += np.outer(X[r // A], G[r])
  return y, dx, dw


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(ids_R=IDS)
@hypothesis.example(ids_R=[0] * R)
@hypothesis.example(ids_R=[E - 1] * R)
@hypothesis.example(ids_R=[E] * R)
@hypothesis.example(ids_R=[1] * (R - 1) + [E])
@hypothesis.example(ids_R=[E, 3] * (R // 2))
def test_values_and_gradients(kind, ids_R):
  got, _ = through(X, W, np.array(ids_R, np.int32), G, kind)
  for a, b in zip(got, oracle(ids_R)):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.settings(max_examples=20)
@hypothesis.given(ids_R=IDS)
@hypothesis.example(ids_R=[2] * R)
def test_no_row_is_dropped(kind, ids_R):
  ids_R = np.array(ids_R, np.int32)
  groups = jax.tree.map(np.asarray, through(X, W, ids_R, G, kind)[1])
  kept = np.flatnonzero(ids_R < E)
  np.testing.assert_array_equal(groups.sizes_E, np.bincount(ids_R, minlength=E + 1)[:E])
  np.testing.assert_array_equal(groups.row_S[groups.slot_R[kept]], kept)
  np.testing.assert_array_equal(np.sort(groups.row_S[groups.row_S < R]), kept)
  assert (groups.slot_R[ids_R == E] >= groups.row_S.size).all()
  if groups.block_n is not None:
    block = groups.row_S.size // groups.block_n.size
    np.testing.assert_array_equal(groups.block_n[groups.slot_R[kept] // block], ids_R[kept])


def test_few_rows_are_blocks_of_their_own_in_their_order():
  few = R // 10
  ids_R = jnp.array([2, E, 0, 2], jnp.int32)
  groups = grouped.arrange(ids_R, E, 'blocks')
  assert groups.block_n.tolist() == [2, E - 1, 0, 2] and groups.slot_R.tolist() == [0, few, 2, 3]
  assert groups.row_S.tolist() == [0, few, 2, 3] and groups.sizes_E.tolist() == [1, 0, 2, 0]
  y_SF = grouped.grouped_matmul(grouped.gather_rows(jnp.asarray(X[:2]), groups), W, groups)
  got = grouped.return_rows(y_SF, groups)
  want = oracle([2, E, 0, 2])[0][:few]
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize('kind', KINDS)
def test_gathers_have_the_gradients_of_plain_indexing(kind):
  ids_R = RNG.integers(0, E + 1, R).astype(np.int32)
  _, groups = through(X, W, ids_R, G, kind)
  S = groups.row_S.size
  g_SD = RNG.normal(size=(S, D))
  real_S1 = (groups.row_S < R)[:, None]

  def plain_gather(x_TD):
    return jnp.where(real_S1, x_TD[jnp.minimum(groups.row_S, R - 1) // A], 0)

  def plain_return(y_SF):
    return jnp.where((groups.slot_R < S)[:, None], y_SF[jnp.minimum(groups.slot_R, S - 1)], 0)

  for custom, plain, x, g in (
    (grouped.gather_rows, plain_gather, X, g_SD),
    (grouped.return_rows, plain_return, RNG.normal(size=(S, F)), G),
  ):
    y, back = jax.vjp(lambda x, custom=custom: custom(x, groups), x)
    y_plain, back_plain = jax.vjp(plain, x)
    np.testing.assert_array_equal(y, y_plain)
    np.testing.assert_allclose(back(g)[0], back_plain(g)[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize('kind', KINDS)
def test_a_low_rank_pair_counts_as_its_product(kind):
  down_EDR, up_ERF = RNG.normal(size=(E, D, 2)), RNG.normal(size=(E, 2, F))
  ids_R = np.tile([0, 2, E, 3, 2], R // 5)
  groups = grouped.arrange(ids_R, E, kind)

  @jax.jit
  def through(x_TD, down_EDR, up_ERF):
    w = Adapted(W, down_EDR, up_ERF, 0.5)
    y_SF = grouped.grouped_matmul(grouped.gather_rows(x_TD, groups), w, groups)
    return grouped.return_rows(y_SF, groups)

  y_RF, back = jax.vjp(through, X, down_EDR, up_ERF)
  y, dx, dw = np.zeros((R, F)), np.zeros((T, D)), np.zeros((E, D, F))
  merged = W + 0.5 * down_EDR @ up_ERF
  for r, e in enumerate(ids_R):
    if e < E:
      y[r] = X[r // A] @ merged[e]
      dx[r // A] += merged[e] @ G[r]
      dw[e] += np.outer(X[r // A], G[r])
  d_down = 0.5 * np.einsum('EDF,ERF->EDR', dw, up_ERF)
  d_up = 0.5 * np.einsum('EDR,EDF->ERF', down_EDR, dw)
  for got, want in zip((y_RF, *back(G)), (y, dx, d_down, d_up)):
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kind', KINDS)
def test_adapters_alone_need_no_gradient_of_the_bases_size(kind):
  down_EDR, up_ERF = RNG.normal(size=(E, D, 2)), RNG.normal(size=(E, 2, F))
  groups = grouped.arrange(np.arange(R) % E, E, kind)
  x_SD = grouped.gather_rows(X, groups)

  def loss(base, down, up):
    return jnp.sum(grouped.grouped_matmul(x_SD, Adapted(base, down, up, 0.5), groups) ** 2)

  def products(argnums):
    text = str(jax.make_jaxpr(jax.grad(loss, argnums))(W, down_EDR, up_ERF))
    found = re.findall(r'\[([\d,]+)\] = (?:ragged_)?dot', text)
    return {tuple(sorted(int(n) for n in shape.split(',')[-2:])) for shape in found}

  assert (D, F) not in products((1, 2))
  assert (D, F) in products((0, 1, 2))


def test_the_reference_computes_every_expert():
  expert_S = np.array([1, 0, 3, 3])
  want = np.stack([X[s] @ W[e] for s, e in enumerate(expert_S)])
  np.testing.assert_allclose(reference.grouped_matmul(X[:4], W, expert_S), want, rtol=1e-12)


def test_weights_are_computed_with_in_the_dtype_of_the_rows():
  _, groups = through(X, W, np.zeros(R, np.int32), G, 'blocks')
  x_TD = jax.ShapeDtypeStruct((T, D), jnp.bfloat16)
  f = lambda x_TD: grouped.grouped_matmul(grouped.gather_rows(x_TD, groups), W, groups)
  assert jax.eval_shape(f, x_TD).dtype == jnp.bfloat16


@hypothesis.given(rows=st.integers(1, 10**6), experts=st.integers(1, 512))
def test_block_rows_are_a_power_of_two_in_bounds_and_pad_little(rows, experts):
  block = grouped.block_rows(rows, experts)
  assert 16 <= block <= 256
  assert block & (block - 1) == 0
  assert grouped.block_rows(2 * rows, experts) >= block
  if rows >= 64 * experts:  # on average half a block is padding
    assert experts * block / 2 < rows / 5


def test_an_unknown_implementation_is_refused():
  with pytest.raises(NotImplementedError, match='known: ragged, blocks, reference'):
    grouped.arrange(np.zeros(2, np.int32), E, 'mosaic')
