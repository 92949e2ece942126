"""Multiple choice: which option an answer names."""

import json
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards import choice
from r1jax.rewards.outcome import Outcome

ANSWERS = json.loads((pathlib.Path(__file__).parent / 'answers' / 'choice.json').read_text())
CAPITALS = ('London', 'Paris', 'Berlin', 'Rome')


def text(answer: str | dict) -> str:
  """The answer, or what a row repeats."""
  return answer if isinstance(answer, str) else answer['text'] * answer['times']


def test_the_whole_adversarial_suite():
  assert len({(gold, text(answer)) for _, gold, answer, _ in ANSWERS}) >= 60
  found = [choice.verify(g, text(a), options).value for options, g, a, _ in ANSWERS]
  bad = [
    f'gold {gold!r} answer {text(answer)[:60]!r} of {options}: {got}, expected {want}'
    for (options, gold, answer, want), got in zip(ANSWERS, found, strict=True)
    if got != want
  ]
  assert not bad, '\n' + '\n'.join(bad)


@pytest.mark.parametrize(
  'form', ['{}', '({})', '{}.', 'Answer: {}', 'The answer is ({}).', '**{}**']
)
@pytest.mark.parametrize('letter', choice.LETTERS)
def test_every_letter_in_every_form(form, letter):
  options = tuple(f'option number {i}' for i in range(len(choice.LETTERS)))
  assert choice.named(form.format(letter), options) == {letter}
  for gold in choice.LETTERS:
    same = Outcome.CORRECT if gold == letter else Outcome.WRONG
    assert choice.verify(gold, form.format(letter), options) is same


@given(st.sampled_from(CAPITALS), st.sampled_from(CAPITALS))
def test_texts_are_as_good_as_letters(gold, answer):
  wanted = Outcome.CORRECT if gold == answer else Outcome.WRONG
  letters = [choice.LETTERS[CAPITALS.index(name)] for name in (gold, answer)]
  assert choice.verify(gold, answer, CAPITALS) is wanted
  assert choice.verify(letters[0], answer, CAPITALS) is wanted
  assert choice.verify(gold, letters[1], CAPITALS) is wanted


@given(st.text(), st.text(), st.lists(st.text(), max_size=5))
def test_no_text_raises_and_no_bad_gold_is_ever_correct(gold, answer, options):
  outcome = choice.verify(gold, answer, options)
  assert outcome in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE)
  if not choice.named(gold, options) or not choice.named(answer, options):
    assert outcome is Outcome.UNPARSEABLE


@pytest.mark.parametrize('piece', ['B', '(', 'the answer is ', 'option ', ' ', 'A or ', '\\boxed{'])
@pytest.mark.parametrize('length', [choice.MAX_CHARS, 1_000_000])
def test_long_answers_take_no_time(piece, length):
  answer = (piece * length)[:length]
  begin = time.perf_counter()
  assert choice.verify('B', answer, CAPITALS) is not Outcome.CORRECT
  assert time.perf_counter() - begin < 0.05
