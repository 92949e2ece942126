"""Judged completions: which of two is better, how good one is, which of its steps are sound.

    Pairs      fields of records          a better and a worse completion        kind 'pairs'
    Labelled   fields of records          a completion and 0 … 1                 kind 'labels'
    Steps      fields of records          a completion in steps, 0 … 1 for each  kind 'steps'
    Mistakes   the run's task, split sft  worked solutions and mistaken ones     all three

A completion is the text that follows the prompt, R1's tags in it; a record's field 'system', where
it has one, goes into the prompt. One row of a batch holds one,
padded to a static width and never cut: what does not fit is an error when the data is opened, as is
anything else that cannot be used. Rows of a pair are neighbours, 2i the better and 2i+1 the worse,
so that a split of the batch keeps pairs whole. Documents come in a seeded order, another one each
epoch: a batch is a function of (seed, step).

The end token is a target and never an input: the last input is the last token of the text, and a
cut-off completion is judged like a whole one. Cost: all tokens in memory, 8 bytes each.
"""

import dataclasses
import numbers
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from r1jax.core.errors import UserError, no_such
from r1jax.core.text import ANSWER_CLOSE, ANSWER_OPEN, TAGS, THINK_CLOSE, THINK_OPEN
from r1jax.data import batch as batches
from r1jax.data import order, sources
from r1jax.data.batch import Batch, Row
from r1jax.data.sources import Share
from r1jax.records import make as records_make
from r1jax.records.make import RecordSpec
from r1jax.records.record import RecordError, Records
from r1jax.tasks import mistakes
from r1jax.tasks.task import Example, Task
from r1jax.tokenizers.tokenizer import EOS, Tokenizer

Kind = Literal['pairs', 'labels', 'steps']
_TAG = re.compile(f'({"|".join(map(re.escape, TAGS))})')


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Fields of records: a question and two whole completions of it."""

  records: RecordSpec
  question: str = 'question'
  chosen: str = 'chosen'
  rejected: str = 'rejected'
  share: Share = (0.0, 1.0)

  def __post_init__(self):
    sources.check_share(self.share)


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Fields of records: a question, a whole completion, and a number in [0, 1]."""

  records: RecordSpec
  question: str = 'question'
  completion: str = 'completion'
  label: str = 'label'
  share: Share = (0.0, 1.0)

  def __post_init__(self):
    sources.check_share(self.share)


@dataclasses.dataclass(frozen=True)
class Steps:
  """Fields of records: a question, a list of steps, a list of as many numbers in [0, 1].

  joint: what stands between two steps; it belongs to the first, which is judged behind it.
  """

  records: RecordSpec
  question: str = 'question'
  steps: str = 'steps'
  labels: str = 'labels'
  joint: str = '\n'
  share: Share = (0.0, 1.0)

  def __post_init__(self):
    sources.check_share(self.share)


@dataclasses.dataclass(frozen=True)
class Mistakes:
  """Worked solutions skip … skip+examples−1 of the run's task and a mistaken copy of each."""

  examples: int = 2000
  skip: int = 0

  def __post_init__(self):
    if self.examples < 1 or self.skip < 0:
      raise ValueError(f'examples={self.examples}, skip={self.skip}; expected ≥ 1 and ≥ 0')


PreferenceData = Pairs | Labelled | Steps | Mistakes


class Completion(NamedTuple):
  """One row: its tokens, the inputs that end what is judged, and the judgements."""

  row: Row
  ends: tuple[int, ...]
  labels: tuple[float, ...]


class Judged(NamedTuple):
  """A batch, a completion a row; a row without weights only fills it up.

  last_B: position of the completion's last input. label_B: 1 better, 0 worse; or the label; or the
  least of its steps. end_BL and label_BL: where a judged step ends, and its label. ref_B: log-probs
  of the completions under the reference, for an objective that asks for them.
  """

  batch: Batch
  last_B: jax.Array
  label_B: jax.Array
  end_BL: jax.Array
  label_BL: jax.Array
  ref_B: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Documents:
  """What a stage reads: completions by document, two for pairs."""

  name: str
  groups: tuple[tuple[Completion, ...], ...]
  fingerprint: str

  def __len__(self) -> int:
    return len(self.groups)


class _Draft(NamedTuple):
  """A completion as text, in the pieces that are judged."""

  where: str
  question: str
  pieces: Sequence[str]
  labels: Sequence[float]
  system: str | None = None


def make(
  spec: PreferenceData, kind: Kind, task: Task | None, tok: Tokenizer, width: int
) -> Documents:
  """Opens and tokenizes all that `spec` names; `task` is the run's, `width` the inputs of a row."""
  if isinstance(spec, Mistakes):
    if task is None:
      raise UserError("Mistakes(…) is of the run's task, and the run has none; name a task")
    examples = sources.worked(task, spec.skip + spec.examples)[spec.skip :]
    name, groups = task.name, [g for e in examples for g in _mistakes(e, kind)]
    print_ = sources.hashed('mistakes', spec.skip, len(examples), examples[0], examples[-1])
  else:
    gives = {Pairs: 'pairs', Labelled: 'labels', Steps: 'steps'}[type(spec)]
    if gives != kind:
      raise UserError(
        f"data is {type(spec).__name__}(…), which gives '{gives}', the objective learns from "
        f"'{kind}'; choose the other's match"
      )
    records = records_make.make(spec.records)
    name, groups = records.name, _from_records(spec, records)
    fields = {n: v for n, v in vars(spec).items() if n not in ('records', 'share')}
    print_ = sources.hashed(kind, records.fingerprint(), sorted(fields.items()))
  made = tuple(tuple(_completion(tok, draft, width) for draft in group) for group in groups)
  return Documents(name, made, print_)


def encode(tok: Tokenizer, text: str) -> list[int]:
  """Ids of a piece of a completion; R1's tags become the template's own tokens."""
  parts = (part for part in _TAG.split(text) if part)
  return [i for p in parts for i in (tok.encode_special(p) if p in TAGS else tok.encode(p))]


def judged_row(
  tok: Tokenizer, question: str, pieces: Sequence[str], system: str | None = None
) -> tuple[list[int], int, list[int]]:
  """(prompt and completion, length of the prompt, where the pieces end) as inputs of a judge."""
  first, *rest = pieces
  ids = tok.prompt(question, system)
  prompt, ends = len(ids), []
  for piece in (unopened(tok, first), *rest):
    ids = [*ids, *encode(tok, piece)]
    ends.append(len(ids) - 1)
  return ids, prompt, ends


def unopened(tok: Tokenizer, text: str) -> str:
  """A completion without what the prompt of a public template holds of it already."""
  return text.removeprefix(tok.opened).removeprefix(THINK_OPEN if tok.opened else '')


def taken(docs: Documents, start: int, count: int, *seed: order.Key) -> list[Completion]:
  """The rows of documents start … start+count−1 of epoch after epoch, each in its own order."""
  n = len(docs)
  places = (divmod(i, n) for i in range(start, start + count))
  return [c for epoch, i in places for c in docs.groups[order.index(i, n, *seed, epoch)]]


def batch(rows: Sequence[Completion], size: int, width: int, depths: int = 0) -> Judged:
  """The rows as a batch of `size`, what is over of it empty; on the host."""
  lines = [[c.row] for c in rows] + [[] for _ in range(size - len(rows))]
  end_BL, label_BL = np.zeros((size, width), bool), np.zeros((size, width), np.float32)
  last_B, label_B = np.zeros(size, np.int32), np.zeros(size, np.float32)
  for b, c in enumerate(rows):
    last_B[b], label_B[b] = len(c.row.tokens) - 2, min(c.labels)
    end_BL[b, list(c.ends)], label_BL[b, list(c.ends)] = True, c.labels
  return Judged(batches.batch(lines, width, depths), last_B, label_B, end_BL, label_BL)


def _completion(tok: Tokenizer, draft: _Draft, width: int) -> Completion:
  """The row of a draft."""
  ids, prompt, ends = judged_row(tok, draft.question, draft.pieces, draft.system)
  if any(end == before for before, end in zip((prompt - 1, *ends), ends)):
    raise RecordError(
      f'{draft.where}: a completion or a step of it is empty, expected text; remove the row'
    )
  ids = [*ids, *tok.encode_special(EOS)]
  if len(ids) - 1 > width:
    raise RecordError(f'{draft.where}: {len(ids) - 1} inputs, a row holds {width}; raise width')
  weights = np.repeat(np.float32([0, 1]), [prompt, len(ids) - prompt])
  return Completion(Row(np.array(ids, np.int32), weights), tuple(ends), tuple(draft.labels))


def _mistakes(e: Example, kind: Kind) -> list[tuple[_Draft, ...]]:
  """An example and its mistaken copy: one pair, or two documents with labels."""
  wrong = mistakes.mistaken(e)
  where = f'problem {e.id}'
  sound = in_pieces(e.solution, e.answer), [1.0] * len(mistakes.steps(e.solution, e.answer))
  unsound = in_pieces(wrong.solution, wrong.answer), mistakes.labels(wrong)
  drafts = [
    _Draft(where, e.question, pieces, labels, e.system)
    if kind == 'steps'
    else _Draft(where, e.question, [''.join(pieces)], [min(labels)], e.system)
    for pieces, labels in (sound, unsound)
  ]
  return [tuple(drafts)] if kind == 'pairs' else [(draft,) for draft in drafts]


def in_pieces(solution: str, answer: str) -> list[str]:
  """The well-formed completion of `mistakes.steps`, a piece each."""
  *lines, last = solution.split('\n')
  first, *rest = [*(f'{line}\n' for line in lines), f'{last}{THINK_CLOSE}']
  return [f'{THINK_OPEN}{first}', *rest, f'{ANSWER_OPEN}{answer}{ANSWER_CLOSE}']


def _from_records(spec: Pairs | Labelled | Steps, records: Records) -> Iterator[tuple[_Draft, ...]]:
  """The rows of a share."""
  for i in sources._documents(records, spec.share):
    where = records.where(i)
    match spec:
      case Pairs():
        fields = spec.question, spec.chosen, spec.rejected
        question, better, worse, system = sources.prompted(records, i, fields)
        yield (
          _Draft(where, question, [better], [1.0], system),
          _Draft(where, question, [worse], [0.0], system),
        )
      case Labelled():
        question, text, system = sources.prompted(records, i, (spec.question, spec.completion))
        labels = _labels(where, [_field(spec, records, i, 'label')])
        yield (_Draft(where, question, [text], labels, system),)
      case Steps():
        question, system = sources.prompted(records, i, (spec.question,))
        steps, labels = (_field(spec, records, i, name) for name in ('steps', 'labels'))
        pieces = _steps(where, steps, labels, spec.joint)
        yield (_Draft(where, question, pieces, _labels(where, labels), system),)


def _field(spec: Labelled | Steps, records: Records, i: int, name: str) -> Any:
  """What row i has in the field that `spec` calls `name`."""
  row, field = records[i], getattr(spec, name)
  if field not in row:
    raise RecordError(f'{records.where(i)}: {no_such("field", field, row)}')
  return row[field]


def _labels(where: str, given: Any) -> list[float]:
  """Numbers in [0, 1]."""
  for x in given:
    if not isinstance(x, numbers.Real) or not 0 <= x <= 1:
      raise RecordError(f'{where}: label {x!r}, expected a number from 0 to 1')
  return [float(x) for x in given]


def _steps(where: str, steps: Any, labels: Any, joint: str) -> list[str]:
  """The pieces of a completion in steps."""
  lists = all(
    isinstance(x, Sequence | np.ndarray) and not isinstance(x, str) for x in (steps, labels)
  )
  if not lists or not len(steps) or len(steps) != len(labels):
    raise RecordError(f'{where}: expected a list of steps and as many labels; mend the row')
  if not all(isinstance(s, str) for s in steps):
    raise RecordError(f'{where}: a step is no text; expected a list of texts')
  return [*(s + joint for s in steps[:-1]), steps[-1]]
