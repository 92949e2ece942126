"""Tasks of reasoning-gym: 106 procedural generators with scorers, offline.

Source: github.com/open-thought/reasoning-gym.

Candidate i is item i mod 512 of the dataset with seed base + 512·⌊i/512⌋: some generators prepare
their whole size at once, so the endless stream is cut into chunks. Splits come from the text of the
question (`splits.py`). An answer is correct where the dataset scores it ≥ threshold: several
scorers give junk 0.01 to 0.3.
"""

import dataclasses
import functools
import hashlib
import os
from typing import Any, Literal

from r1jax.core.errors import UserError, no_such
from r1jax.rewards import compose, exact
from r1jax.tasks import solutions
from r1jax.tasks.splits import Splits
from r1jax.tasks.task import Example, Grade, Outcome, Split

_CHUNK = 512
_JUNK = 'no answer at all'
_STYLES = ('plain', 'bare')
# Found by comparing 60 items in processes with other hash seeds (reasoning-gym 0.1.25).
_UNSEEDED = ('codeio', 'list_functions')
_SALTED = (
  *('intermediate_integration', 'isomorphic_strings', 'knight_swap'),
  *('polynomial_multiplication', 'ransom_note', 'word_ladder'),
)
# Only where the expression is the question: that of countdown's metadata is the solution.
_BARE = ('basic_arithmetic', 'chain_sum', 'decimal_chain_sum', 'products')


@dataclasses.dataclass(frozen=True)
class Gym:
  """Dataset and its options by name, `(('min_terms', 3), …)`.

  style 'plain' asks the dataset's own question, 'bare' its expression alone ('4 + 3 - 2').
  form: where a completion has its answer, between R1's tags or as its last number.
  system: a message before each question, for models whose chat template has room for one.
  terse: the share of worked solutions that take all steps at once (`solutions.py`).
  """

  dataset: str = 'chain_sum'
  options: tuple[tuple[str, int | float | str | bool], ...] = ()
  style: Literal['plain', 'bare'] = 'plain'
  form: compose.Form = 'tagged'
  system: str | None = None
  threshold: float = 0.99
  seed: int = 0
  terse: float = 0.0
  weights: compose.RewardWeights = dataclasses.field(default_factory=compose.RewardWeights)


class GymTask:
  """A `Task` over one dataset of reasoning-gym. 'sft' is solved where `solutions` can."""

  def __init__(self, spec: Gym):
    _check(spec)
    self.name = spec.dataset
    self._spec = spec
    # Hashed, so that neighbouring seeds do not give overlapping streams: datasets seed item i with
    # seed + i.
    self._base = int.from_bytes(hashlib.blake2b(str(spec.seed).encode(), digest_size=4).digest())
    self._chunk = functools.lru_cache(maxsize=16)(self._make_chunk)
    self._scorer = self._chunk(0)  # wrong options fail here, not after hours
    self._splits = Splits(lambda i: self._entry(i)['question'])

  def examples(self, split: Split, start: int, count: int) -> list[Example]:
    """Examples of a split; eval and sft hold no question twice."""
    return [self._example(i, split) for i in self._splits.indices(split, start, count)]

  def grade(self, example: Example, completion: str) -> Grade:
    """Scores the answer of a completion with the dataset's scorer."""
    entry = example.meta['entry']
    check = lambda answer: self._check(answer, entry)
    return compose.judge(completion, self._spec.weights, check, self._spec.form)

  def _check(self, answer: str, entry: dict[str, Any]) -> tuple[Outcome, float]:
    try:
      correct = self._passes(answer, entry)
    except (
      Exception
    ):  # scorers raise on answers they cannot read: the answer's fault, and no reward
      return Outcome.UNPARSEABLE, 0.0
    # Some scorers take anything but 'True' for 'False'; there only the gold's own text counts.
    if correct and self._passes_junk(entry):
      correct = (
        entry['answer'] is not None and exact.verify(entry['answer'], answer) is Outcome.CORRECT
      )
    return (Outcome.CORRECT, 1.0) if correct else (Outcome.WRONG, 0.0)

  def _passes(self, answer: str, entry: dict[str, Any]) -> bool:
    return float(self._scorer.score_answer(answer, entry)) >= self._spec.threshold

  def _passes_junk(self, entry: dict[str, Any]) -> bool:
    try:
      return self._passes(_JUNK, entry)
    except Exception:  # as it should be
      return False

  def _make_chunk(self, chunk: int) -> Any:
    import reasoning_gym  # takes seconds

    options = dict(self._spec.options)
    try:
      return reasoning_gym.create_dataset(
        self._spec.dataset, seed=self._base + chunk * _CHUNK, size=_CHUNK, **options
      )
    except (TypeError, ValueError, AssertionError) as e:
      raise UserError(f'reasoning-gym {self._spec.dataset} does not take {options}: {e}') from e

  def _entry(self, index: int) -> dict[str, Any]:
    return self._chunk(index // _CHUNK)[index % _CHUNK]

  def _example(self, index: int, split: Split) -> Example:
    entry = self._entry(index)
    bare = self._spec.style == 'bare'
    worked = solutions.WORKED.get(self._spec.dataset) if split == 'sft' else None
    return Example(
      id=f'{self.name}/{self._base}/{index}',
      question=entry['metadata']['expression'] if bare else entry['question'],
      answer=entry['answer'],
      solution=worked(entry, self._spec.terse) if worked else None,
      system=self._spec.system,
      meta={'entry': entry},
    )


def _check(spec: Gym) -> None:
  """Names, ranges and reproducibility, before any generator starts."""
  from reasoning_gym import factory

  if spec.dataset not in factory.DATASETS:
    raise UserError(no_such('reasoning-gym dataset', spec.dataset, sorted(factory.DATASETS)))
  known = [f.name for f in dataclasses.fields(factory.DATASETS[spec.dataset][1])]
  for name, _ in spec.options:
    if name not in known or name in ('seed', 'size'):
      raise UserError(no_such(f'option of {spec.dataset}', name, set(known) - {'seed', 'size'}))
  if spec.style not in _STYLES:
    raise UserError(no_such('style', spec.style, _STYLES))
  if spec.style == 'bare' and spec.dataset not in _BARE:
    raise UserError(f"style 'bare' is for {', '.join(_BARE)}; use 'plain' for {spec.dataset}")
  if spec.dataset in _UNSEEDED:
    raise UserError(f'{spec.dataset} ignores its seed: runs and splits could not be repeated')
  if spec.dataset in _SALTED and os.environ.get('PYTHONHASHSEED', 'random') == 'random':
    raise UserError(
      f"{spec.dataset} depends on Python's hash seed, new in every process; set PYTHONHASHSEED=0"
    )
  if not 0 <= spec.terse <= 1:
    raise UserError(f'terse={spec.terse}; expected a share in [0, 1]')
  if not 0 < spec.threshold <= 1:
    raise UserError(f'threshold={spec.threshold}; expected a score in (0, 1]')
