"""What graded completions show of reasoning: outcomes, lengths, self-checks, languages, insight.

    means = finish(add(measure(…), measure(…)))

Figures are (sum, weight) pairs of core/metrics: those of batches add up to those of the whole.

    accuracy, wrong, unparseable, timeout    the four outcomes as shares of the samples, 1 in all
    length, length/correct, length/wrong     tokens of a completion; of the two outcomes alone
    self_checks            phrases of self-checking in a thought (core/text)
    language/L             share of a thought's words in language L (rewards/language), the mean
                           over thoughts that have words
    first_correct          of correct completions: where the gold answer first stands, as the share
                           of the characters read by then (a tag is one)
    early_correct          share of these that have it before the last tenth
    zero_variance          share of groups whose rewards are all equal: they teach nothing
    task/NAME/accuracy     where tasks are mixed, by what stands before '/' in the example's id

`first_correct` looks for the gold's own text: a small number may also be met by chance, as an
operand, and a gold that is written otherwise (1/2 for 0.5) is not counted.

Cost: linear in the characters, mostly the languages: about 0.1 s for 10⁶ of them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from r1jax.core.interval import wilson
from r1jax.core.metrics import Mean
from r1jax.core.text import TAGS, self_checks, spans, strip_end
from r1jax.engine.generate import Samples
from r1jax.rewards import language
from r1jax.tasks.task import Example, Grade, Outcome

EARLY = 0.9  # of a completion

_TAG = re.compile('|'.join(map(re.escape, TAGS)))


def measure(
  samples: Samples,
  texts: Sequence[str],
  grades: Sequence[Grade],
  asked: Sequence[Example] = (),
  group: int = 1,
) -> dict[str, Mean]:
  """Sums over samples, one a row; `group` rows of one prompt lie together.

  asked: the example of each row; without, what needs the gold or the task's name is left out.
  """
  parted = [spans(t) for t in texts]
  parts = sorted({name for g in grades for name in g.parts})  # a timeout has a part of its own
  made = {
    'reward': mean(g.reward for g in grades),
    **outcomes(grades, np.asarray(samples.length_B).tolist()),
    'truncated': mean(~np.asarray(samples.stopped_B)),
    'self_checks': mean(self_checks(s.think or '') for s in parted),
    'well_formed': mean(s.well_formed for s in parted),
    **{f'part/{name}': mean(g.parts.get(name, 0.0) for g in grades) for name in parts},
    **languages([s.think or '' for s in parted]),
  }
  if group > 1:
    made['zero_variance'] = zero_variance([g.reward for g in grades], group)
  if asked:
    made |= insight(asked, texts, grades) | by_task(asked, grades)
  return made


def finish(total: Mapping[str, Mean]) -> dict[str, float]:
  """The means; without what nothing was counted for, languages nobody wrote, and a lone task."""
  samples = total['reward'][1]
  lone = sum(name.startswith('task/') for name in total) < 2
  means = {}
  for name, (value, weight) in total.items():
    blank = name.startswith('language/') and not value
    if weight and not blank and not (lone and name.startswith('task/')):
      # A batch without timeouts lacks their part, which is 0 for its samples.
      means[name] = value / (samples if name.startswith('part/') else weight)
  return means


def figures(
  samples: Samples,
  texts: Sequence[str],
  grades: Sequence[Grade],
  asked: Sequence[Example] = (),
  group: int = 1,
) -> dict[str, float]:
  """The means of one step, and the 95 % interval of the chance to solve its prompts (pass@1)."""
  total = measure(samples, texts, grades, asked, group)
  low, high = wilson(*total['accuracy'])
  return finish(total) | {'accuracy_low': low, 'accuracy_high': high}


def mean(values: Iterable[float]) -> Mean:
  """(sum, count) as Python floats."""
  found = [float(x) for x in values]
  return sum(found), float(len(found))


def outcomes(grades: Sequence[Grade], lengths: Sequence[int]) -> dict[str, Mean]:
  """The share of each outcome, and lengths in tokens: of all, of correct ones, of wrong ones."""
  share = {o: mean(g.outcome is o for g in grades) for o in Outcome}
  of = lambda outcome: mean(n for g, n in zip(grades, lengths, strict=True) if g.outcome is outcome)
  return {
    'accuracy': share[Outcome.CORRECT],
    'wrong': share[Outcome.WRONG],
    'unparseable': share[Outcome.UNPARSEABLE],
    'timeout': share[Outcome.TIMEOUT],
    'length': mean(lengths),
    'length/correct': of(Outcome.CORRECT),
    'length/wrong': of(Outcome.WRONG),
  }


def languages(thoughts: Sequence[str]) -> dict[str, Mean]:
  """Shares of the words by language, and of no known one as 'other'."""
  counts = [language.count(t) for t in thoughts]
  counts = [(c, total) for c in counts if (total := sum(c.values()))]
  names = (*language.LANGUAGES, 'other')
  return {f'language/{name}': mean(c[name] / total for c, total in counts) for name in names}


def zero_variance(rewards: Sequence[float], group: int) -> Mean:
  """How many groups have equal rewards, and how many there are."""
  reward_PG = np.asarray(rewards, float).reshape(-1, group)
  return mean((reward_PG == reward_PG[:, :1]).all(axis=1))


def insight(
  asked: Sequence[Example], texts: Sequence[str], grades: Sequence[Grade]
) -> dict[str, Mean]:
  """Where correct completions first write the gold answer, and whether early."""
  rows = [
    (e.answer, t) for e, t, g in zip(asked, texts, grades, strict=True)
    if g.outcome is Outcome.CORRECT and e.answer is not None
  ]  # fmt: skip
  found = [x for gold, text in rows if (x := first_written(gold, text)) is not None]
  return {'first_correct': mean(found), 'early_correct': mean(x < EARLY for x in found)}


def first_written(gold: str, completion: str) -> float | None:
  """The share of the completion that ends with the first gold in it, whole; None without any."""
  # A user's own task may hold a number there.
  words = [re.escape(word) for word in str(gold).split()]
  if not words:
    return None
  # A number is not found in a longer one, behind a minus, or before its decimals.
  whole = r'(?<![\w.−-])' + r'\s+'.join(words) + r'(?!\w|[.,]\d)'
  text = _TAG.sub('\n', strip_end(completion)).strip()
  found = re.search(whole, text)
  return found.end() / len(text) if found else None


def by_task(asked: Sequence[Example], grades: Sequence[Grade]) -> dict[str, Mean]:
  """Accuracy by task, where ids say which ('chain_sum/0/17')."""
  rows: dict[str, list[bool]] = {}
  for e, g in zip(asked, grades, strict=True):
    task, parted, _ = e.id.partition('/')
    if parted:
      rows.setdefault(task, []).append(g.outcome is Outcome.CORRECT)
  return {f'task/{name}/accuracy': mean(found) for name, found in sorted(rows.items())}
