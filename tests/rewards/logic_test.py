"""Puzzles and entailments, against truth tables and against answers that people and models give."""

import itertools
import json
import pathlib
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.rewards.logic import Derivation, Entailment, Puzzle, verify
from r1jax.rewards.logic.formulas import MAX_CHARS, parse
from r1jax.rewards.outcome import Outcome

ANSWERS = json.loads((pathlib.Path(__file__).parent / 'answers' / 'logic.json').read_text())
KINDS = {kind.__name__: kind for kind in (Puzzle, Entailment, Derivation)}
KNIGHTS = Puzzle(('A <-> not B', 'B <-> (not A and not B)'), roles=('knight', 'knave'))
ATOMS = ('A', 'B', 'C')
SIGNS = {
  '&': lambda a, b: a and b,
  '|': lambda a, b: a or b,
  '^': lambda a, b: a != b,
  '->': lambda a, b: b or not a,
  '<->': lambda a, b: a == b,
}
# One formula in the spellings of each sign.
SPELLINGS = {
  '&': ('and', '∧', '&', '&&', '\\land', '\\wedge'),
  '|': ('or', '∨', '|', '||', '\\lor', '\\vee'),
  '^': ('xor', '⊕', '\\oplus'),
  '->': ('->', '→', '=>', '⇒', '\\to', '\\rightarrow', '\\implies', 'implies'),
  '<->': ('<->', '↔', '<=>', '⇔', '≡', '\\leftrightarrow', '\\iff', 'iff'),
  '~': ('not', '¬', '~', '!', '\\neg', '\\lnot'),
}
FORMULAS = st.recursive(
  st.sampled_from([('name', a) for a in ATOMS]),
  lambda f: st.tuples(st.just('~'), f) | st.tuples(st.sampled_from(list(SIGNS)), f, f),
  max_leaves=8,
)


def build(row: list) -> tuple:
  """(problem, answer, outcome) of a row of the suite."""
  kind, fields, answer, want = row
  tuples = lambda x: tuple(map(tuples, x)) if isinstance(x, list) else x
  problem = KINDS[kind](**{name: tuples(value) for name, value in fields.items()})
  text = answer if isinstance(answer, str) else answer['text'] * answer['times']
  return problem, text, Outcome(want)


def shown(formula: tuple, spell=lambda sign: sign) -> str:
  """The formula as text, every bracket written."""
  sign, *parts = formula
  if sign == 'name':
    return parts[0]
  texts = [shown(part, spell) for part in parts]
  return f'{spell(sign)} {texts[0]}' if sign == '~' else f'({texts[0]} {spell(sign)} {texts[1]})'


def truth(formula: tuple, world: dict) -> bool:
  """The oracle: a formula's value where the names have these values."""
  sign, *parts = formula
  if sign == 'name':
    return world[parts[0]]
  values = [truth(part, world) for part in parts]
  return not values[0] if sign == '~' else SIGNS[sign](*values)


def worlds() -> list[dict]:
  """All values of all names."""
  return [dict(zip(ATOMS, w)) for w in itertools.product((False, True), repeat=len(ATOMS))]


def test_the_whole_adversarial_suite():
  rows = [build(row) for row in ANSWERS]
  assert len({(p, answer) for p, answer, _ in rows}) >= 60
  found = [verify(problem, answer) for problem, answer, _ in rows]
  bad = [
    f'{problem} answer {answer[:60]!r}: {got.value}, expected {want.value}'
    for (problem, answer, want), got in zip(rows, found, strict=True)
    if got is not want
  ]
  assert not bad, '\n' + '\n'.join(bad)


@given(FORMULAS)
def test_a_printed_formula_is_read_as_itself(formula):
  assert parse(shown(formula)) == formula or '~' in shown(formula)
  for world in worlds():
    assert truth(parse(shown(formula)), world) == truth(formula, world)


@given(FORMULAS, st.data())
def test_every_spelling_of_a_sign_is_read(formula, data):
  spell = lambda sign: data.draw(st.sampled_from(SPELLINGS[sign]))
  assert parse(shown(formula, spell)) == parse(shown(formula))


@pytest.mark.parametrize(
  ('text', 'same'),
  [
    ('A & B | C', '(A & B) | C'), ('A | B & C', 'A | (B & C)'), ('~A & B', '(~A) & B'),
    ('A -> B -> C', 'A -> (B -> C)'), ('A <-> B -> C', 'A <-> (B -> C)'),
    ('A | B -> C & A', '(A | B) -> (C & A)'), ('if A then B', 'A -> B'), ('~~A', 'A'),
  ],
)  # fmt: skip
def test_binding(text, same):
  assert parse(text) == parse(same)


@settings(max_examples=60, deadline=None)
@given(st.lists(FORMULAS, max_size=3), FORMULAS)
def test_entailment_agrees_with_the_truth_table(premises, conclusion):
  problem = Entailment(tuple(map(shown, premises)), shown(conclusion))
  seen = {truth(conclusion, w) for w in worlds() if all(truth(p, w) for p in premises)}
  answers = {a: verify(problem, a) for a in ('True', 'False', 'Unknown')}
  if not seen:
    assert set(answers.values()) == {Outcome.UNPARSEABLE}
  else:
    right = str(seen.pop()) if len(seen) == 1 else 'Unknown'
    assert [a for a in answers if answers[a] is Outcome.CORRECT] == [right]
    assert list(answers.values()).count(Outcome.WRONG) == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(FORMULAS, min_size=1, max_size=4))
def test_puzzles_agree_with_the_truth_table(constraints):
  constraints = [*constraints, *(('|', ('name', a), ('~', ('name', a))) for a in ATOMS)]
  problem = Puzzle(tuple(map(shown, constraints)))
  models = [w for w in worlds() if all(truth(c, w) for c in constraints)]
  for world in worlds():
    outcome = verify(problem, ', '.join(f'{a}={int(v)}' for a, v in world.items()))
    if not models or (len(models) > 1 and world in models):
      assert outcome is Outcome.UNPARSEABLE
    else:
      assert outcome is (Outcome.CORRECT if world in models else Outcome.WRONG)


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_no_text_raises(text):
  for problem in (KNIGHTS, Entailment(('A',), 'B'), Entailment((text,), text), Derivation(('A',)),
                  Puzzle((text,)), Puzzle(('A = B',), ((text, (text, 1)),))):  # fmt: skip
    assert isinstance(verify(problem, text), Outcome)


def test_a_solver_that_gives_up_is_a_timeout():
  holes, birds = range(9), range(10)
  sits = [' or '.join(f'p{b}_{h}' for h in holes) for b in birds]
  alone = [
    f'not (p{a}_{h} and p{b}_{h})' for h in holes for a, b in itertools.combinations(birds, 2)
  ]
  begin = time.perf_counter()
  outcome = verify(Entailment((*sits, *alone), 'p0_0'), 'True', seconds=0.05)
  assert outcome is Outcome.TIMEOUT
  assert time.perf_counter() - begin < 3


@pytest.mark.parametrize('piece', ['A is a knight, ', '(', 'not ', 'A=1 or ', ' ', 'True '])
@pytest.mark.parametrize('length', [MAX_CHARS, 1_000_000])
def test_long_answers_take_no_time(piece, length):
  answer = (piece * length)[:length]
  verify(KNIGHTS, 'A=1, B=0')  # z3 is loaded
  for problem in (KNIGHTS, Entailment(('A',), 'B'), Derivation(('A',))):
    begin = time.perf_counter()
    assert verify(problem, answer) is not Outcome.CORRECT
    assert time.perf_counter() - begin < 0.05


def test_without_z3_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'z3', None)
  with pytest.raises(UserError, match='pip install z3-solver') as e:
    verify(KNIGHTS, 'A=1, B=0')
  assert '\n' not in str(e.value)


def test_a_problem_of_no_known_kind_is_an_error_of_the_caller():
  with pytest.raises(UserError, match='expected a Puzzle'):
    verify('A and B', 'True')
