"""Which samples are kept, and as what rows: rejection sampling, preference pairs, labels.

Of equal texts of one prompt the first one stands for all. A sample that the limit cut has no end to
learn: only `samples(keep='all')` has it. One whose grader ran out of time is neither right nor
wrong and becomes no pair and no label. Source: R1's rejection sampling (arXiv 2501.12948 §2.3.3).
"""

from collections.abc import Iterable
from typing import Any, Literal

from r1jax.core.text import spans
from r1jax.curate.sample import Answers, Sampled
from r1jax.tasks.task import Outcome

Row = dict[str, Any]
LABELS = {Outcome.CORRECT: 1.0, Outcome.WRONG: 0.0, Outcome.UNPARSEABLE: 0.0}


def kept(answers: Answers, keep: Literal['correct', 'all'], at_most: int | None) -> list[Sampled]:
  """The different samples of a prompt, of 'correct' ones the whole and well-formed."""
  fit = lambda s: s.grade.outcome is Outcome.CORRECT and s.stopped and spans(s.text).well_formed
  return _different(s for s in answers.samples if keep == 'all' or fit(s))[:at_most]


def sample_rows(answers: Answers, chosen: Iterable[Sampled]) -> list[Row]:
  """Question and completion, its grade, and of a well-formed one thought and answer apart.

  Of another these fields are missing, so that Solved refuses its row instead of learning ''.
  """
  rows = []
  for s in chosen:
    parts = spans(s.text)
    rows.append(
      _asked(answers)
      | {
        'completion': s.text,
        **({'thought': parts.think, 'answer': parts.answer} if parts.well_formed else {}),
        'reward': s.grade.reward,
        'outcome': s.grade.outcome.value,
        'length': len(s.tokens) - s.prompt,
      }
    )
  return rows


def pair_rows(answers: Answers, at_most: int | None) -> list[Row]:
  """A correct completion with a wrong one of the same prompt, each used once."""
  whole = _different(s for s in answers.samples if s.stopped)
  right, wrong = ([s for s in whole if LABELS.get(s.grade.outcome) == x] for x in (1.0, 0.0))
  pairs = list(zip(right, wrong))[:at_most]
  return [_asked(answers) | {'chosen': a.text, 'rejected': b.text} for a, b in pairs]


def label_rows(answers: Answers, at_most: int | None) -> list[Row]:
  """Completions with 1 where they are correct, else 0."""
  whole = _different(s for s in answers.samples if s.stopped and s.grade.outcome in LABELS)
  return [
    _asked(answers) | {'completion': s.text, 'label': LABELS[s.grade.outcome]}
    for s in whole[:at_most]
  ]


def _different(samples: Iterable[Sampled]) -> list[Sampled]:
  """The first sample of every text."""
  first: dict[str, Sampled] = {}
  for s in samples:
    first.setdefault(s.text, s)
  return list(first.values())


def _asked(answers: Answers) -> Row:
  e = answers.example
  return {'question': e.question} | ({} if e.system is None else {'system': e.system})
