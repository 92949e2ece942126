"""What a stage may read, as numbered documents that become rows of tokens.

    Text       a field of records           bos text eos; every token is a target
    Problems   a task's own problems        the same, of 'question ⏎ worked solution ⏎ answer'
    Solved     three fields of records      the chat template; the completion is the target; a row's
                                            field 'system', where it has one, goes into the prompt
    Worked     the run's task, split sft    the same, of its worked solutions

A text longer than a line is cut into pieces of at most `length` inputs; neighbours share one token,
the last target of one and the first input of the next, so that every token is predicted once. What
goes through the chat template is never cut: an answer needs its question.

`share` names documents by fractions, (0, .99) to train and (.99, 1) held out. Bounds are ⌊f·n⌋:
what ends at f and what begins there have nothing in common and leave nothing out.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from r1jax.core.config import ConfigError
from r1jax.core.errors import UserError
from r1jax.data.batch import Row
from r1jax.records import make as records_make
from r1jax.records.make import RecordSpec
from r1jax.records.record import RecordError, Records, text, texts
from r1jax.tasks import make as tasks_make
from r1jax.tasks.make import TaskSpec
from r1jax.tasks.splits import digest
from r1jax.tasks.task import Example, Task
from r1jax.tokenizers import chat
from r1jax.tokenizers.tokenizer import BOS, EOS, Tokenizer

Share = tuple[float, float]


class Source(Protocol):
  """Documents by number, always the same ones in the same order."""

  name: str

  def __len__(self) -> int:
    """Documents."""

  def rows(self, i: int) -> list[Row]:
    """Document i as rows, each of 1 … length inputs; RecordError if it cannot be used."""

  def fingerprint(self) -> str:
    """Short hex of the data, whatever the tokenizer, length and share."""


@dataclasses.dataclass(frozen=True)
class Worked:
  """The first `examples` worked solutions of the run's task, prompts masked."""

  examples: int = 2000


@dataclasses.dataclass(frozen=True)
class Text:
  """A field of records as text to continue."""

  records: RecordSpec
  field: str = 'text'
  share: Share = (0.0, 1.0)

  def __post_init__(self):
    check_share(self.share)


@dataclasses.dataclass(frozen=True)
class Solved:
  """Fields of records as question, thought and answer, prompts masked."""

  records: RecordSpec
  question: str = 'problem'
  thought: str = 'solution'
  answer: str = 'answer'
  share: Share = (0.0, 1.0)

  def __post_init__(self):
    check_share(self.share)


@dataclasses.dataclass(frozen=True)
class Problems:
  """The first `count` problems of a task's split sft, as text to continue."""

  task: TaskSpec
  count: int = 10000
  share: Share = (0.0, 1.0)

  def __post_init__(self):
    check_share(self.share)


SourceSpec = Worked | Text | Solved | Problems


def make(spec: SourceSpec, task: Task | None, tok: Tokenizer, length: int) -> Source:
  """Opens what `spec` names; `task` is the run's, `length` the inputs of a line."""
  match spec:
    case Worked() if task is None:
      raise UserError("source Worked(…) is of the run's task, and the run has none; name a task")
    case Worked():
      return WorkedSource(spec, task, tok, length)
    case Text():
      return TextSource(records_make.make(spec.records), spec.field, spec.share, tok, length)
    case Solved():
      return SolvedSource(spec, records_make.make(spec.records), tok, length)
    case Problems():
      return TextSource(
        Written(tasks_make.make(spec.task), spec.count), 'text', spec.share, tok, length
      )
    case _:
      raise UserError(f'source is {spec!r}; expected Worked(…), Text(…), Solved(…) or Problems(…)')


class WorkedSource:
  """Worked solutions, all in memory; a row longer than a line is an error at once."""

  def __init__(self, spec: Worked, task: Task, tok: Tokenizer, length: int):
    self.name = task.name
    examples = worked(task, spec.examples)
    for e in examples:
      if e.solution is None or e.answer is None:
        raise UserError(
          f'task {task.name} gives no worked solution for {e.id}; '
          'SFT needs Example.solution and .answer'
        )
    lines = (chat.render(tok, e.question, e.solution, e.answer, e.system) for e in examples)
    self._rows = [_row(*line) for line in lines]
    longest = max(len(row.tokens) - 1 for row in self._rows)
    if longest > length:
      raise UserError(f'the longest row has {longest} inputs, a line holds {length}: raise length')
    self._fingerprint = hashed('worked', len(examples), examples[0], examples[-1])

  def __len__(self) -> int:
    return len(self._rows)

  def rows(self, i: int) -> list[Row]:
    """The one row of a solution."""
    return [self._rows[i]]

  def fingerprint(self) -> str:
    """How many, the first and the last."""
    return self._fingerprint


class TextSource:
  """One field of records, cut into pieces of at most `length` inputs."""

  def __init__(self, records: Records, field: str, share: Share, tok: Tokenizer, length: int):
    self.name = records.name
    self._records, self._field, self._tok, self._length = records, field, tok, length
    self._documents = _documents(records, share)

  def __len__(self) -> int:
    return len(self._documents)

  def rows(self, i: int) -> list[Row]:
    """The pieces of a document; an empty text is a RecordError."""
    i = self._documents[i]
    written = text(self._records, i, self._field)
    if not written:
      raise RecordError(
        f"{self._records.where(i)}: field '{self._field}' is empty, expected text; remove the row"
      )
    special, n = self._tok.encode_special, self._length
    tokens = np.array([*special(BOS), *self._tok.encode(written), *special(EOS)], np.int32)
    weights = np.ones(len(tokens), np.float32)
    starts = range(0, len(tokens) - 1, n)
    return [Row(tokens[at : at + n + 1], weights[at : at + n + 1]) for at in starts]

  def fingerprint(self) -> str:
    """The records' and the field."""
    return hashed('text', self._records.fingerprint(), self._field)


class SolvedSource:
  """Questions with solutions from records, through the chat template."""

  def __init__(self, spec: Solved, records: Records, tok: Tokenizer, length: int):
    self.name = records.name
    self._fields = (spec.question, spec.thought, spec.answer)
    self._records, self._tok, self._length = records, tok, length
    self._documents = _documents(records, spec.share)

  def __len__(self) -> int:
    return len(self._documents)

  def rows(self, i: int) -> list[Row]:
    """The one row of a solution; RecordError where a line cannot hold it."""
    i = self._documents[i]
    row = _row(*chat.render(self._tok, *prompted(self._records, i, self._fields)))
    if len(row.tokens) - 1 > self._length:
      raise RecordError(
        f'{self._records.where(i)}: {len(row.tokens) - 1} inputs, a line holds {self._length}; '
        'raise length'
      )
    return [row]

  def fingerprint(self) -> str:
    """The records' and the fields."""
    return hashed('solved', self._records.fingerprint(), *self._fields)


class Written:
  """A task's problems as `Records` of one field, 'text'."""

  def __init__(self, task: Task, count: int):
    self.name, self._examples = task.name, worked(task, count)

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, i: int) -> dict[str, Any]:
    e = self._examples[i]
    if e.answer is None:
      raise RecordError(f'{self.where(i)}: no answer; Problems needs Example.answer')
    return {'text': '\n'.join(part for part in (e.question, e.solution, e.answer) if part)}

  def where(self, i: int) -> str:
    """'task chain_sum problem chain_sum/7'."""
    return f'task {self.name} problem {self._examples[i].id}'

  def fingerprint(self) -> str:
    """How many, the first and the last."""
    return hashed(len(self), self._examples[0], self._examples[-1])


def worked(task: Task, count: int) -> Sequence[Example]:
  """The first `count` problems of split sft, the only one whose solutions may be learned."""
  if count < 1:
    raise UserError(f'{count} problems of task {task.name} asked for; expected 1 or more')
  examples = task.examples('sft', 0, count)
  if len(examples) < count:
    raise UserError(
      f'task {task.name} has {len(examples)} worked problems for sft, the stage asks for {count}; '
      f'ask for {len(examples)} at most'
    )
  return examples


def _row(tokens: Sequence[int], weights: Sequence[float]) -> Row:
  return Row(np.array(tokens, np.int32), np.array(weights, np.float32))


def check_share(share: Share) -> None:
  """ConfigError unless 0 ≤ from < to ≤ 1."""
  if not 0 <= share[0] < share[1] <= 1:
    raise ConfigError(f'share={share}; expected (from, to) with 0 <= from < to <= 1')


def prompted(records: Records, i: int, fields: Sequence[str]) -> list[str | None]:
  """The texts in fields of row i, and last its system prompt, None unless it has one."""
  if records[i].get('system') is None:
    return [*texts(records, i, fields), None]
  return texts(records, i, (*fields, 'system'))


def _documents(records: Records, share: Share) -> range:
  """The numbers of the rows in a share."""
  n = len(records)
  found = range(int(share[0] * n), int(share[1] * n))
  if not found:
    raise UserError(f'share {share} of the {n} rows of {records.name} is empty; widen it')
  return found


def hashed(*parts: Any) -> str:
  """16 hex digits; of an example, its texts alone."""
  texts = [(p.question, p.solution, p.answer) if isinstance(p, Example) else p for p in parts]
  return f'{digest(repr(texts)):016x}'
