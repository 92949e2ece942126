"""Preferences: DPO on the policy itself, or a reward model of one of three kinds (algos/).

    objective    data     learns                                        held-out figures
    DPO          pairs    the policy; its start is the reference        preference_…, margin
    Pairwise     pairs    reward r at a completion's last token         preference_…, margin
    Pointwise    labels   σ(r) there: how good one answer is            label_…
    Process      steps    σ(r) at the end of every step                 process_…, solved

Held-out figures and what they mean: judging.py.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos import dpo, reward_model, surrogate
from r1jax.algos.dpo import DPO
from r1jax.algos.reward_model import Pairwise, Pointwise, Process
from r1jax.core import tree
from r1jax.core.metrics import Mean
from r1jax.data import preferences as data
from r1jax.data.preferences import Documents, Judged, Kind, Mistakes, PreferenceData
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import flops
from r1jax.model import heads as model_heads
from r1jax.model.config import ModelConfig
from r1jax.model.heads import Scalar, ScalarConfig
from r1jax.optim.optimizer import AdamW, is_balanced
from r1jax.rollout.reward_model import HEAD
from r1jax.tasks.task import Task
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import forward
from r1jax.train.step import Aux

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
    if min(self.steps, self.microbatches) < 1:
      raise ValueError(f'steps={self.steps}, microbatches={self.microbatches}; both must be ≥ 1')
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
