import time

import pytest

from r1jax.rewards.maths.symbolic import compare
from r1jax.rewards.outcome import Outcome


@pytest.mark.parametrize(
  ('wanted', 'given', 'outcome'),
  [
    ('x^2+2x+1', '(x+1)^2', Outcome.CORRECT),
    ('x^2+2x+1', '(x+2)^2', Outcome.WRONG),
    ('f(x) = x+1', '1+x', Outcome.CORRECT),
    ('x+1', 'because it is so', Outcome.UNPARSEABLE),
    ('', '', Outcome.UNPARSEABLE),
  ],
)
def test_compare(wanted, given, outcome):
  assert compare(wanted, given) is outcome


@pytest.mark.parametrize(
  'text', ['9^{9^{9^9}}', '1000000!', '\\sum_{n=1}^{99} n', '10^{99999}', '(' * 99 + ')' * 99]
)
def test_what_sympy_would_expand_without_end_is_not_asked(text):
  begin = time.perf_counter()
  assert compare(text, text) is Outcome.UNPARSEABLE
  assert time.perf_counter() - begin < 2
