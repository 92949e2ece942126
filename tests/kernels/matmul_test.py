"""The einsum that touches weights, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.matmul import matmul

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
