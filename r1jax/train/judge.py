"""A trained reward model to ask: restored with its head, it reads questions and completions.

    judge = load('runs/judge')
    rewards(judge, questions, completions)    one number each                Pairwise, Pointwise
    steps(judge, question, pieces)            a probability for each piece   Process

Completions are texts as models write them, R1's tags in them. As a safety model a point-wise judge
goes into rewards.safety.by_model. What the numbers mean: rollout/reward_model.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1jax.algos.dpo import DPO
from r1jax.algos.reward_model import Process
from r1jax.checkpoint.store import Store, resolve
from r1jax.core.errors import UserError
from r1jax.core.program import Program
from r1jax.data import preferences as data
from r1jax.rollout import reward_model
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import parameters, preferences, restored
from r1jax.train.preferences import Preference
from r1jax.train.progress import Progress


@dataclasses.dataclass(frozen=True)
class Judge:
  """Parameters with a reward head on one device, and how to read with them."""

  stage: Preference
  params: Any
  tok: Tokenizer
  program: Program


def load(path: str) -> Judge:
  """The reward model of a checkpoint; UserError where there is none."""
  directory, step = resolve(path)
  store = Store(directory)
  meta = store.meta(step)
  exp = restored.described(directory, meta)
  stage = None if meta['stage'] is None else exp.stages[meta['stage']]
  if not isinstance(stage, Preference) or isinstance(stage.objective, DPO):
    what = f"stage '{stage.name}'" if stage else 'a converted model'
    raise UserError(
      f'{path} is the checkpoint of {what}, not of a reward model; train one by '
      'configs/reward_model.py'
    )
  heads = preferences.heads(stage, exp.model)
  params = parameters.weights(store, step, exp.model, None, heads)
  announce = Progress('judge', 0).compiling
  program = reward_model.program(exp.model, stage.objective, announce)
  return Judge(stage, params, make_tokenizer(exp.tokenizer), program)


def rewards(
  judge: Judge, questions: Sequence[str], completions: Sequence[str], system: str | None = None
) -> np.ndarray:
  """The reward of each completion of its question."""
  if isinstance(judge.stage.objective, Process):
    raise UserError(
      'this judge was trained on steps and judges no completion as a whole: use steps'
    )
  if len(questions) != len(completions):
    raise UserError(f'{len(questions)} questions and {len(completions)} completions; give as many')
  rows = [data.judged_row(judge.tok, q, [c], system)[0] for q, c in zip(questions, completions)]
  return reward_model.score(judge.program, judge.params, rows)


def steps(
  judge: Judge, question: str, pieces: Sequence[str], system: str | None = None
) -> np.ndarray:
  """How likely each step is right, given all before it; the pieces joined are the completion."""
  if not isinstance(judge.stage.objective, Process):
    raise UserError('this judge was trained on whole completions: use rewards')
  if not pieces:
    raise UserError('no steps to judge; give the completion in pieces')
  row, _, ends = data.judged_row(judge.tok, question, pieces, system)
  return reward_model.steps(judge.program, judge.params, [row], [ends])[0]
