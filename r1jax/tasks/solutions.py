"""Worked solutions by rule: the cold start for reasoning-gym datasets, which ship answers only.

chain_sum: a running sum, one step a line, or the whole sum at once. `4 + 3 - 2 + 5`:

    4+3=7            4+3-2+5=10
    7-2=5
    5+5=10

Solutions that people write are of both kinds; `terse` is the share of the second one, decided by a
coin that the question seeds. Which of the two pays is not in the data.
"""

import random
import re
from collections.abc import Callable
from typing import Any

from r1jax.core.errors import UserError

_CHAIN = re.compile(r'-?\d+(?: [+-] -?\d+)*')


def chain_sum(entry: dict[str, Any], terse: float = 0.0) -> str:
  """The running sum of a chain_sum entry; a single term is its own thought."""
  expression = entry['metadata']['expression']
  if not _CHAIN.fullmatch(expression):
    raise UserError(f"chain_sum expression {expression!r} is not of the form '4 + 3 - 2'")
  first, *rest = expression.split(' ')
  total, lines = int(first), []
  for sign, term in zip(rest[::2], rest[1::2]):
    new = total + int(term) if sign == '+' else total - int(term)
    lines.append(f'{total}{sign}{term}={new}')
    total = new
  if str(total) != entry['answer']:
    raise UserError(
      f'chain_sum gives {entry["answer"]} for {expression!r}, worked out it is {total}'
    )
  if random.Random(expression).random() < terse:
    return f'{expression.replace(" ", "")}={total}'
  return '\n'.join(lines) or first


WORKED: dict[str, Callable[[dict[str, Any], float], str]] = {'chain_sum': chain_sum}
