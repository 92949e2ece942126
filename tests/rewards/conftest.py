"""The sandbox where there is one."""

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.sandbox import Bubblewrap


@pytest.fixture(scope='session')
def box() -> Bubblewrap:
  """The sandbox; skips where there is none."""
  found = Bubblewrap()
  try:
    found.check()
  except UserError as e:
    pytest.skip(str(e))
  return found
