"""Answers that are right in other words, and attempts to be called right without being it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards import maths
from r1jax.rewards.outcome import Outcome

SAME = [
  ('5', '5'), ('5', ' 5 '), ('5', '5.'), ('5', '5.0'), ('5', '+5'), ('5', '$5$'),
  ('5', '\\boxed{5}'), ('5', '\\boxed{\\boxed{5}}'), ('5', '\\(5\\)'), ('5', '５'),
  ('-5', '−5'), ('1000', '1,000'), ('1000', '1 000'), ('1000', '1{,}000'),
  ('1000', '1\\,000'), ('1000', '1\\!000'), ('1000', '1e3'), ('1234567.5', '1,234,567.50'),
  ('1/2', '\\frac{1}{2}'), ('1/2', '\\frac12'), ('1/2', '\\dfrac{1}{2}'), ('0.5', '1/2'),
  ('1/2', '½'), ('5/2', '2 1/2'), ('1/2', '\\frac{2}{4}'), ('-1/2', '-\\frac{1}{2}'),
  ('-1/2', '\\frac{-1}{2}'), ('\\sqrt{2}', '\\sqrt2'),
  ('\\frac{\\sqrt{2}}{2}', '\\frac{1}{\\sqrt{2}}'), ('x^2+2x+1', '(x+1)^2'), ('25', '5²'),
  ('x^2', 'x²'), ('5', 'x=5'), ('5', '5 \\text{ cm}'), ('90', '90^\\circ'), ('5', '\\$5'),
  ('\\{1,2\\}', '\\{2,1\\}'), ('(1,2)', '\\left(1,2\\right)'), ('(1,234)', '(1, 234)'),
  ('[0,1)', '[0, 1)'), ('Tuesday', 'tuesday'), ('\\text{east}', 'east'),
  ('east', '\\textbf{East}'), ('B', 'b'), ('B', '(B)'), ('\\text{(B)}', 'B'),
  ('\\pi', '\\pi'), ('1024', '2^{10}'), ('x>5', '5<x'), ('50\\%', '50%'),
  ('\\begin{pmatrix}1\\\\2\\end{pmatrix}', '\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}'),
  ('two apples', 'Two  apples'), ('0', '0.00'), ('0', '-0'), ('\\infty', '\\infty'),
  ('1,2', '2, 1'), ('\\pm 5', '5, -5'), ('三角形', '三角形'),
]  # fmt: skip

# None of these is 5.
NOT_FIVE = [
  '', '  ', '.', '6', '5 or 6', '5 and 6', '5, 6', '6, 5', '\\boxed{5}\\boxed{6}',
  '\\boxed{6} \\boxed{5}', '5}{6', '5} or {6', '\\frac{', '\\frac{5}', '5\\', '{5', '5}',
  '\\{5', 'not 5', 'five', '≠5', '!5', '5!', '-5', '5x', 'x', '5?', '5...6', '5-6', '±5',
  '\\pm 5', '5;6', '5|6', '5/0', '0/0', '\\frac{5}{0}', 'nan', 'inf', 'None', 'null',
  '<answer>5</answer>', '<think>5', '5</answer>', '<|eos|>5', '５5', '5 5', '5５', '5²', '5½',
  '5^', '^5', '__import__("os")', '5 if True else 6', 'lambda: 5', '5;import os', '%5',
  '5\x00', '\u202e5', '5\n6', '5\n\n5', '0x5', '05.5', '0b101', '5e0e0', '5e999', '٥6', '1,5',
  '5,', '5=6', '5=5=6', 'x=5 or x=6', 'x \\in \\{5,6\\}', '\\text{5 or 6}', 'The answer is 6',
  'maybe 5', '$5$ or $6$', '5$ and $6', '\\boxed{}', '$$', '{}', '()', '\ud800', '🙂', '5🙂',
  '5\\\\6', '\\left(5', '\\begin{matrix}5', '\\input{/etc/passwd}', '\\def\\x{5}\\x', '5 % 6',
  '5 # 6', '5\u200b6', '∅', '\\emptyset', '\\text{}',
]  # fmt: skip
HUGE = {
  'long number': '5' * maths.MAX_CHARS,
  '1 MB': '5' * 10**6,
  '1 MB of boxes': '\\boxed{5}' * 10**5,
  'parentheses': '(' * 900,
  'braces': '{' * 400 + '5' + '}' * 400,
  'fractions': '\\frac{1}{' * 100 + '5' + '}' * 100,
  'roots': '\\sqrt{' * 150 + '5' + '}' * 150,
  'terms': '5+' * 400 + '5',
  'letters': 'e' * 900,
}
NO_GOLD = [
  '',
  ' ',
  'nan',
  'None',
  'null',
  '\\frac{',
  '5...',
  '{',
  '\\boxed{}',
  '$$',
  '5\\',
  '???',
  '5' * 2000,
]


@pytest.mark.parametrize(('gold', 'answer'), SAME)
def test_equal(gold, answer):
  assert maths.verify(gold, answer) is Outcome.CORRECT


@pytest.mark.parametrize('answer', NOT_FIVE)
def test_adversarial_answers_are_not_correct(answer):
  assert maths.verify('5', answer) in (Outcome.WRONG, Outcome.UNPARSEABLE)


@pytest.mark.parametrize('answer', HUGE.values(), ids=HUGE)
def test_huge_answers_are_not_correct(answer):
  assert maths.verify('5', answer) in (Outcome.WRONG, Outcome.UNPARSEABLE)


def test_there_are_enough_adversarial_answers():
  assert len({*NOT_FIVE, *HUGE.values()}) >= 60


@pytest.mark.parametrize('gold', NO_GOLD)
def test_contract_08_a_bad_gold_is_unparseable_whatever_the_answer(gold):
  assert {maths.verify(gold, answer) for answer in (gold, '5', '', 'x')} == {Outcome.UNPARSEABLE}


@pytest.mark.parametrize(
  'answer',
  [
    '',
    ' ',
    '\\frac{',
    '5}{6',
    '\\boxed{5}\\boxed{6}',
    '<answer>5</answer>',
    '5 5',
    '5\n6',
    '5\\',
    '{5',
  ],
)
def test_contract_08_unparseable_is_an_outcome_of_its_own(answer):
  assert maths.verify('5', answer) is Outcome.UNPARSEABLE


@pytest.mark.parametrize(
  ('gold', 'answer'),
  [
    ('0', '1 000'),
    ('14', '7 7'),
    ('banana', 'abanan'),
    ('52', '5²'),
    ('102', '10₂'),
    ('51/2', '5½'),
    ('1000', '1,00'),
    ('east', 'west'),
    ('B', 'C'),
    ('1/3', '0.33'),
    ('(1,2)', '(2,1)'),
    ('x=5 or x=6', '5'),
    ('Tuesday', '2'),
    ('2', 'Tuesday'),
  ],
)
def test_known_traps_are_not_correct(gold, answer):
  assert maths.verify(gold, answer) is not Outcome.CORRECT


@given(st.fractions(max_denominator=999))
def test_numbers_are_compared_exactly(x):
  text = f'\\frac{{{x.numerator}}}{{{x.denominator}}}'
  assert maths.number(maths.canonical(text)) == x
  assert maths.verify(str(x), text) is Outcome.CORRECT
  assert maths.verify(str(x + 1), text) is Outcome.WRONG


@given(st.integers(), st.sampled_from([',', ' ', '{,}', '\\,', '\u202f']))
def test_thousands_separators(n, mark):
  assert maths.number(maths.canonical(f'{n:,}'.replace(',', mark))) == n


@given(st.text(max_size=40))
def test_any_text_has_a_canonical_form_or_none(text):
  once = maths.canonical(text)
  assert once is None or once.strip()
