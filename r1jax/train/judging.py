"""Preference stages at work: batches with the reference's scores, and held-out figures.

Figures come as …_accuracy with …_correct of …_count (for an interval). A pair is correct where the
better one is strictly ahead; `agreement` counts a tie half, over labels it is the chance that a
good answer is ahead of a bad one. calibration_error has its bins beside it: of pairs the
probability that the first is better, each pair taken in both orders. After DPO a completion's score
is the policy's own log-probability, so that a model is measured before and after alike: σ of a
pair's difference is how likely it writes the better one if it writes either.

A scalar reward model reads one answer at a time and has no position bias by construction;
algos.reward_model.position_bias is for judges that are shown two.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos import reward_model
from r1jax.algos.dpo import DPO, PerToken
from r1jax.algos.reward_model import Pairwise, Pointwise, Process
from r1jax.core import metrics
from r1jax.core.program import Program
from r1jax.data import preferences as data
from r1jax.data.preferences import Documents, Judged
from r1jax.sharding import place, processes
from r1jax.train import preferences, weights
from r1jax.train.offline import Plan
from r1jax.train.preferences import Preference
from r1jax.train.run import Run
from r1jax.train.state import State

BINS = 10
Figures = dict[str, Any]


def plan(run: Run, stage: Preference) -> Plan:
  """The stage for the loop over prepared batches."""
  cfg = run.exp.model
  docs, held = run.opened.get(stage.name) or preferences.opened(stage, run.task, run.tok)
  depths = len(cfg.mtp) if stage.reference else 0
  judge = functools.partial(preferences.judged, cfg=cfg, stage=stage)
  refer = Program(f'{stage.name} reference', judge, run.announce)
  measure = Program(f'{stage.name} held-out scores', judge, run.announce)
  seed = (run.exp.seed, run.exp.stages.index(stage))

  def batch(step: int, state: State) -> Judged:
    each = stage.rows // stage.group
    rows = data.taken(docs, step * each, each, *seed)
    b = data.batch(rows, stage.rows, stage.width, depths)
    if not stage.reference:
      return b
    reference = weights.whole(run.exp, state.reference, state.params)
    return b._replace(ref_B=processes.fetch(refer(reference, place.rows(run.mesh, b))))

  def evaluate(params: Any) -> Figures:
    total = [
      (processes.fetch(measure(params, place.rows(run.mesh, b))), b)
      for b in held_batches(held, stage, depths)
    ]
    scores = np.concatenate([s for s, _ in total])
    return measured(
      scores, jax.tree.map(lambda *x: np.concatenate(x), *(b for _, b in total)), stage
    )

  return Plan(
    functools.partial(preferences.loss, cfg=cfg, stage=stage),
    functools.partial(preferences.denominators, cfg=cfg, stage=stage),
    batch,
    functools.partial(preferences.figures, cfg=cfg, stage=stage),
    evaluate if held else None,
  )


def held_batches(held: Documents, stage: Preference, depths: int) -> Iterator[Judged]:
  """Every held-out document once, in batches of the training shape; the last one filled up."""
  each = stage.rows // stage.group
  for at in range(0, len(held), each):
    rows = [c for group in held.groups[at : at + each] for c in group]
    yield data.batch(rows, stage.rows, stage.width, depths)


def measured(scores: np.ndarray, b: Judged, stage: Preference) -> Figures:
  """Held-out figures from the scores of all batches together, on the host."""
  mask_B = np.asarray(preferences.counted(b))
  match stage.objective:
    case DPO(score=how):
      if isinstance(how, PerToken):
        scores = scores / np.maximum((b.batch.weights_BL > 0).sum(axis=1), 1)
      return of_pairs(scores[mask_B])
    case Pairwise():
      return of_pairs(scores[mask_B])
    case Pointwise():
      return of_labels(scores[mask_B], b.label_B[mask_B])
    case Process():
      return of_steps(scores[mask_B], b.label_BL[mask_B], b.end_BL[mask_B])


def of_pairs(score_B: np.ndarray) -> Figures:
  """Figures of pairs whose better one stands first."""
  better_B, worse_B = score_B[::2], score_B[1::2]
  h_B = better_B - worse_B
  both = np.concatenate([h_B, -h_B]), np.repeat([1.0, 0.0], len(h_B))
  agreed = metrics.finish({'agreement': reward_model.agreement(better_B, worse_B)})
  return (
    proportion('preference', h_B > 0) | agreed | {'margin': float(h_B.mean())} | calibration(*both)
  )


def of_labels(logit_B: np.ndarray, label_B: np.ndarray) -> Figures:
  """Figures of labelled answers; agreement is over every good one beside every bad one."""
  good_B = label_B > 0.5
  return (
    proportion('label', (logit_B > 0) == good_B)
    | {'agreement': ahead(logit_B[good_B], logit_B[~good_B])}
    | calibration(logit_B, label_B)
  )


def ahead(good: np.ndarray, bad: np.ndarray) -> float:
  """The chance that one of the good is above one of the bad, ties half; ½ without either."""
  if not good.size or not bad.size:
    return 0.5
  order = np.sort(bad)
  below = np.searchsorted(order, good, 'left') + np.searchsorted(order, good, 'right')
  return float(below.mean() / 2 / bad.size)


def of_steps(logit_BL: np.ndarray, label_BL: np.ndarray, end_BL: np.ndarray) -> Figures:
  """Figures of steps; solved: solutions whose least likely step is judged as labelled."""
  right_BL = (logit_BL > 0) == (label_BL > 0.5)
  _, found = reward_model.process(logit_BL, label_BL, end_BL, Process())
  return (
    proportion('process', right_BL[end_BL])
    | metrics.finish({'solved': found['solved']})
    | {'solved_count': float(end_BL.any(axis=1).sum())}
    | calibration(logit_BL[end_BL], label_BL[end_BL])
  )


def proportion(name: str, right: np.ndarray) -> dict[str, float]:
  """How many of how many, and their ratio."""
  correct, count = float(right.sum()), float(right.size)
  return {f'{name}_accuracy': correct / count, f'{name}_correct': correct, f'{name}_count': count}


def calibration(logit: np.ndarray, label: np.ndarray) -> Figures:
  """The expected calibration error; count, mean probability and mean label of the bins in use."""
  bins = reward_model.calibration_bins(jax.nn.sigmoid(logit), jnp.asarray(label), BINS)
  columns = zip(*(np.asarray(x).tolist() for x in bins))
  return {
    'calibration_error': float(reward_model.calibration_error(bins)),
    'calibration_bins': [[n, p / n, y / n] for n, p, y in columns if n],
  }
