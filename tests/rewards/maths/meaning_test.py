import pytest

from r1jax.rewards.maths.errors import UndefinedError, UnreadableError
from r1jax.rewards.maths.meaning import read, same
from r1jax.rewards.maths.spelling import canonical


def meaning(text):
  return read(canonical(text))


@pytest.mark.parametrize(
  ('a', 'b', 'equal'),
  [
    ('(1, 2)', '(2, 1)', False),
    ('\\{1, 2\\}', '\\{2, 1\\}', True),
    ('[0, 1)', '0 \\le x < 1', True),
    ('[0, 1)', '[0, 1]', False),
    ('(0,2) \\cup (1,3)', '(0, 3)', True),
    ('(0,1) \\cup (1,3)', '(0, 3)', False),
    ('x = 1 or x = 2', '1, 2', True),
    ('x = 1, y = 2', 'x = 2, y = 1', False),
    ('y = 2x + 3', '2y = 4x + 6', True),
    ('y = 2x + 3', 'y = 2x + 4', False),
    ('3:4', '3:5', False),
    ('east', '\\text{East}', True),
  ],
)
def test_same(a, b, equal):
  assert same(meaning(a), meaning(b)) is equal
  assert same(meaning(b), meaning(a)) is equal


def test_a_chain_that_is_wrong_has_no_value():
  assert same(meaning('x = 2 + 3 = 5'), meaning('5'))
  with pytest.raises(UndefinedError):
    meaning('x = 2 + 3 = 6')


@pytest.mark.parametrize('text', ['x < 3 > y', 'the sum of 3 and x', '3 < x + y < 5'])
def test_what_the_reader_leaves_to_the_engine(text):
  with pytest.raises(UnreadableError):
    read(text)
