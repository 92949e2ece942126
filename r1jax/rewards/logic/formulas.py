"""Logical formulas as text, with a parser of their own, no eval.

`(A and not B) -> C`, `¬A ∨ B ↔ C`, `A \\to B`, `if A then B`, and, over variables with domains,
`alice = red`, `x + 1 < y`, `distinct(x, y, z)`. Binding, tightest first: not; and; or, xor; -> (to
the right); <->. A formula is a tuple of an operator and its operands: ('->', ('name', 'A'), …).

Cost: linear in the text's length.
"""

import re

# Longer texts are no answers and no formulas of a puzzle.
MAX_CHARS = 4_000
# What Python's stack can follow: brackets within brackets, and signs of one formula in all.
_MAX_DEPTH, _MAX_SIGNS = 60, 200

Formula = tuple  # (operator, operand, …); operands are formulas, names and integers


class FormulaError(ValueError):
  """A text that is no formula."""


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
BINDING = {'<->': 1, '->': 2, '|': 3, '^': 3, '&': 4}
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
    if sum(token in (*BINDING, '+', '-') for token in tokens) > _MAX_SIGNS:
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
    while BINDING.get(self.peek(), 0) >= binding:
      sign = self.take()
      # An arrow binds to the right: A -> B -> C is A -> (B -> C).
      right = self.formula(BINDING[sign] + (sign != '->'))
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
