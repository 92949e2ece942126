"""Chat templates: Jinja programs that public models carry, run in a sandbox.

The environment is the one that `transformers` gives them (`apply_chat_template`): blocks trimmed,
loop controls, `{% generation %}`, `tojson` that leaves text as it is, `raise_exception` and
`strftime_now`. The latter tells one fixed day, the one that Meta's templates fall back to, and what
draws at random is taken out: a prompt is a function of its messages, today and in ten years. A
template comes from strangers: Jinja's immutable sandbox keeps it from Python's internals and bounds
its ranges.

Injection. A message may hold the text of a control token ('<|im_end|>'). `Guard` swaps the first
character of each such place for a private one that occurs neither in the messages nor in the
template, before rendering: trims, splits and concatenations of the template work, and what reads as
a control token in the rendered text was written by the template. Cost: one scan of the text.
"""

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from r1jax.core.errors import UserError
from r1jax.core.text import THINK_CLOSE, THINK_OPEN

TODAY = datetime.date(2024, 7, 26)
_PRIVATE = (0xF0000, 0xFFFFE)  # characters to which Unicode gives no meaning
THOUGHT = (THINK_OPEN, THINK_CLOSE)
FAILURES = (  # of a stranger's program; recursion without end is a RuntimeError
  *(jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError),
  *(RuntimeError, MemoryError),
)


class _Generation(jinja2.ext.Extension):
  """`{% generation %}…{% endgeneration %}` marks an assistant's words for training: its body."""

  tags = frozenset({'generation'})

  def parse(self, parser: Any) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


class ChatTemplate:
  """A template compiled once; `where` names it in errors."""

  def __init__(self, source: str, where: str):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    env.filters['tojson'] = _tojson
    del env.filters['random'], env.globals['lipsum']
    env.globals |= {'raise_exception': _refuse, 'strftime_now': TODAY.strftime}
    self.source, self._where = source, where
    try:
      self._compiled = env.from_string(source)
    except FAILURES as e:
      raise UserError(
        f'{where}: the chat template is not Jinja that can be compiled ({_line(e)}); mend it'
      ) from e

  def render(
    self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, **texts: str
  ) -> str:
    """The conversation as one text; `texts` are the model's own ('bos_token', …)."""
    try:
      return self._compiled.render(
        messages=[dict(m) for m in messages],
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **texts,
      )
    except FAILURES as e:
      roles = ', '.join(m['role'] for m in messages)
      raise UserError(
        f'{self._where}: the chat template refuses messages of the roles {roles} ({_line(e)}); '
        'give the roles that it expects, or mend it'
      ) from e


class Guard:
  """Hides the control tokens of messages, so that a rendered text holds the template's alone."""

  def __init__(self, controls: Iterable[str]):
    texts = sorted(controls)
    self._first = sorted({text[0] for text in texts})
    self._starts = re.compile(f'(?={any_of(texts)})(?s:.)')

  def hide(
    self, messages: Sequence[Mapping[str, str]], template: str
  ) -> tuple[list[dict[str, str]], dict[int, str]]:
    """The messages without a control token, and the table with which `str.translate` undoes it.

    An assistant's own thought tags stay: templates take earlier turns apart at them.
    """
    used = set().union(template, *(m['content'] for m in messages))
    swap = dict(zip(self._first, (c for c in map(chr, range(*_PRIVATE)) if c not in used)))

    def hidden(text: str, spared: tuple[str, ...]) -> str:
      unless = lambda m: m[0] if text.startswith(spared, m.start()) else swap[m[0]]
      return self._starts.sub(unless, text)

    return [
      {**m, 'content': hidden(m['content'], THOUGHT if m['role'] == 'assistant' else ())}
      for m in messages
    ], {ord(p): c for c, p in swap.items()}


def any_of(texts: Iterable[str]) -> str:
  """A pattern that finds the longest of the texts, of many as fast as of one."""
  longest = sorted(texts, key=len, reverse=True)
  first = sorted({text[0] for text in longest})  # asked first: few characters begin any of them
  every, begins = ('|'.join(map(re.escape, options)) or '(?!)' for options in (longest, first))
  return f'(?={begins})(?:{every})'


def _tojson(
  x: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  return json.dumps(
    x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _line(e: Exception) -> str:
  return ' '.join(str(e).split()) or type(e).__name__
