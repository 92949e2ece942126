"""The engine of a config."""

from r1jax.engine.batch import Batches, Paged, Static
from r1jax.engine.engine import Engine
from r1jax.engine.make import make


def test_the_type_says_which():
  paged = make(Paged(slots=3), 'cfg', [1, 2])
  assert isinstance(paged, Batches) and paged.spec.slots == 3 and paged.stops == (1, 2)
  assert isinstance(make(Static(), 'cfg', (1,)), Engine)
