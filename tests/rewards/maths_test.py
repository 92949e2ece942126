"""Answers that are right in other words, and attempts to be called right without being it."""

import json
import math
import pathlib
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.rewards import maths
from r1jax.rewards.maths import arithmetic, expressions, spelling
from r1jax.rewards.maths.errors import UndefinedError, UnreadableError
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
  'long number': '5' * spelling.MAX_CHARS,
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
  assert arithmetic.number(spelling.canonical(text)) == x
  assert maths.verify(str(x), text) is Outcome.CORRECT
  assert maths.verify(str(x + 1), text) is Outcome.WRONG


@given(st.integers(), st.sampled_from([',', ' ', '{,}', '\\,', '\u202f']))
def test_thousands_separators(n, mark):
  assert arithmetic.number(spelling.canonical(f'{n:,}'.replace(',', mark))) == n


@given(st.text(max_size=40))
def test_any_text_has_a_canonical_form_or_none(text):
  once = spelling.canonical(text)
  assert once is None or once.strip()


ANSWERS = json.loads((pathlib.Path(__file__).parent / 'answers' / 'maths.json').read_text())
ROWS = [(g, a if isinstance(a, str) else a['text'] * a['times'], Outcome(want))
        for rows in ANSWERS.values() for g, a, want in rows]  # fmt: skip
# Left out of the suite, as nobody can tell without the question: '0.5%' for 0.5, '1,5' for 1.5,
# '3:4' for 3/4, '(3, 4)' for 'x = 3, y = 4', 5 oranges for 5 apples, \log of which base, and
# '\sqrt12', which LaTeX sets as √1 · 2.


def test_the_whole_adversarial_suite():
  assert len({(gold, answer) for gold, answer, _ in ROWS}) >= 200
  found = [maths.verify(gold, answer) for gold, answer, _ in ROWS]
  bad = [
    f'gold {gold!r} answer {answer[:60]!r}: {got.value}, expected {want.value}'
    for (gold, answer, want), got in zip(ROWS, found, strict=True)
    if got is not want
  ]
  assert not bad, '\n' + '\n'.join(bad)


def test_what_is_parseable_is_equal_to_itself():
  assert not [
    text
    for row in ROWS
    for text in row[:2]
    if row[2] is Outcome.CORRECT and maths.verify(text, text) is not Outcome.CORRECT
  ]


def test_equality_is_symmetric_where_neither_side_is_a_choice():
  swapped = [(gold, answer, maths.verify(answer, gold)) for gold, answer, want in ROWS
             if want is Outcome.CORRECT]  # fmt: skip
  assert not [row for row in swapped if row[2] is not Outcome.CORRECT]


@settings(deadline=None)
@given(st.text(), st.text())
def test_no_text_raises(gold, answer):
  outcomes = {maths.verify(gold, answer), maths.verify(answer, answer), maths.verify('5', answer)}
  assert outcomes <= {Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE}


@settings(deadline=None, max_examples=300)
@given(st.text('0123456789.,+-*/^_!%=<>()[]{}|\\ xeiπ√½²×−∞∪$;:&', max_size=24))
def test_no_mathematical_noise_raises_and_each_is_itself_or_nothing(text):
  assert maths.verify(text, text) in (Outcome.CORRECT, Outcome.UNPARSEABLE)


@given(st.integers())
def test_integers_come_back_from_print(n):
  for text in (str(n), f'{n:,}', f'${n}$', f'\\boxed{{{n}}}', f'{n}.0', f'{n}.'):
    assert arithmetic.number(spelling.canonical(text)) == n
  assert maths.verify(str(n), f'{n:,}') is Outcome.CORRECT
  assert maths.verify(str(n), str(n + 1)) is Outcome.WRONG


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_decimals_come_back_from_print(x):
  assert arithmetic.number(spelling.canonical(f'{x:f}')) == Fraction(x)
  assert maths.verify(f'{x:f}', f'{x:f}000') is Outcome.CORRECT


@given(st.integers(-99, 99), st.integers(1, 99), st.integers(1, 9), st.integers(1, 9))
def test_expressions_agree_with_arithmetic(a, b, c, d):
  value = Fraction(a, b) ** c * d - Fraction(c, d)
  text = f'\\left(\\frac{{{a}}}{{{b}}}\\right)^{c} \\cdot {d} - \\frac{{{c}}}{{{d}}}'
  assert maths.verify(str(value), text) is Outcome.CORRECT
  assert maths.verify(str(value + Fraction(1, 10**9)), text) is Outcome.WRONG


@given(st.integers(2, 10**6), st.integers(1, 10**6))
def test_radicals_agree_with_floats(n, k):
  text = f'{k}+\\sqrt{{{n}}}'
  assert maths.verify(text, f'{k + math.sqrt(n):.9f}') is Outcome.CORRECT
  assert maths.verify(text, f'{k + math.sqrt(n) + 0.001:.9f}') is Outcome.WRONG


@given(st.sets(st.integers(-999, 999), min_size=2, max_size=5))
def test_sets_have_no_order_and_tuples_have_one(numbers):
  ordered, text = sorted(numbers), lambda xs: ', '.join(map(str, xs))
  back = ordered[::-1]
  assert maths.verify(f'\\{{{text(ordered)}\\}}', f'\\{{{text(back)}\\}}') is Outcome.CORRECT
  assert maths.verify(f'({text(ordered)})', f'({text(ordered)})') is Outcome.CORRECT
  assert maths.verify(f'({text(ordered)})', f'({text(back)})') is Outcome.WRONG


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=4))
def test_a_union_is_the_numbers_in_it(spans):
  ends = [(a, a + length) for a, length in spans]
  inside = [any(a <= x / 2 <= b for a, b in ends) for x in range(90)]
  starts = [x for x in range(90) if inside[x] and not (x and inside[x - 1])]
  stops = [x for x in range(90) if inside[x] and not inside[x + 1]]
  union = '\\cup'.join(f'[{a},{b}]' for a, b in ends)
  merged = '\\cup'.join(f'[{x // 2},{y // 2}]' for x, y in zip(starts, stops, strict=True))
  assert maths.verify(merged, union) is Outcome.CORRECT
  assert maths.verify(merged, union + '\\cup[99,100]') is Outcome.WRONG


PIECES = (
  '5', ' ', '(', '{', '[', '-', '5^', '5+', '\\frac{1}{', '\\sqrt', '√', '|', '$', '1,234,', '<a',
  '\\boxed{', '\\boxed{5}', '5 or ', 'x=', '5:', '\\text{', '5!', '9^9^', 'sin ', '5 cm ', '1/2 ',
  '\\begin{pmatrix}', '5\\cup', '\\pm', '½', 'million ', '**', 'the answer is ', 'so ', '⦃', '𝟝',
)  # fmt: skip


@pytest.mark.parametrize('piece', PIECES)
@pytest.mark.parametrize('length', [spelling.MAX_CHARS, 1_000_000])
def test_long_answers_take_no_time(piece, length):
  maths.verify('x \\ne 1', 'x \\ne 2')  # sympy is loaded
  answer = (piece * length)[:length]
  begin = time.perf_counter()
  assert maths.verify('7', answer) is not Outcome.CORRECT
  seconds = time.perf_counter() - begin
  # A million characters are refused at once; a thousand are read, and the machine is shared.
  assert seconds < (0.05 if length > spelling.MAX_CHARS else 0.5)


def test_numbers_too_long_to_compute_are_equal_to_their_own_text_alone():
  tower = '9^{9^{9^{9}}}'
  assert maths.verify(tower, tower) is Outcome.CORRECT
  assert maths.verify(tower, '9^{9^{9^{8}}}') is Outcome.WRONG
  assert maths.verify(tower, tower + '+1') is Outcome.WRONG
  assert maths.verify('5', '10^{10^{10}}-10^{10^{10}}+5') is Outcome.WRONG


def test_keys_of_equal_numbers_are_equal():
  keys = {spelling.answer_key(t) for t in ('1/2', '0.50', '\\frac{2}{4}', '\\boxed{\\frac12}', '½')}
  assert keys == {'1/2'}
  assert spelling.answer_key('x + 1') == spelling.answer_key('$x+1$') != spelling.answer_key('x+2')
  assert spelling.answer_key('5 5') is None


@pytest.mark.parametrize(
  ('text', 'value', 'scale', 'dimensions'),
  [
    ('5 cm', 5, Fraction(1, 100), {'m': 1}),
    ('5 square feet', 5, Fraction(3048, 10000) ** 2, {'m': 2}),
    ('36 km/h', 36, Fraction(1000, 3600), {'m': 1, 's': -1}),
    ('3 million dollars', 3_000_000, 1, {'dollar': 1}),
    ('$7', 7, 1, {'dollar': 1}),
    ('2 1/2 hours', Fraction(5, 2), 3600, {'s': 1}),
  ],
)
def test_units(text, value, scale, dimensions):
  number = expressions.scalar(text)
  assert number.values == (value, value)
  assert number.unit == (scale, tuple(sorted(dimensions.items())))


@pytest.mark.parametrize('text', ['x 5', '2(', '5//1', 'sqrt', 'a.b', 'eval(5)', '5 _ 6'])
def test_what_is_no_expression_is_refused(text):
  with pytest.raises(UnreadableError):
    expressions.scalar(text)


@pytest.mark.parametrize('text', ['5/0', '\\frac{1}{1-1}', '0^{-1}', '5 cm/0'])
def test_what_has_no_value_is_undefined(text):
  with pytest.raises((UndefinedError, UnreadableError)):
    expressions.scalar(text)
  assert maths.verify(text, text) is Outcome.UNPARSEABLE
