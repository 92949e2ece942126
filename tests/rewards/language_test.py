"""Shares of words by language."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.rewards.language import consistency


@pytest.mark.parametrize(
  ('thought', 'en', 'zh'),
  [
    ('', 1.0, 1.0),
    ('4+3=7\n7-2=5', 1.0, 1.0),
    ('so we add them', 1.0, 0.0),
    ('我们相加', 0.0, 1.0),
    ('so 我们 add', 0.5, 0.5),
    ('设 x = \\frac{1}{2}, y = 3', 0.0, 1.0),
    ('we know привет', 2 / 3, 0.0),
    ('naïve Straße', 1.0, 0.0),
    ('ＦＵＬＬ width', 1.0, 0.0),
    ('नमस्ते hello', 0.5, 0.0),
    ('hello\u3000世界!', 1 / 3, 2 / 3),
    ('don\'t "mix" them', 1.0, 0.0),
  ],
)
def test_shares(thought, en, zh):
  assert consistency(thought, 'en') == pytest.approx(en)
  assert consistency(thought, 'zh') == pytest.approx(zh)


@given(st.text())
def test_a_share_is_between_0_and_1(thought):
  assert 0 <= consistency(thought, 'en') <= 1


@given(st.text(alphabet='0123456789+-*/=., \n'))
def test_digits_and_punctuation_are_no_words(thought):
  assert consistency(thought, 'zh') == 1.0


def test_unknown_language():
  with pytest.raises(UserError, match="no language 'de'"):
    consistency('', 'de')
