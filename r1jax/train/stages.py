"""The stages: what supervised and reinforcement-learning steps do around their compiled programs.

Both loops are functions of the step number: batches, questions and random numbers follow from
(seed, stage, step), so that a resumed run repeats them.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos.advantages import group_advantages
from r1jax.core import metrics, prng
from r1jax.core.program import Program
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.optim import optimizer as optim
from r1jax.rollout import collect
from r1jax.rollout.collect import Trajectories
from r1jax.rollout.trajectory import RLBatch, rl_batch, rows
from r1jax.sharding import place
from r1jax.tasks.task import Example
from r1jax.train import rl, supervised
from r1jax.train import state as states
from r1jax.train import step as steps
from r1jax.train.rl import RL
from r1jax.train.run import Run
from r1jax.train.state import State
from r1jax.train.supervised import SFT

After = Callable[[State, int, dict[str, float]], None]  # (state, steps done in the stage, figures)


def run_sft(run: Run, stage: SFT, state: State, start: int, after: After) -> State:
  """Supervised steps start … stage.steps."""
  cfg = run.exp.model
  data = supervised.batches(stage, run.task, run.tok, len(cfg.mtp), run.exp.seed)
  step = steps.make(
    functools.partial(supervised.loss, cfg=cfg, stage=stage),
    functools.partial(supervised.denominators, cfg=cfg),
    optim.make(stage.optimizer, state.params),
    stage.auxiliary.gamma,
    stage.microbatches,
  )
  train = train_program(run, f'{stage.name} step', step, state)
  for i, batch in enumerate(itertools.islice(data, start, stage.steps), start):
    with run.timers('train'):
      state, measured = train(state, place.rows(run.mesh, batch))
      figures = metrics.finish(measured)
    after(state, i + 1, figures | {'tokens': supervised.tokens(batch)})
  return state


def train_program(run: Run, what: str, step: Callable, state: State) -> Program:
  """The compiled step; the state is donated and keeps its place."""
  out = None if run.mesh is None else (place.of(state), None)
  return Program(what, step, run.announce, donate_argnums=0, out_shardings=out)


def run_rl(run: Run, stage: RL, state: State, start: int, after: After) -> State:
  """RL steps start … stage.steps; each is one rollout and `minibatches` updates."""
  cfg = run.exp.model
  step = steps.make(
    functools.partial(rl.loss, cfg=cfg, stage=stage),
    functools.partial(rl.denominators, cfg=cfg, stage=stage),
    optim.make(stage.optimizer, state.params),
    stage.auxiliary.gamma,
    stage.microbatches,
    rl.batch_axis,
  )
  if stage.algorithm.beta and state.reference is None:
    state = state._replace(reference=states.copy(state.params))
  train = train_program(run, f'{stage.name} step', step, state)
  score = scorer(run, f'{stage.name} log-probabilities', stage.sampling)
  whole = rl.reference_sampling(stage)
  refer = score if whole == stage.sampling else scorer(run, f'{stage.name} reference', whole)
  for i in range(start, stage.steps):
    if stage.algorithm.beta and i and i % stage.refresh == 0:
      state = state._replace(reference=states.copy(state.params))
    trajectories = rollout(run, stage, state.params, i)
    with run.timers('train'):
      batch = prepare(run, stage, state, trajectories, score, refer)
      total: dict[str, Any] = {}
      for part in minibatches(batch, stage, prng.fold(run_key(run, stage), i)):
        state, measured = train(state, place.rows(run.mesh, part, rl.batch_axis(part)))
        total = metrics.add(total, measured)
      figures = metrics.finish(total)
    figures |= collect.telemetry(trajectories.samples, trajectories.texts, trajectories.grades)
    used = int(trajectories.prompt_lengths_B.sum() + trajectories.samples.length_B.sum())
    after(state, i + 1, figures | {'tokens': used})
  return state


def scorer(run: Run, what: str, sampling: Sampling) -> Program:
  """The compiled log-probabilities of a rollout's tokens."""
  return Program(
    what, functools.partial(rl.score, cfg=run.exp.model, sampling=sampling), run.announce
  )


def run_key(run: Run, stage: RL) -> jax.Array:
  """The stage's random key: from the run's seed and the stage's number."""
  return prng.fold(jax.random.key(run.exp.seed), run.exp.stages.index(stage))


def questions(run: Run, stage: RL, step: int) -> list[Example]:
  """The prompts of a step: the next ones of split rl. No solution, no gold goes to the trainer."""
  return run.task.examples('rl', step * stage.prompts, stage.prompts)


def rollout(run: Run, stage: RL, params: Any, step: int) -> Trajectories:
  """Samples and grades one step's groups."""
  asked, group = questions(run, stage, step), stage.algorithm.group
  with run.timers('rollout'):
    prompts_BP, lengths_B, samples = collect.sample(
      run.engine, params, run.tok, asked,
      group=group, key=prng.fold(run_key(run, stage), step), first=0, sampling=stage.sampling,
      limits=stage.limits,
    )  # fmt: skip
  with run.timers('reward'):
    written = collect.texts(run.tok, samples)
    grades = run.grade([(e, t) for e, t in zip((e for e in asked for _ in range(group)), written)])
  return Trajectories(prompts_BP, lengths_B, samples, written, grades)


def prepare(
  run: Run, stage: RL, state: State, t: Trajectories, score: Program, refer: Program
) -> RLBatch:
  """Advantages of whole groups, then the log-probabilities that the objective compares with."""
  group, a = stage.algorithm.group, stage.algorithm
  reward_PG = jnp.asarray([g.reward for g in t.grades], jnp.float32).reshape(-1, group)
  advantage_B = np.asarray(group_advantages(reward_PG, a.scale)).reshape(-1)
  batch = rl_batch(t, advantage_B, len(run.exp.model.mtp), replay=stage.routing == 'replay')
  placed = place.rows(run.mesh, batch, rl.batch_axis(batch))
  reference_BL = np.asarray(refer(state.reference, placed)) if a.beta else None
  old_BL = np.asarray(score(state.params, placed)) if a.old == 'recomputed' else None
  return batch._replace(ref_BL=reference_BL, old_BL=old_BL)


def minibatches(batch: RLBatch, stage: RL, key: jax.Array) -> list[RLBatch]:
  """Equal parts in a random order of samples (R1: 16 of them over one frozen π_old)."""
  n = len(batch.advantage_B)
  if stage.minibatches == 1:
    return [batch]
  order = np.asarray(jax.random.permutation(key, n))
  return [rows(batch, part) for part in np.split(order, stage.minibatches)]
