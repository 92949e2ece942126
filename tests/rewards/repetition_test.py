"""The repetition penalty: nothing for honest thoughts, all for loops."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards.repetition import loops, penalty, repeated_grams, repeated_lines

HONEST = (
  'First we add the apples. Tom has 5 apples and gets 3 more, so there are 5 + 3 = 8 apples.\n'
  'Then he eats 2 of them, so there are 8 - 2 = 6 apples. Let me check: 6 + 2 = 8.\n'
  'So the answer is 6.'
)


def test_grams_by_hand():
  # a b a b a: the bigrams ab ba ab ba
  assert repeated_grams('a b a b a', 2) == 0.5
  assert repeated_grams('a b', 3) == repeated_grams('', 3) == 0.0


def test_lines_by_hand():
  line = 'a line of some length'
  assert repeated_lines('\n'.join([line, line + '!', line, line])) == 0.5
  assert repeated_lines('}\n' * 50) == 0.0
  assert repeated_lines('\n'.join([line] * 3)) == 0.0


@pytest.mark.parametrize('text', ['', '   ', 'one', HONEST, '🎉', '\u200b', '$x^2$'])
def test_honest_texts_are_free(text):
  assert penalty(text) == 0.0


@pytest.mark.parametrize(
  'loop', ['wait, ', 'a', 'abc', '苹果', '🎉', '...', HONEST, 'So the answer is 6.\n', '\u200ba ']
)
def test_loops_cost_everything(loop):
  assert loops('some honest words ' + loop * 2000)
  assert penalty('some honest words ' + loop * 2000) == -1.0


def test_a_loop_at_the_end_of_a_long_thought():
  words = ' '.join(f'word{random.Random(i).random()}' for i in range(5000))
  looped = words + ' and so it is, ' * 20
  assert repeated_grams(looped) < 0.2
  assert penalty(words) == 0.0
  assert penalty(looped) == -1.0


def test_the_unit_must_repeat_four_times():
  unit = ' '.join(str(i) for i in range(40))
  assert not loops(' '.join([unit] * 3))
  assert loops(' '.join([unit] * 4))


def test_repeating_more_costs_more():
  other = ' '.join(str(i) for i in range(100))
  values = [penalty((HONEST + '\n') * k + other) for k in range(1, 12)]
  assert values == sorted(values, reverse=True)
  assert values[0] == 0.0 > values[-1]


@given(st.lists(st.sampled_from('abc'), max_size=300))
def test_loops_agrees_with_its_definition(items):
  def by_hand(tail):
    for period in range(1, len(tail)):
      n = period
      while n < len(tail) and tail[-1 - n] == tail[-1 - n + period]:
        n += 1
      if n >= max(64, 4 * period):
        return True
    return False

  assert loops(' '.join(items)) == by_hand(items)


@given(st.text())
def test_between_minus_one_and_zero(text):
  assert -1 <= penalty(text) <= 0


def test_the_larger_share_counts_beyond_what_is_free():
  shuffled = [' '.join(random.Random(i).sample('abcdefgh', 8)) for i in range(6)]
  in_grams = '\n'.join(f'{line} {i}' for i, line in enumerate(shuffled * 4))
  assert repeated_lines(in_grams) == 0.0 < 0.2 < repeated_grams(in_grams)
  assert penalty(in_grams) == pytest.approx((0.2 - repeated_grams(in_grams)) / 0.8)
  in_lines = '\n'.join(f'a longer line\n{i + 10**9} is new' for i in range(9))
  assert repeated_grams(in_lines) == 0.0
  assert repeated_lines(in_lines) == pytest.approx(8 / 18)
  assert penalty(in_lines) == pytest.approx((0.2 - 8 / 18) / 0.8)
