"""One step's graded groups: questions asked in their order, dynamic sampling, grading ahead.

A rollout of `prompts` questions goes in `waves`: one is graded while the next is being written, so
that verifiers cost the time of the last one's at most. What teaches nothing may be dropped and
further questions asked (`RL.refill`). Questions, keys and so the samples are the same for any
number of waves.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from r1jax.core import metrics, prng
from r1jax.core.metrics import Mean
from r1jax.rewards import group as groups
from r1jax.rollout import collect, telemetry
from r1jax.rollout.collect import Trajectories
from r1jax.tasks.task import Example
from r1jax.train import rl
from r1jax.train.rl import RL, Rollout
from r1jax.train.run import Run


def run_key(run: Run, stage: RL) -> jax.Array:
  """The stage's random key: from the run's seed and the stage's number."""
  return prng.fold(jax.random.key(run.exp.seed), run.exp.stages.index(stage))


def questions(run: Run, stage: RL, asked: int) -> list[Example]:
  """The prompts of a rollout: the next ones of split rl, without solutions."""
  return run.task.examples('rl', asked, stage.prompts)


def rollout(
  run: Run,
  stage: RL,
  params: Any,
  step: int,
  asked: int,
  check: Callable[[], None] = lambda: None,
) -> Rollout:
  """One step's groups from the questions behind `asked`; what teaches nothing is sampled anew.

  check: called before each wave; it raises where no more is wanted.
  """
  kept, total, tokens = None, {}, 0
  for number in range(1 + stage.refill.rollouts):
    t, told = sampled(run, stage, params, step, number * stage.prompts, asked, check)
    total = metrics.add(total, told)
    tokens += collect.count(t)
    kept = t if kept is None else rl.chosen(collect.join(kept, t), stage)
    if rl.judged(kept, stage)[0].all():
      break
  figures = telemetry.finish(total) | {'rollouts': number + 1}
  return Rollout(kept, (number + 1) * stage.prompts, figures, tokens)


def sampled(
  run: Run, stage: RL, params: Any, step: int, first: int, asked: int, check: Callable[[], None]
) -> tuple[Trajectories, dict[str, Mean]]:
  """One rollout, graded, and its telemetry; its groups are the step's from number `first` on."""
  examples = questions(run, stage, asked + first)
  per = stage.prompts // stage.waves
  waves = []
  for i in range(0, stage.prompts, per):
    check()
    waves.append(wave(run, stage, params, step, first + i, examples[i : i + per]))
  with run.timers('reward'):
    t = functools.reduce(collect.join, [w for w, _ in waves])
    grades = collect.answered([g for _, answer in waves for g in answer()], t.samples)
    group, lengths = stage.algorithm.group, t.samples.length_B.tolist()
    grades = collect.regraded(run.task, grades, t.texts, group, lengths)
    grades = groups.regrade_all(grades, t.texts, group, stage.rewards.parts(), lengths)
    t = t._replace(grades=grades)
    repeated = [e for e in examples for _ in range(group)]
    told = telemetry.measure(t.samples, t.texts, grades, repeated, group)
    told['groups_kept'] = telemetry.mean(rl.judged(t, stage)[0].tolist())
  return t, told


def wave(
  run: Run, stage: RL, params: Any, step: int, first: int, asked: list[Example]
) -> tuple[Trajectories, Any]:
  """Completions of some questions without grades, and a function that waits for these."""
  engine, group = run.engine, stage.algorithm.group
  if stage.support == 'replay':
    engine = functools.partial(engine, keep_support=True)
  with run.timers('rollout'):
    prompts_BP, lengths_B, samples = collect.sample(
      engine, params, run.tok, asked,
      group=group, key=prng.fold(run_key(run, stage), step), first=first, sampling=stage.sampling,
      limits=stage.limits,
    )  # fmt: skip
  with run.timers('reward'):
    written = collect.texts(run.tok, samples)
    repeated = [e for e in asked for _ in range(group)]
    answer = run.grade.start(list(zip(repeated, written, strict=True)))
  return Trajectories(prompts_BP, lengths_B, samples, written, []), answer
