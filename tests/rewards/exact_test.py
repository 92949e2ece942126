"""Equality of texts."""

import time
import unicodedata

import pytest

from r1jax.rewards.exact import verify
from r1jax.rewards.outcome import Outcome


@pytest.mark.parametrize('answer', ['Paris', ' paris\n', 'PARIS'])
def test_same_text(answer):
  assert verify('Paris', answer) is Outcome.CORRECT


def test_composed_and_decomposed_letters_are_the_same():
  assert verify('Orléans', 'Orle\u0301ans') is Outcome.CORRECT


@pytest.mark.parametrize(('gold', 'answer'), [('Paris', 'Paris, Texas'), ('52', '5²'), ('a', 'b')])
def test_other_text(gold, answer):
  assert verify(gold, answer) is Outcome.WRONG


@pytest.mark.parametrize(('gold', 'answer'), [('', ''), ('a', ' \n'), ('\u3000', 'a')])
def test_contract_08_blank_is_unparseable(gold, answer):
  assert verify(gold, answer) is Outcome.UNPARSEABLE


def test_a_megabyte_of_marks_takes_no_time():
  start = time.perf_counter()
  assert verify('é', 'e' + '\u0316\u0301' * 500_000) is Outcome.WRONG
  assert time.perf_counter() - start < 2
  assert verify('ᾂ', unicodedata.normalize('NFD', 'ᾂ')) is Outcome.CORRECT  # four marks in one
