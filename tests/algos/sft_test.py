"""Cross-entropy and the MTP loss against loops over tokens; contract 15."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.algos.sft import cross_entropy, mtp_loss, mtp_targets

# Prompt and completion of 3 + 4 tokens, and of 2 + 2 with padding behind. The ids tell what a token
# belongs to: prompt 10…, completion 20…, padding 0.
TOKENS = np.array([[10, 11, 12, 20, 21, 22, 23], [13, 14, 24, 25, 0, 0, 0]])
TARGET = np.pad(TOKENS[:, 1:], ((0, 0), (0, 1)))
WEIGHT = (TARGET >= 20).astype(np.float32)


def test_cross_entropy_is_a_weighted_sum():
  logp_BL = jnp.log(jnp.array([[0.5, 0.25, 0.125], [0.5, 0.5, 0.5]]))
  got = cross_entropy(logp_BL, jnp.array([[0, 1, 2], [0.5, 0, 0]]))
  np.testing.assert_allclose(got, ((2 + 2 * 3 + 0.5) * np.log(2), 3.5), rtol=1e-6)


@pytest.mark.parametrize('junk', [np.nan, -np.inf])
def test_cross_entropy_ignores_what_has_no_weight(junk):
  logp_BL, weight_BL = jnp.array([[-1.0, junk]]), jnp.array([[1.0, 0.0]])
  value, grad = jax.value_and_grad(lambda x: cross_entropy(x, weight_BL)[0])(logp_BL)
  assert value == 1
  np.testing.assert_array_equal(grad, [[-1, 0]])


def test_contract_15_targets_and_weights_of_depth_1_and_2():
  target_BL, weight_BL = mtp_targets(jnp.asarray(TARGET), jnp.asarray(WEIGHT), 1)
  np.testing.assert_array_equal(target_BL, [[12, 20, 21, 22, 23, 0, 0], [24, 25, 0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(weight_BL, [[0, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]])
  target_BL, weight_BL = mtp_targets(jnp.asarray(TARGET), jnp.asarray(WEIGHT), 2)
  np.testing.assert_array_equal(target_BL, [[20, 21, 22, 23, 0, 0, 0], [25, 0, 0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(weight_BL, [[1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])


@given(data=st.data(), L=st.sampled_from([1, 6]), depth=st.sampled_from([1, 2, 7]))
def test_contract_15_a_token_counts_iff_it_counts_in_the_main_loss(data, L, depth):
  """Depth d at i is token i+1+d, with the weight of that token in the main loss."""
  bits = data.draw(st.lists(st.integers(0, 1), min_size=L + 1, max_size=L + 1))
  token, counts = np.arange(100, 101 + L), np.array(bits, np.float32)
  got = mtp_targets(jnp.asarray(token[None, 1:]), jnp.asarray(counts[None, 1:]), depth)
  for i in range(L):
    j = i + 1 + depth
    want = (token[j], counts[j]) if j <= L else (0, 0)
    assert (got[0][0, i], got[1][0, i]) == want


def test_contract_15_packed_segments_are_independent():
  target_BL, segment_BL = jnp.array([[1, 2, 3, 4, 5]]), jnp.array([[1, 1, 1, 2, 2]])
  _, weight_BL = mtp_targets(target_BL, jnp.array([[1.0, 1, 0, 1, 0]]), 1, segment_BL)
  np.testing.assert_array_equal(weight_BL, [[1, 0, 0, 0, 0]])


def test_mtp_loss_is_the_mean_over_depths_in_the_main_loss_s_unit():
  logp = [jnp.full(TARGET.shape, -1.0), jnp.full(TARGET.shape, -3.0)]
  weights = [mtp_targets(jnp.asarray(TARGET), jnp.asarray(WEIGHT), d)[1] for d in (1, 2)]
  got = mtp_loss(logp, weights, jnp.asarray(WEIGHT))
  np.testing.assert_allclose(got, ((6 * 1 + 5 * 3) / 2, 6))
  assert got[1] == cross_entropy(logp[0], jnp.asarray(WEIGHT))[1]


def test_contract_15_prompt_and_padding_have_no_gradient():
  target_BL, weight_BL = mtp_targets(jnp.asarray(TARGET), jnp.asarray(WEIGHT), 1)
  logp_BL = jnp.where(target_BL >= 20, -1.0, jnp.nan)
  grad = jax.grad(lambda x: mtp_loss([x], [weight_BL], jnp.asarray(WEIGHT))[0])(logp_BL)
  np.testing.assert_array_equal(grad, np.where(target_BL >= 20, -1, 0))


def test_errors_say_what_was_given():
  x = jnp.zeros((1, 2))
  with pytest.raises(ValueError, match='depth is 0'):
    mtp_targets(x, x, 0)
  with pytest.raises(ValueError, match='1 arrays of log-probs and 2 of weights'):
    mtp_loss([x], [x, x], x)
