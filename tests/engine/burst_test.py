"""What a burst has written, round by round."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.engine import burst
from r1jax.engine.sampling import Drawn
from r1jax.kernels.logprob.truncate import FILLER
from r1jax.model.types import Choices
from tests.engine.mixed import MIXED

SPARSE = dataclasses.replace(MIXED, layers=MIXED.layers[:1])


@pytest.mark.parametrize('seed', range(3))
def test_rounds_of_any_length_leave_their_tokens_without_holes(seed):
  """The oracle: lists, appended to."""
  rng, (B, L, rounds) = np.random.default_rng(seed), (3, 3, 4)
  most = rounds * L
  out = burst.blank(SPARSE, most, 2, jnp.zeros((B, L - 1), jnp.int32))
  taken_BC, lists = [], [[] for _ in range(B)]
  for r in range(rounds):
    n_B = rng.integers(0, L + 1, B)
    taken_BL = np.arange(L) < n_B[:, None]
    tokens_BL, experts = rng.integers(1, 99, (B, L)), rng.integers(1, 9, (1, B, L, 2))
    sets = np.stack([tokens_BL, tokens_BL + 1], -1)
    drawn = Drawn(tokens_BL.reshape(-1), tokens_BL.reshape(-1) / 2, sets.reshape(-1, 2))
    out = burst.written(out, r, jnp.asarray(taken_BL), drawn, ((Choices(experts),),))
    taken_BC.append(taken_BL)
    for b, n in enumerate(n_B):
      lists[b] += [(t, *e) for t, e in zip(tokens_BL[b, :n], experts[0, b, :n].tolist())]
  out = burst.closed(out, jnp.concatenate(taken_BC, 1), most)
  assert out.count_B.tolist() == [len(x) for x in lists]
  for b, x in enumerate(lists):
    n = len(x)
    tokens = [t for t, *_ in x]
    assert out.token_BN[b].tolist() == tokens + [0] * (most - n)
    assert out.logp_BN[b, :n].tolist() == [t / 2 for t in tokens]
    assert out.support_BNK[b, :n].tolist() == [[t, t + 1] for t in tokens]
    assert (out.support_BNK[b, n:] == FILLER).all()
    assert out.routes[0][0].experts[0, b, :n].tolist() == [e for _, *e in x]
    assert not out.routes[0][0].experts[0, b, n:].any()
