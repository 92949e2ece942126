"""The einsum that touches weights, against numpy in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.qarray import Adapted
from r1jax.kernels.matmul import chain, matmul

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(2, 3, 8)), RNG.normal(size=(8, 2, 4))
WANT = np.einsum('BLD,DNH->BLNH', X, W)


@pytest.mark.parametrize('implementation', ['flat', 'einsum'])
@pytest.mark.parametrize(
  'subscripts, shapes',
  [
    ('BLD,DF->BLF', ((2, 3, 8), (8, 5))),
    ('BLD,DNH->BLNH', ((2, 3, 8), (8, 2, 4))),
    ('BLNH,NHD->BLD', ((2, 3, 2, 4), (2, 4, 8))),
    ('BLNH,RNH->BLNR', ((2, 3, 2, 4), (5, 2, 4))),
    ('BMR,RNH->BMNH', ((2, 3, 5), (5, 2, 4))),
  ],
)
def test_equals_numpy(implementation, subscripts, shapes):
  x, w = (RNG.normal(size=s).astype('f4') for s in shapes)
  want = np.einsum(subscripts, x.astype('f8'), w.astype('f8'))
  got = matmul(subscripts, x, w, implementation)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_float64_stays_float64():
  with jax.enable_x64(True):
    y = matmul('BLD,DNH->BLNH', jnp.asarray(X), jnp.asarray(W, jnp.float32))
    want = np.einsum('BLD,DNH->BLNH', X, W.astype('f4').astype('f8'))
    np.testing.assert_allclose(y, want, rtol=1e-13, atol=1e-14)


def test_bfloat16_activations_are_summed_in_fp32():
  x_BLD = jnp.ones((1, 1, 4096), jnp.bfloat16)
  w_DF = jnp.full((4096, 1), 1 + 2**-7)
  y_BLF = matmul('BLD,DF->BLF', x_BLD, w_DF)
  assert y_BLF.dtype == jnp.bfloat16
  assert float(y_BLF[0, 0, 0]) == 4096 + 32  # in bfloat16 sums stop growing at 256


def test_gradients_have_the_dtype_of_their_argument():
  x_BLD = jnp.asarray(X, jnp.bfloat16)
  f = lambda x, w: matmul('BLD,DNH->BLNH', x, w).astype(jnp.float32).sum()
  dx, dw = jax.grad(f, (0, 1))(x_BLD, jnp.asarray(W, jnp.float32))
  assert (dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(dw[:, 0, 0], X.sum((0, 1)), rtol=0.05, atol=0.05)


ADAPTED = [  # subscripts, shape of x, of base, of down, of up
  ('BLD,DF->BLF', (2, 3, 8), (8, 5), (8, 2), (2, 5)),
  ('BLD,DNH->BLNH', (2, 3, 8), (8, 2, 4), (8, 2), (2, 2, 4)),
  ('BLNH,NHD->BLD', (2, 3, 2, 4), (2, 4, 8), (2, 4, 3), (3, 8)),
  ('BLNH,RNH->BLNR', (2, 3, 2, 4), (5, 2, 4), (5, 3), (3, 2, 4)),
  ('BLNR,RNV->BLNV', (2, 3, 2, 5), (5, 2, 4), (5, 3), (3, 2, 4)),
]


@pytest.mark.parametrize('implementation', ['flat', 'einsum'])
@pytest.mark.parametrize('subscripts, x, base, down, up', ADAPTED)
def test_a_low_rank_pair_counts_as_its_product(implementation, subscripts, x, base, down, up):
  with jax.enable_x64(True):
    x, base, down, up = (jnp.asarray(RNG.normal(size=s)) for s in (x, base, down, up))
    inputs = down.ndim - 1
    merged = base + 0.5 * np.tensordot(down, up, 1)
    y, back = jax.vjp(
      lambda x, down, up: matmul(subscripts, x, Adapted(base, down, up, 0.5), implementation),
      x,
      down,
      up,
    )
    want, dense_back = jax.vjp(lambda x, w: jnp.einsum(subscripts, x, w), x, merged)
    g = RNG.normal(size=y.shape)
    dx, d_w = dense_back(g)
    d_down = 0.5 * np.tensordot(d_w, up, (range(inputs, d_w.ndim), range(1, up.ndim)))
    d_up = 0.5 * np.tensordot(down, d_w, (range(inputs), range(inputs)))
    for got, expected in zip((y, *back(g)), (want, dx, d_down, d_up)):
      np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_the_rank_takes_the_place_of_what_is_summed_over():
  assert chain('BLD,DNH->BLNH', 1) == ('BLD,Dr->BLr', 'BLr,rNH->BLNH', True)
  assert chain('BLNH,NHD->BLD', 2) == ('BLNH,NHr->BLr', 'BLr,rD->BLD', True)
  assert chain('BLNH,RNH->BLNR', 1) == ('BLNH,rNH->BLNr', 'BLNr,Rr->BLNR', False)
  assert chain('BLNR,RNV->BLNV', 1) == ('BLNR,Rr->BLNr', 'BLNr,rNV->BLNV', True)


@pytest.mark.parametrize('implementation', ['flat', 'einsum'])
def test_adapters_alone_need_no_gradient_of_the_bases_size(implementation):
  shapes = ((2, 3, 7), (7, 11), (7, 2), (2, 11))
  x, base, down, up = (RNG.normal(size=s).astype('f4') for s in shapes)

  def loss(base, down, up):
    return jnp.sum(matmul('BLD,DF->BLF', x, Adapted(base, down, up, 0.5), implementation) ** 2)

  def products(argnums):
    text = str(jax.make_jaxpr(jax.grad(loss, argnums))(base, down, up))
    return {tuple(sorted(map(int, s.split(',')))) for s in re.findall(r'\[([\d,]+)\] = dot', text)}

  assert (7, 11) not in products((1, 2))
  assert (7, 11) in products((0, 1, 2))


def test_bfloat16_activations_meet_fp32_adapters_in_bfloat16():
  x_BLD = jnp.ones((1, 1, 256), jnp.bfloat16)
  w = Adapted(jnp.full((256, 1), 1 + 2**-7), jnp.full((256, 2), 2**-8), jnp.ones((2, 1)), 2.0)
  y_BLF = matmul('BLD,DF->BLF', x_BLD, w)
  assert y_BLF.dtype == jnp.bfloat16
  assert float(y_BLF[0, 0, 0]) == 262  # 256 + 2 + 2·2: the base alone gives 258
