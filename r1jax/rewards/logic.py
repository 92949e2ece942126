"""Logic by a solver (z3): puzzles answered by an assignment, entailments answered by a word.

    Puzzle      the answer must name every asked variable and extend to a model of the constraints;
    Entailment  premises ⊨ conclusion: True, premises ⊨ ¬conclusion: False, neither: Unknown;
    Derivation  the answer is a formula that follows from the premises and is no tautology.

Formulas are text with a parser of their own, no eval: `(A and not B) -> C`, `¬A ∨ B ↔ C`,
`A \\to B`, `if A then B`, and, over variables with domains, `alice = red`, `x + 1 < y`,
`distinct(x, y, z)`.
Binding, tightest first: not; and; or, xor; -> (to the right); <->.

A problem that says nothing certain (constraints without or with several solutions, contradictory
premises, a formula outside the grammar) is UNPARSEABLE whatever the answer; a solver that gives up
within `seconds` is TIMEOUT. Cost: 1–5 ms, two or three solver calls on a handful of variables.
"""

import dataclasses
import re
import types
from collections.abc import Iterable, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.outcome import Outcome

# Longer texts are no answers and no formulas of a puzzle.
MAX_CHARS = 4_000
# What Python's stack can follow: brackets within brackets, and signs of one formula in all.
_MAX_DEPTH, _MAX_SIGNS = 60, 200

Formula = tuple  # (operator, operand, …); operands are formulas, names and integers


class FormulaError(ValueError):
  """A text that is no formula."""


class _Unsolved(Exception):  # noqa: N818 (an answer of the solver, no error)
  """The solver gave up."""


@dataclasses.dataclass(frozen=True)
class Puzzle:
  """`domains` (name, values) of variables that are not Boolean; `roles` the words for (1, 0).

  asked: the variables that an answer must name; all of them if empty.
  """

  constraints: tuple[str, ...]
  domains: tuple[tuple[str, tuple[str | int, ...]], ...] = ()
  roles: tuple[str, str] = ('true', 'false')
  asked: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entailment:
  """`three`: True, False or Unknown; without it Yes (follows) or No (does not follow)."""

  premises: tuple[str, ...]
  conclusion: str
  three: bool = True


@dataclasses.dataclass(frozen=True)
class Derivation:
  """Which formula follows from the premises?"""

  premises: tuple[str, ...]


def verify(problem: Puzzle | Entailment | Derivation, answer: str, seconds: float = 2.0) -> Outcome:
  """Outcome of an answer; raises only if z3 is missing."""
  if not isinstance(answer, str) or len(answer) > MAX_CHARS:
    return Outcome.UNPARSEABLE
  solver = _Solver(seconds)
  try:
    match problem:
      case Puzzle():
        return _puzzle(problem, answer, solver)
      case Entailment():
        return _entailment(problem, answer, solver)
      case Derivation():
        return _derivation(problem, answer, solver)
  except FormulaError:
    return Outcome.UNPARSEABLE
  except _Unsolved:
    return Outcome.TIMEOUT
  raise UserError(f'problem is {problem!r}; expected a Puzzle, an Entailment or a Derivation')


def _outcome(correct: bool) -> Outcome:
  return Outcome.CORRECT if correct else Outcome.WRONG


# Formulas.

_TOKEN = re.compile(r'\s*(<->|->|[A-Za-z_]\w*|[0-9]{1,9}|!=|<=|>=|[-+()=<>,&|^~])')
_SPELLINGS = (
  (r'\\left(?![a-z])|\\right(?![a-zA-Z])|\$', ' '),
  (r'<=>|<->|↔|⇔|≡|\\(?:leftrightarrow|Leftrightarrow|iff|equiv)(?![a-zA-Z])|\biff\b', ' <-> '),
  (r'=>|→|⇒|⊃|\\(?:to|rightarrow|Rightarrow|implies)(?![a-zA-Z])|\bimplies\b', ' -> '),
  (r'∧|⋀|&&|\\(?:land|wedge)(?![a-zA-Z])|\b(?:and|AND)\b', ' & '),
  (r'∨|⋁|\|\||\\(?:lor|vee)(?![a-zA-Z])|\b(?:or|OR)\b', ' | '),
  (r'⊕|\\oplus(?![a-zA-Z])|\b(?:xor|XOR)\b', ' ^ '),
  (r'≠|\\neq?(?![a-zA-Z])', '!='),
  (r'≤|\\leq?(?![a-zA-Z])', '<='),
  (r'≥|\\geq?(?![a-zA-Z])', '>='),
  (r'¬|!(?!=)|\\(?:neg|lnot)(?![a-zA-Z])|\b(?:not|NOT)\b', ' ~ '),
  (r'==', '='),
)
_BINDING = {'<->': 1, '->': 2, '|': 3, '^': 3, '&': 4}
_WORDS = ('if', 'then', 'else', 'distinct')


def parse(text: str) -> Formula:
  """The formula that `text` writes; FormulaError where it writes none."""
  if len(text) > MAX_CHARS:
    raise FormulaError(f'{len(text)} characters')
  for pattern, sign in _SPELLINGS:
    text = re.sub(pattern, sign, text)
  tokens, at, text = [], 0, text.strip()
  while at < len(text):
    if not (m := _TOKEN.match(text, at)):
      raise FormulaError(text[at : at + 20])
    tokens.append(m[1])
    at = m.end()
  reader = _Reader(tokens)
  formula = reader.formula(1)
  if reader.peek():
    raise FormulaError(reader.peek())
  return formula


class _Reader:
  """Precedence climbing over tokens."""

  def __init__(self, tokens: list[str]):
    self.tokens, self.at, self.depth = tokens, 0, 0
    if sum(token in (*_BINDING, '+', '-') for token in tokens) > _MAX_SIGNS:
      raise FormulaError('too many signs')

  def peek(self) -> str:
    """The next token, or nothing."""
    return self.tokens[self.at] if self.at < len(self.tokens) else ''

  def take(self, *wanted: str) -> str:
    """The next token, if it is one of those wanted."""
    token = self.peek()
    if wanted and token not in wanted:
      return ''
    self.at += 1
    return token

  def expect(self, token: str) -> None:
    """Takes the token or raises."""
    if not self.take(token):
      raise FormulaError(f'expected {token}')

  def formula(self, binding: int) -> Formula:
    """A formula of signs that bind at least so tightly."""
    self.depth += 1
    if self.depth > _MAX_DEPTH:
      raise FormulaError('too deep')
    left = self.unary()
    while _BINDING.get(self.peek(), 0) >= binding:
      sign = self.take()
      # An arrow binds to the right: A -> B -> C is A -> (B -> C).
      right = self.formula(_BINDING[sign] + (sign != '->'))
      left = (sign, left, right)
    self.depth -= 1
    return left

  def unary(self) -> Formula:
    """A negation, a conditional in words, a bracket or a comparison."""
    signs = 0
    while self.take('~'):
      signs += 1
    if self.take('if'):
      left = self.formula(1)
      self.expect('then')
      formula = ('->', left, self.formula(1))
    elif self.take('distinct'):
      self.expect('(')
      terms = [self.term()]
      while self.take(','):
        terms.append(self.term())
      self.expect(')')
      formula = ('distinct', *terms)
    elif self.take('('):
      formula = self.formula(1)
      self.expect(')')
    else:
      formula = self.comparison()
    return ('~', formula) if signs % 2 else formula

  def comparison(self) -> Formula:
    """Two terms and a sign between them, or a name."""
    left = self.term()
    if sign := self.take('=', '!=', '<', '<=', '>', '>='):
      return (sign, left, self.term())
    if left[0] != 'name':
      raise FormulaError('a number is no formula')
    return left

  def term(self) -> Formula:
    """A sum of names and numbers."""
    left = self.operand()
    while sign := self.take('+', '-'):
      left = (sign, left, self.operand())
    return left

  def operand(self) -> Formula:
    """A name or a number."""
    token = self.take()
    if token.isdigit():
      return ('number', int(token))
    if not re.fullmatch(r'[A-Za-z_]\w*', token) or token in _WORDS:
      raise FormulaError(token or 'end of text')
    return ('name', token)


def names(formula: Formula) -> set[str]:
  """The names in a formula, but not True and False."""
  if formula[0] == 'name':
    return {formula[1]} - {'True', 'False', 'true', 'false'}
  return set().union(*(names(part) for part in formula[1:] if isinstance(part, tuple)))


# The solver.


class _Solver:
  """z3 with a limit of time, over Booleans and variables of finite domains."""

  def __init__(self, seconds: float, domains: Iterable[tuple[str, Sequence[str | int]]] = ()):
    self.z3, self.milliseconds, self.domains = _z3(), max(1, int(1000 * seconds)), dict(domains)
    labels = [v for values in self.domains.values() for v in values if isinstance(v, str)]
    # Labels are numbers apart from the numbers that variables may have.
    self.labels = {label: -1 - i for i, label in enumerate(dict.fromkeys(labels))}

  def within(self, domains: Iterable[tuple[str, Sequence[str | int]]]) -> '_Solver':
    """The same limit over these domains."""
    return _Solver(self.milliseconds / 1000, domains)

  def satisfiable(self, *terms: Any) -> bool:
    """Whether the terms have a common model, in the domains."""
    solver = self.z3.Solver()
    solver.set('timeout', self.milliseconds)
    solver.add(*terms, *(self._member(name) for name in self.domains))
    found = solver.check()
    if found == self.z3.unknown:
      raise _Unsolved
    return found == self.z3.sat

  def value(self, value: str | int) -> int:
    """A domain's value as the number that stands for it."""
    return self.labels[value] if isinstance(value, str) else value

  def _member(self, name: str) -> Any:
    return self.z3.Or([self.z3.Int(name) == self.value(v) for v in self.domains[name]])

  def term(self, formula: Formula) -> Any:
    """The formula in z3."""
    z3, (sign, *parts) = self.z3, formula
    if sign == 'number':
      return z3.IntVal(parts[0])
    if sign == 'name':
      return self._name(parts[0])
    left, *rest = (self.term(part) for part in parts)
    if sign == 'distinct':
      return z3.Distinct(left, *rest)
    logical = sign in ('~', *_BINDING)
    sorts = {z3.is_bool(x) for x in (left, *rest)}
    if sorts != {True} if logical else (len(sorts) > 1 or (True in sorts and sign not in '!=')):
      raise FormulaError(f'{sign} between {formula[1:]}')
    if sign == '~':
      return z3.Not(left)
    return self._join(sign, left, rest[0])

  def _join(self, sign: str, a: Any, b: Any) -> Any:
    z3 = self.z3
    match sign:
      case '&':
        return z3.And(a, b)
      case '|':
        return z3.Or(a, b)
      case '->':
        return z3.Implies(a, b)
      case '<->' | '=':
        return a == b
      case '^' | '!=':
        return a != b
      case '+' | '-':
        return a + b if sign == '+' else a - b
      case '<' | '<=':
        return a < b if sign == '<' else a <= b
    return a > b if sign == '>' else a >= b

  def _name(self, name: str) -> Any:
    if name in self.domains:
      return self.z3.Int(name)
    if name in self.labels:
      return self.z3.IntVal(self.labels[name])
    truth = {'true': True, 'false': False}.get(name.casefold())
    return self.z3.Bool(name) if truth is None else self.z3.BoolVal(truth)


def _z3() -> types.ModuleType:
  try:
    import z3
  except ImportError as e:
    raise UserError('logic answers need z3; install it with: pip install z3-solver') from e
  return z3


# Answers.

_TRUE, _FALSE = ('true', 'yes', '1', 't'), ('false', 'no', '0', 'f')
_VERDICTS = {
  **dict.fromkeys(('true', 'yes', 'valid', 'entailed', 'proved', 'follows', 'entailment'), 'True'),
  **dict.fromkeys(('false', 'no', 'disproved', 'refuted', 'contradiction'), 'False'),
  **dict.fromkeys(
    ('unknown', 'uncertain', 'undetermined', 'neither', 'cannot be determined', 'neutral',
     'cannot be inferred', "can't be determined", 'not determined', 'indeterminate'), 'Unknown'),
}  # fmt: skip
_NOT = ('does not follow', 'not valid', 'invalid', 'not entailed', "doesn't follow")
_FILLER = re.compile(
  r'[\s,;.:*&=$(){}\\]|\b(?:so|thus|therefore|hence|final|the|answer|is|are|it|that|solution|and|'
  r'conclusion|statement)\b'
)


_LEAD = re.compile(
  r'^(?:(?:so|thus|therefore|hence)\b)?,?\s*(?:the )?(?:answer|conclusion)\s*(?:is\b|:)\s*',
  re.IGNORECASE,
)


def _plain(answer: str) -> str:
  text = re.sub(r'\\(?:boxed|text|mathrm|textbf)\s*(?=\{)', ' ', answer)
  return ' '.join(re.sub(r'["`$*{}]', ' ', text.replace('’', "'")).split())


def verdicts(answer: str, three: bool) -> set[str]:
  """What an answer to an entailment says: none if it cannot be read, two if it does not decide."""
  text, found = _plain(answer).casefold(), set()
  words = _VERDICTS if three else {w: v for w, v in _VERDICTS.items() if v != 'Unknown'}
  words = words | ({} if three else dict.fromkeys(_NOT, 'False'))
  for word in sorted(words, key=len, reverse=True):
    text, count = re.subn(rf'(?<![\w]){re.escape(word)}(?!\w)', ' ', text)
    found |= {words[word]} if count else set()
  left = _FILLER.sub('', text)
  return found if left in ('', 'or') else set()


def assignment(problem: Puzzle, variables: Iterable[str], answer: str) -> dict[str, set] | None:
  """Values by variable, two where the answer gives two; None where it cannot be read."""
  text = _plain(answer)
  known = {name.casefold(): name for name in variables}
  name = '|'.join(re.escape(n) for n in sorted(known, key=len, reverse=True))
  if not name:
    return None
  found: dict[str, set] = {}
  domains = dict(problem.domains)
  clause = re.compile(
    rf'(?<!\w)(?P<names>(?:{name})(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s*&\s*)(?:{name}))*)(?!\w)'
    r'\s*(?:=|:=|:|->|→|↦|\bis\b|\bare\b)\s*(?P<no>not\s+)?(?:(?:an?|the|both|all)\s+)*'
    r'(?P<value>[\w-]+)(?!\w)',
    re.IGNORECASE,
  )
  for m in clause.finditer(text):
    for one in re.findall(rf'(?<!\w)(?:{name})(?!\w)', m['names'], re.IGNORECASE):
      variable = known[one.casefold()]
      value = _value(m['value'], domains.get(variable), problem.roles)
      if value is None or (m['no'] and variable in domains):
        return None
      found.setdefault(variable, set()).add((not value) if m['no'] else value)
  left = _FILLER.sub('', clause.sub(' ', text).casefold())
  if left == 'or' and found:  # an answer that gives a choice decides nothing
    return {variable: values | {None} for variable, values in found.items()}
  return found if not left and found else None


def _value(word: str, domain: Sequence[str | int] | None, roles: tuple[str, str]) -> Any:
  """The word as a value of the domain, or as a truth value; None if it is neither."""
  word = word.casefold()
  if domain is not None:
    return next((v for v in domain if str(v).casefold() == word), None)
  for truth, words in ((True, _TRUE), (False, _FALSE)):
    role = roles[0 if truth else 1].casefold()
    if word in (*words, role, role + 's', role + 'es'):
      return truth
  return None


# The three kinds of problem.


def _puzzle(problem: Puzzle, answer: str, solver: _Solver) -> Outcome:
  solver = solver.within(problem.domains)
  formulas = [parse(text) for text in problem.constraints]
  terms = [solver.term(formula) for formula in formulas]
  variables = set().union(*map(names, formulas), solver.domains) - set(solver.labels)
  asked = problem.asked or tuple(sorted(variables))
  given = assignment(problem, sorted({*variables, *asked}), answer)
  if given is None or not asked or not solver.satisfiable(*terms):
    return Outcome.UNPARSEABLE
  if any(len(values) > 1 for values in given.values()) or not set(asked) <= set(given):
    return Outcome.WRONG
  equal = [_equals(solver, name, *given[name]) for name in given]
  if not solver.satisfiable(*terms, *equal):
    # A puzzle with several solutions is no gold, but it takes none to see that this is not one.
    return Outcome.WRONG
  shown = [_equals(solver, name, *given[name]) for name in asked]
  several = solver.satisfiable(*terms, solver.z3.Not(solver.z3.And(shown)))
  return Outcome.UNPARSEABLE if several else Outcome.CORRECT


def _equals(solver: _Solver, name: str, value: Any) -> Any:
  term = solver.term(('name', name))
  return term == (solver.value(value) if name in solver.domains else value)


def _entailment(problem: Entailment, answer: str, solver: _Solver) -> Outcome:
  terms = [solver.term(parse(text)) for text in problem.premises]
  conclusion = solver.term(parse(problem.conclusion))
  given = verdicts(answer, problem.three)
  if not given or not solver.satisfiable(*terms):
    return Outcome.UNPARSEABLE
  if not solver.satisfiable(*terms, solver.z3.Not(conclusion)):
    truth = 'True'
  elif not problem.three or not solver.satisfiable(*terms, conclusion):
    truth = 'False'
  else:
    truth = 'Unknown'
  return _outcome(given == {truth})


def _derivation(problem: Derivation, answer: str, solver: _Solver) -> Outcome:
  premises = [parse(text) for text in problem.premises]
  formula = parse(_LEAD.sub('', _plain(answer)).rstrip('. '))
  terms, given = [solver.term(p) for p in premises], solver.term(formula)
  if not terms or not solver.satisfiable(*terms):
    return Outcome.UNPARSEABLE
  denied = solver.z3.Not(given)
  return _outcome(solver.satisfiable(denied) and not solver.satisfiable(*terms, denied))
