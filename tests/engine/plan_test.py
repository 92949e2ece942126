"""Sizes and requests of the scheduler."""

import pytest

from r1jax.engine.plan import Config, Request, Sequence


@pytest.mark.parametrize('name', ['slots', 'pages', 'page', 'longest', 'chunk', 'burst'])
def test_a_size_of_nothing_says_so(name):
  sizes = {'slots': 1, 'pages': 1, 'page': 1, 'longest': 1, name: 0}
  with pytest.raises(ValueError, match=f'{name}=0; expected 1 or more'):
    Config(**sizes)


def test_a_sequence_knows_how_far_it_is():
  s = Sequence(Request(7, (1, 2, 3), 4, priority=2, arrived=0.5), [1, 2, 3, 9])
  assert (s.written, s.count, s.left) == ([9], 1, 3)
  assert s.request.positions == 6  # the last token is never read
  assert s.rank == (-2, 0.5, 7)
