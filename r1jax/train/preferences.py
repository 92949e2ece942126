"""Preferences: DPO on the policy itself, or a reward model of one of three kinds (algos/).

    objective    data     learns                                        held-out figures
    DPO          pairs    the policy; its start is the reference        preference_…, margin
    Pairwise     pairs    reward r at a completion's last token         preference_…, margin
    Pointwise    labels   σ(r) there: how good one answer is            label_…
    Process      steps    σ(r) at the end of every step                 process_…, solved

Figures come as …_accuracy with …_correct of …_count (for an interval). A pair is correct where the
better one is strictly ahead; `agreement` counts a tie half, over labels it is the chance that a
good answer is ahead of a bad one. calibration_error has its bins beside it, calibration_bins:
of pairs the probability that the first is better, each pair taken in both orders. After DPO a
completion's score is the policy's own log-probability, so that a model is measured before and
after alike: σ of a pair's difference is how likely it writes the better one if it writes either.

A scalar reward model reads one answer at a time and has no position bias by construction;
algos.reward_model.position_bias is for judges that are shown two.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos import dpo, reward_model, surrogate
from r1jax.algos.dpo import DPO, PerToken
from r1jax.algos.reward_model import Pairwise, Pointwise, Process
from r1jax.core import metrics, tree
from r1jax.core.metrics import Mean
from r1jax.core.program import Program
from r1jax.data import preferences as data
from r1jax.data.preferences import Documents, Judged, Kind, Mistakes, PreferenceData
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import flops
from r1jax.model import heads as model_heads
from r1jax.model.config import ModelConfig
from r1jax.model.heads import Scalar, ScalarConfig
from r1jax.optim.optimizer import AdamW, is_balanced
from r1jax.rollout.reward_model import HEAD
from r1jax.sharding import place, processes
from r1jax.tasks.task import Task
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import forward
from r1jax.train.state import State
from r1jax.train.step import Aux

if TYPE_CHECKING:  # an experiment holds this stage, a run its experiment
  from r1jax.train.offline import Plan
  from r1jax.train.run import Run

BINS = 10
Figures = dict[str, Any]
Objective = DPO | Pairwise | Pointwise | Process


@dataclasses.dataclass(frozen=True)
class Preference:
  """A stage: `steps` batches of `rows` completions of at most `width` inputs, epoch after epoch.

  Two rows are a pair where the objective is of pairs. Prediction modules learn from the better
  completions alone under DPO, and rest in a reward model, which writes nothing.
  """

  optimizer: AdamW
  steps: int
  objective: Objective = DPO()
  data: PreferenceData = Mistakes()
  held_out: PreferenceData | None = None
  rows: int = 32
  width: int = 128
  microbatches: int = 1
  auxiliary: forward.Auxiliary = forward.Auxiliary(mtp=0.1, detach_mtp=True)
  name: str = 'preference'

  def __post_init__(self):
    each = self.microbatches * self.group
    if self.rows < 1 or self.rows % each:
      raise ValueError(
        f'rows={self.rows} do not split into {self.microbatches} microbatches of '
        f'{"whole pairs" if self.group == 2 else "equal size"}; choose a multiple of {each}'
      )
    if _overlap(self.data, self.held_out):
      raise ValueError(
        'data and held_out have documents in common; share them off by `share` or `skip`'
      )

  @property
  def kind(self) -> Kind:
    """What its objective learns from."""
    match self.objective:
      case DPO() | Pairwise():
        return 'pairs'
      case Pointwise():
        return 'labels'
      case Process():
        return 'steps'

  @property
  def group(self) -> int:
    """Rows of one document."""
    return 2 if self.kind == 'pairs' else 1

  @property
  def reference(self) -> bool:
    """Whether the parameters as of its start are kept."""
    return isinstance(self.objective, DPO)


def heads(stage: Preference, cfg: ModelConfig) -> dict[str, tuple[nn.Module, tuple]]:
  """The reward head and an input of its init; none for DPO, whose policy is its reward model."""
  if isinstance(stage.objective, DPO):
    return {}
  x_BLD = np.zeros((1, 1, cfg.embed), np.float32)
  return {HEAD: (Scalar(ScalarConfig(cfg.embed)), (x_BLD,))}


def opened(
  stage: Preference, task: Task | None, tok: Tokenizer
) -> tuple[Documents, Documents | None]:
  """What a stage learns from and is measured on; what cannot be used is an error."""
  one = lambda spec: data.make(spec, stage.kind, task, tok, stage.width)
  return one(stage.data), stage.held_out and one(stage.held_out)


def plan(run: 'Run', stage: Preference) -> 'Plan':
  """The stage for the loop over prepared batches."""
  from r1jax.train import offline, weights

  cfg = run.exp.model
  docs, held = run.opened.get(stage.name) or opened(stage, run.task, run.tok)
  depths = len(cfg.mtp) if stage.reference else 0
  judge = functools.partial(judged, cfg=cfg, stage=stage)
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

  return offline.Plan(
    functools.partial(loss, cfg=cfg, stage=stage),
    functools.partial(denominators, cfg=cfg, stage=stage),
    batch,
    functools.partial(figures, cfg=cfg, stage=stage),
    evaluate if held else None,
  )


def held_batches(held: Documents, stage: Preference, depths: int) -> Iterator[Judged]:
  """Every held-out document once, in batches of the training shape; the last one filled up."""
  each = stage.rows // stage.group
  for at in range(0, len(held), each):
    rows = [c for group in held.groups[at : at + each] for c in group]
    yield data.batch(rows, stage.rows, stage.width, depths)


def judged(params: Any, b: Judged, cfg: ModelConfig, stage: Preference) -> jax.Array:
  """Scores of a batch: log-probabilities logp_B (DPO), rewards r_B, or logits of steps r_BL."""
  if isinstance(stage.objective, DPO):
    alone = dataclasses.replace(cfg, mtp=())
    return completion_logps(forward.run(params, alone, b.batch, Sampling(), None, True)[1].logp, b)
  r_BL, _ = model_heads.scores(params, cfg, HEAD, b.batch.inputs)
  return r_BL if isinstance(stage.objective, Process) else model_heads.last(r_BL, b.last_B)


def completion_logps(logp_BL: jax.Array, b: Judged) -> jax.Array:
  """log π(completion | prompt) of each row, the end token counted."""
  return jnp.where(b.batch.weights_BL > 0, logp_BL, 0).sum(axis=1)


def loss(
  params: Any, b: Judged, d: forward.Denominators, cfg: ModelConfig, stage: Preference
) -> tuple[jax.Array, Aux]:
  """The objective on one part of a batch, prediction modules and balance beside it."""
  if stage.reference:
    out, scored = forward.run(params, cfg, b.batch, Sampling(), None, stage.auxiliary.detach_mtp)
    main, measured = objective(completion_logps(scored.logp, b), b, stage.objective)
    beside, more = forward.auxiliary(params, cfg, learned(b), out, stage.auxiliary, d)
    load = out.load
  else:
    alone = dataclasses.replace(cfg, mtp=())
    r_BL, out = model_heads.scores(params, cfg, HEAD, b.batch.inputs)
    main, measured = objective(r_BL, b, stage.objective)
    beside, more = forward.auxiliary(params, alone, b.batch, out, stage.auxiliary, d)
    load = out.load and idle_loads(params) | out.load
  return main[0] / d.main + beside, Aux(measured | {'loss': main} | more, load)


def objective(score: jax.Array, b: Judged, how: Objective) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) from logp_B under DPO, from a reward model's r_BL otherwise."""
  mask_B = counted(b)
  match how:
    case DPO():
      sides = dpo.Scored(score, b.ref_B, (b.batch.weights_BL > 0).sum(axis=1))
      better, worse = (dpo.Scored(*(x[k::2] for x in sides)) for k in (0, 1))
      return dpo.loss(better, worse, how, mask_B[::2])
    case Pairwise():
      r_B = model_heads.last(score, b.last_B)
      return reward_model.pairwise(r_B[::2], r_B[1::2], how, mask_B=mask_B[::2])
    case Pointwise():
      return reward_model.pointwise(model_heads.last(score, b.last_B), b.label_B, mask_B)
    case Process():
      return reward_model.process(score, b.label_BL, b.end_BL, how)


def counted(b: Judged) -> jax.Array:
  """False for the rows that only fill a batch up."""
  return (b.batch.weights_BL > 0).any(axis=1)


def learned(b: Judged) -> data.Batch:
  """The batch with the worse completions' tokens without weight: none of them is to be written."""
  keep_B1 = b.label_B[:, None] > 0.5
  zero = lambda w_BL: jnp.where(keep_B1, w_BL, 0)
  ahead = tuple(map(zero, b.batch.ahead_weights))
  return b.batch._replace(weights_BL=zero(b.batch.weights_BL), ahead_weights=ahead)


def idle_loads(params: Any) -> dict[str, jax.Array]:
  """No tokens for any router: those of prediction modules that rest keep their bias."""
  biases = {k: x for k, x in tree.flatten_named(params).items() if is_balanced(k)}
  return {path: jnp.zeros(x.shape) for path, x in biases.items()}


def denominators(b: Judged, cfg: ModelConfig, stage: Preference) -> forward.Denominators:
  """Pairs, completions, or what the process loss is aggregated over, of the whole batch."""
  match stage.objective:
    case Process(aggregate):
      main = surrogate.denominator(b.end_BL, aggregate)
    case _:
      main = counted(b).sum() / stage.group
  cfg = cfg if stage.reference else dataclasses.replace(cfg, mtp=())
  return forward.denominators(learned(b), main, cfg)


def figures(b: Judged, cfg: ModelConfig, stage: Preference) -> dict[str, float]:
  """Tokens of a batch and the flops of training on them, the reference's forward pass included."""
  tokens, width = int((np.asarray(b.batch.inputs.segments_BL) > 0).sum()), stage.width
  alone = dataclasses.replace(cfg, mtp=())
  if stage.reference:
    row = flops.training_flops(cfg, [width]) + flops.forward_flops(alone, [width])
  else:
    row = flops.training_flops(alone, [width])
  return {'tokens': tokens, 'flops': tokens * row / width}


def measured(scores: np.ndarray, b: Judged, stage: Preference) -> Figures:
  """Held-out figures from the scores of all batches together, on the host."""
  mask_B = np.asarray(counted(b))
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
  sides = np.meshgrid(logit_B[good_B], logit_B[~good_B])
  agreed = metrics.finish({'agreement': reward_model.agreement(*sides)})
  return proportion('label', (logit_B > 0) == good_B) | agreed | calibration(logit_B, label_B)


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


def _overlap(a: PreferenceData, b: PreferenceData | None) -> bool:
  """Whether two data of the same origin share documents."""
  match a, b:
    case Mistakes(), Mistakes():
      (begin, end), (first, last) = ((s.skip, s.skip + s.examples) for s in (a, b))
    case _ if b is None or type(a) is not type(b) or a.records != b.records:
      return False
    case _:
      (begin, end), (first, last) = a.share, b.share
  return begin < last and first < end
