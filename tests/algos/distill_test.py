"""Distillation against float64 sums over the vocabulary; TRL parity in trl_test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from r1jax.algos.distill import (
  Bucket,
  Distill,
  Forward,
  Ignored,
  Jensen,
  Reverse,
  Skew,
  full,
  hidden,
  stored,
)

B, L, V, K = 2, 3, 9, 4
RNG = np.random.default_rng(0)
FULL, STORED = jax.jit(full, static_argnums=3), jax.jit(stored, static_argnums=4)
STUDENT, TEACHER = 2 * RNG.normal(size=(2, B, L, V))
MASK = np.array([[1, 1, 0], [0, 1, 1]], bool)
HOWS = [Forward(), Reverse(), Jensen(0.3), Skew(0.1)]
T = 1.7


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


def kl(p, q):
  return (p * (np.log(p) - np.log(q))).sum(axis=-1)


def oracle(t, s, how):
  """By definition, of probabilities."""
  match how:
    case Forward():
      return kl(t, s)
    case Reverse():
      return kl(s, t)
    case Jensen(a):
      m = a * t + (1 - a) * s
      return a * kl(t, m) + (1 - a) * kl(s, m)
    case Skew(a):
      return kl(t, a * t + (1 - a) * s)


def probs(logits):
  return np.exp(log_softmax(logits / T, axis=-1))


def top_k(logits=TEACHER, k=K):
  """The teacher's ids and log-probabilities, as they are stored."""
  ids = np.argsort(-logits, axis=-1)[..., :k]
  return ids, np.take_along_axis(log_softmax(logits / T, axis=-1), ids, axis=-1)


@jax.jit
def given_ids(student, ids):
  """The student's logits over T there, and the log-sum-exp of all."""
  z = jnp.asarray(student) / T
  return jnp.take_along_axis(z, jnp.asarray(ids), axis=-1), jax.nn.logsumexp(z, axis=-1)


@functools.partial(jax.jit, static_argnums=1)
def full_loss(student, cfg, teacher=TEACHER, mask=MASK):
  f = lambda student: full(student, teacher, mask, cfg)[0]
  return jax.value_and_grad(f, has_aux=True)(student)


@functools.partial(jax.jit, static_argnums=1)
def stored_loss(student, cfg, ids, teacher, mask=MASK):
  f = lambda student: stored(*given_ids(student, ids), teacher, mask, cfg)[0]
  return jax.value_and_grad(f, has_aux=True)(student)


def assert_same(got, want, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


@pytest.mark.parametrize('how', HOWS)
def test_full_is_its_definition_times_the_temperature_squared(how):
  (total, weight), grad = full_loss(STUDENT, Distill(how, T))
  want = T**2 * oracle(probs(TEACHER), probs(STUDENT), how)
  np.testing.assert_allclose((total, weight), (want[MASK].sum(), 4), rtol=1e-12)
  np.testing.assert_array_equal(np.asarray(grad)[~MASK], 0)


def test_the_gradient_of_forward_is_student_minus_teacher():
  """T times it: T² of the loss, 1/T of the logits."""
  _, grad = full_loss(STUDENT, Distill(Forward(), T))
  want = T * (probs(STUDENT) - probs(TEACHER)) * MASK[..., None]
  np.testing.assert_allclose(grad, want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('how', HOWS)
def test_student_and_teacher_alike_lose_nothing(how):
  for (total, _), grad in (
    full_loss(TEACHER, Distill(how, T)), stored_loss(TEACHER, Distill(how, T), *top_k()),
  ):  # fmt: skip
    np.testing.assert_allclose(total, 0, atol=1e-13)
    np.testing.assert_allclose(grad, 0, atol=1e-13)


@pytest.mark.parametrize('rest', [Bucket(), Ignored()])
@pytest.mark.parametrize('how', HOWS)
def test_all_of_the_vocabulary_stored_is_the_full_loss(how, rest):
  want = full_loss(STUDENT, Distill(how, T))
  got = stored_loss(STUDENT, Distill(how, T, rest), *top_k(k=V))
  assert_same(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('how', HOWS)
def test_a_bucket_is_the_divergence_of_the_coarser_events(how):
  """Value and gradient: probabilities of K tokens and of all others together."""
  ids, teacher = top_k()

  def coarse(student):
    s = jax.nn.softmax(student / T, axis=-1)
    parts = []
    for x in (jnp.asarray(probs(TEACHER)), s):
      some = jnp.take_along_axis(x, jnp.asarray(ids), axis=-1)
      others = 1 - some.sum(axis=-1, keepdims=True)
      parts.append(jnp.concatenate([some, others], axis=-1))
    t, s = parts
    m = {Jensen(0.3): 0.3 * t + 0.7 * s, Skew(0.1): 0.1 * t + 0.9 * s}.get(how)
    d = lambda p, q: (p * (jnp.log(p) - jnp.log(q))).sum(axis=-1)
    loss = {
      Forward(): lambda: d(t, s), Reverse(): lambda: d(s, t), Skew(0.1): lambda: d(t, m),
      Jensen(0.3): lambda: 0.3 * d(t, m) + 0.7 * d(s, m),
    }[how]()  # fmt: skip
    return T**2 * jnp.where(MASK, loss, 0).sum()

  (total, _), grad = stored_loss(STUDENT, Distill(how, T), ids, teacher)
  want = jax.jit(jax.value_and_grad(coarse))(STUDENT)
  assert_same((total, grad), want, rtol=1e-9, atol=1e-13)
  assert total < full_loss(STUDENT, Distill(how, T))[0][0]


def test_forward_splits_into_the_bucket_and_what_it_hides():
  """KL = KL of the coarse events + the teacher's rest · KL among the rest (the chain rule)."""
  ids, teacher = top_k()
  others = np.argsort(-TEACHER, axis=-1)[..., K:]
  t, s = (np.take_along_axis(probs(x), others, axis=-1) for x in (TEACHER, STUDENT))
  rest = t.sum(axis=-1)
  inside = rest * kl(t / rest[..., None], s / s.sum(axis=-1, keepdims=True))
  (coarse, _), _ = stored_loss(STUDENT, Distill(Forward(), T), ids, teacher)
  (whole, _), _ = full_loss(STUDENT, Distill(Forward(), T))
  np.testing.assert_allclose(whole, coarse + T**2 * inside[MASK].sum(), rtol=1e-10)


@pytest.mark.parametrize('how', HOWS)
def test_ignored_is_the_divergence_given_the_k(how):
  ids, teacher = top_k()
  t, s = (
    np.exp(log_softmax(np.take_along_axis(x / T, ids, axis=-1), axis=-1))
    for x in (TEACHER, STUDENT)
  )
  (total, weight), _ = stored_loss(STUDENT, Distill(how, T, Ignored()), ids, teacher)
  want = T**2 * oracle(t, s, how)[MASK].sum()
  np.testing.assert_allclose((total, weight), (want, 4), rtol=1e-10)


@pytest.mark.parametrize('how, rest', list(zip(HOWS, [Bucket(), Ignored()] * 2)))
def test_contract_01_fill_and_padding_reach_neither_value_nor_gradient(how, rest):
  """Fewer than K ids filled up with −inf; junk where nothing counts."""
  ids, teacher = top_k()
  cfg = Distill(how, T, rest)
  want = stored_loss(STUDENT, cfg, ids, teacher)
  wide_ids = np.concatenate([ids, np.zeros((B, L, 2), int)], axis=-1)
  wide = np.pad(teacher, ((0, 0), (0, 0), (0, 2)), constant_values=-np.inf)
  assert_same(stored_loss(STUDENT, cfg, wide_ids, wide), want, rtol=1e-12, atol=1e-15)
  for junk in (np.nan, np.inf, -np.inf):
    dirty = [np.where(MASK[..., None], x, junk) for x in (STUDENT, teacher, TEACHER)]
    got = stored_loss(dirty[0], cfg, ids, dirty[1])
    assert_same(got[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(got[1])[MASK], np.asarray(want[1])[MASK], rtol=1e-12)
    got = full_loss(dirty[0], cfg, dirty[2])
    assert_same(got, full_loss(STUDENT, cfg), rtol=1e-12)


@pytest.mark.parametrize('how', HOWS)
def test_tokens_that_neither_can_say_are_nothing(how):
  """−inf logits, as of padded vocabulary rows."""
  wide = [np.pad(x, ((0, 0), (0, 0), (0, 1)), constant_values=-np.inf) for x in (STUDENT, TEACHER)]
  (got, _), grad = full_loss(wide[0], Distill(how, T), wide[1])
  (want, _), narrow = full_loss(STUDENT, Distill(how, T))
  np.testing.assert_allclose(got, want, rtol=1e-12)
  np.testing.assert_allclose(grad, np.pad(narrow, ((0, 0), (0, 0), (0, 1))), rtol=1e-9, atol=1e-15)


@given(scale=st.sampled_from([1.0, 30.0, 300.0]), seed=st.integers(0, 9))
def test_in_float32_sharp_distributions_stay_finite(scale, seed):
  """The K may hold all of the mass of either side, to the last bit."""
  with jax.enable_x64(False):
    student, teacher = np.float32(scale * np.random.default_rng(seed).normal(size=(2, B, L, V)))
    ids, logp = top_k(teacher)
    for rest in (Bucket(), Ignored()):
      (total, _), grad = stored_loss(student, Distill(Forward(), T, rest), ids, np.float32(logp))
      assert np.isfinite(total) and total > -1e-4
      assert np.isfinite(grad).all()


def test_metrics():
  ids, teacher = top_k()
  _, metrics = STORED(*given_ids(STUDENT, ids), teacher, MASK, Distill())
  for name, x in (('teacher_mass', TEACHER), ('student_mass', STUDENT)):
    want = np.take_along_axis(probs(x), ids, axis=-1).sum(axis=-1)[MASK].mean()
    np.testing.assert_allclose(np.divide(*metrics[name]), want, rtol=1e-12)
  best = np.take_along_axis(STUDENT, ids, axis=-1).argmax(-1) == 0  # the teacher's stands first
  assert metrics['agreement'] == (best[MASK].sum(), 4) and 0 < best[MASK].sum() < 4
  _, metrics = FULL(STUDENT, TEACHER, MASK, Distill())
  same = (STUDENT.argmax(-1) == TEACHER.argmax(-1))[MASK]
  assert metrics['agreement'] == (same.sum(), 4)


def test_log_probs_serve_in_place_of_logits():
  """The log-sum-exp is then 0."""
  ids, teacher = top_k()
  z, lse = given_ids(STUDENT, ids)
  rest = teacher, MASK, Distill(Reverse(), T)
  got = STORED(z - lse[..., None], jnp.zeros_like(lse), *rest)[0]
  assert_same(got, STORED(z, lse, *rest)[0], rtol=1e-12)
  np.testing.assert_allclose(lse, logsumexp(STUDENT / T, axis=-1), rtol=1e-12)


def test_hidden_layers_by_a_projection():
  """Value and both gradients of the mean over features; the error of a perfect map is 0."""
  h, w = RNG.normal(size=(B, L, 4)), RNG.normal(size=(4, 5))
  target = RNG.normal(size=(B, L, 5))
  f = lambda h, w: hidden(jnp.where(MASK[..., None], h, jnp.nan), target, w, MASK)[0]
  (total, weight), grads = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(h, w)
  error = (h @ w - target) * MASK[..., None]
  np.testing.assert_allclose((total, weight), ((error**2).sum() / 5, 4), rtol=1e-12)
  np.testing.assert_allclose(grads[0], 2 / 5 * error @ w.T, rtol=1e-12, atol=1e-15)
  want = 2 / 5 * np.einsum('BLD,BLE->DE', h, error)
  np.testing.assert_allclose(grads[1], want, rtol=1e-12, atol=1e-15)
  _, metrics = jax.jit(hidden)(h, target, np.zeros((4, 5)), MASK)
  np.testing.assert_allclose(np.divide(*metrics['unexplained']), 1, rtol=1e-12)
  (total, _), _ = jax.jit(hidden)(h, h @ w, w, MASK)
  np.testing.assert_allclose(total, 0, atol=1e-24)


def test_teachers_are_constants():
  z, lse = given_ids(STUDENT, top_k()[0])
  fs = {
    'full': lambda t: full(STUDENT, t, MASK, Distill(Jensen()))[0][0],
    'stored': lambda t: stored(z, lse, t[..., :K] - 9, MASK, Distill(Skew()))[0][0],
    'hidden': lambda t: hidden(jnp.asarray(STUDENT), t, jnp.eye(V), MASK)[0][0],
  }
  for name, f in fs.items():
    np.testing.assert_array_equal(jax.jit(jax.grad(f))(TEACHER), 0, err_msg=name)


def test_configs_refuse_what_cannot_work():
  with pytest.raises(ValueError, match='temperature is 0'):
    Distill(temperature=0)
  for kind in (Jensen, Skew):
    with pytest.raises(ValueError, match='alpha is 1'):
      kind(1)
