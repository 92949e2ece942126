"""Pools of every kind with lists over them, and float64 loops over the places that are seen."""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.kernels.paged.memory import Int8, numbers
from r1jax.kernels.paged.visible import Visible

LAYERS, PAGES, SIZE, HEADS = 2, 6, 4, 2
WIDTH, VALUE, LATENT, SPARE = 6, 5, (8, 4), 3  # a stored latent's last numbers are not needed
KINDS = ('grouped', 'grouped int8', 'latent', 'latent int8')
SCALE = 0.3


def stack(rng, shape, coded):
  x = rng.normal(size=shape)
  if not coded:
    return x.astype('f4')
  scale = np.asarray(rng.uniform(0.005, 0.02, shape[:-1]), jnp.bfloat16)
  return Int8(np.int8(np.clip(np.round(64 * x), -127, 127)), scale)


def draw(rng, kind, rows, heads=4):
  """(q_BNH, keys, values, value_width)."""
  coded, lead = 'int8' in kind, (LAYERS, PAGES, SIZE)
  if 'grouped' in kind:
    make = lambda w: stack(rng, (*lead, HEADS, w), coded)
    return rng.normal(size=(rows, heads, WIDTH)).astype('f4'), make(WIDTH), make(VALUE), None
  parts = LATENT if coded else (sum(LATENT) + SPARE,)
  keys = tuple(stack(rng, (*lead, w), coded) for w in parts)
  return rng.normal(size=(rows, heads, sum(LATENT))).astype('f4'), keys, None, LATENT[0]


def lists(rng, rows, entries):
  """Pages in any order, shared and twice, whole, in part and empty; row 0 sees nothing."""
  pages = rng.integers(-1, PAGES, (rows, entries))
  ends = np.sort(rng.integers(0, SIZE + 1, (2, rows, entries)), 0)
  whole = rng.random((rows, entries)) < 0.5
  pages[0] = -1
  pages[-1, rng.integers(0, entries) :] = -1
  return Visible(*np.int32([pages, np.where(whole, 0, ends[0]), np.where(whole, SIZE, ends[1])]))


def places(visible):
  """[(page, place), …] a row."""
  rows = [
    [(p, s) for p, low, high in zip(*row) if p >= 0 for s in range(low, high)]
    for row in zip(*map(np.asarray, visible))
  ]
  return rows


def poisoned(stacks, seen):
  """The stacks with NaN (127 in int8, with scales of NaN) wherever nothing is seen."""
  keep = np.zeros((PAGES, SIZE), bool)
  for row in seen:
    for page, place in row:
      keep[page, place] = True

  def one(x):
    bad = 127 if x.dtype == np.int8 else np.nan
    return np.where(keep.reshape(1, PAGES, SIZE, *(1,) * (x.ndim - 3)), x, bad).astype(x.dtype)

  return jax.tree.map(one, stacks)


def dense(stacks):
  """[n, P, S, K, W] in float64 of stacks side by side."""
  one = lambda s: (
    np.float64(numbers(s)) * (np.float64(s.scale)[..., None] if isinstance(s, Int8) else 1)
  )
  stacks = (stacks,) if isinstance(stacks, Int8) or not isinstance(stacks, tuple) else stacks
  x = np.concatenate([one(s) for s in stacks], -1)
  return x if x.ndim == 5 else x[:, :, :, None]


def oracle(q, keys, values, width, layer, seen, cap=None):
  """(o, lse), one query and head at a time."""
  k = dense(keys)[layer]
  v = k[..., :width] if values is None else dense(values)[layer]
  (B, N, _), G = q.shape, q.shape[1] // k.shape[2]
  o, lse = np.zeros((B, N, v.shape[-1])), np.full((B, N), -np.inf)
  for b, n in np.ndindex(B, N):
    if seen[b]:
      page, place = np.transpose(seen[b])
      s = SCALE * k[page, place, n // G, : q.shape[-1]] @ np.float64(q[b, n])
      s = cap * np.tanh(s / cap) if cap else s
      lse[b, n] = np.log(np.exp(s).sum())
      o[b, n] = np.exp(s - lse[b, n]) @ v[page, place, n // G]
  return o, lse


def check(got, want, atol=1e-5):
  for name, a, b in zip(('o', 'lse'), got, want):
    np.testing.assert_allclose(np.asarray(a, 'f4'), b, rtol=0, atol=atol, err_msg=name)
