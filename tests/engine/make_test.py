"""The engine of a config."""

import numpy as np

from r1jax.engine.batch import Batches, Paged, Static
from r1jax.engine.engine import Engine
from r1jax.engine.make import make
from r1jax.kernels.logprob.truncate import Sampling
from tests.engine.mixed import MIXED, STOPS, keys, params


def test_the_type_says_which():
  paged = make(Paged(slots=3), 'cfg', [1, 2])
  assert isinstance(paged, Batches) and paged.spec.slots == 3 and paged.stops == (1, 2)
  assert isinstance(make(Static(), 'cfg', (1,)), Engine)


def test_without_replay_nobody_keeps_choices():
  asked = params(), np.int32([[6, 7], [8, 9]]), np.int32([2, 1]), keys(2), Sampling(1.0), 3
  paged, static = (make(spec, MIXED, STOPS)(*asked) for spec in (Paged(slots=2), Static()))
  assert paged.routes is None and static.routes is None
  np.testing.assert_array_equal(paged.tokens_BT, static.tokens_BT)
