"""What is asked, what it earns beside its siblings, what is sampled again."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.core import prng
from r1jax.rewards.group import GroupWeights
from r1jax.rollout import telemetry
from r1jax.tasks.file import from_functions
from r1jax.tasks.task import Example, Grade, Outcome
from r1jax.train import rl, rollouts
from tests.train.stand_ins import hand_made


def test_questions_go_on_from_step_to_step_and_carry_no_solution(experiment, bare):
  run, stage = bare(experiment), experiment.stages[1]
  asked = [e for behind in (0, 4, 8) for e in rollouts.questions(run, stage, behind)]
  assert [e.id for e in asked] == [e.id for e in run.task.examples('rl', 0, 12)]
  assert all(e.solution is None for e in asked)


def test_keys_differ_by_stage_and_step(experiment, bare):
  run = bare(experiment)
  other = dataclasses.replace(experiment.stages[1], name='more')
  run.exp = dataclasses.replace(experiment, stages=(*experiment.stages, other))
  keys = [prng.fold(rollouts.run_key(run, s), i) for s in run.exp.stages[1:] for i in range(2)]
  assert len({np.asarray(jax.random.key_data(k)).tobytes() for k in keys}) == 4


def test_samples_are_paid_for_what_they_are_beside_their_siblings(experiment, bare, monkeypatch):
  """The reward of a group part, and the part in the log, behind each sample's own grade."""
  stage = dataclasses.replace(experiment.stages[1], rewards=GroupWeights(diversity=0.3))
  experiment = dataclasses.replace(experiment, stages=(stage,))
  made = hand_made(np.ones(16))
  rows = (made.prompts_BP, made.prompt_lengths_B, made.samples)
  monkeypatch.setattr(rollouts.collect, 'sample', lambda *_, **__: rows)
  run = bare(experiment, grade=lambda calls: [Grade(Outcome.CORRECT, 1.0) for _ in calls])
  t = rollouts.rollout(run, stage, None, 0, 0).kept
  assert [set(g.parts) for g in t.grades] == [{'diversity'}] * 16
  for g in t.grades:
    assert g.reward == pytest.approx(1 + 0.3 * g.parts['diversity'])
  assert {g.parts['diversity'] for g in t.grades} != {0.0}


def test_a_task_s_own_group_parts_pay_too(experiment, bare, monkeypatch):
  """Those of its file, beside those of the stage: each sees whole groups and tokens as lengths."""
  seen = []

  def first(samples):
    seen.append([(s.text, s.length) for s in samples])
    return [float(s is samples[0]) for s in samples]

  stage = dataclasses.replace(experiment.stages[1], rewards=GroupWeights(relative_conciseness=0.1))
  experiment = dataclasses.replace(experiment, stages=(stage,))
  made = hand_made(np.ones(16))
  rows = (made.prompts_BP, made.prompt_lengths_B, made.samples)
  monkeypatch.setattr(rollouts.collect, 'sample', lambda *_, **__: rows)
  run = bare(experiment, grade=lambda calls: [Grade(Outcome.CORRECT, 1.0) for _ in calls])
  run.task = from_functions(
    'own', lambda seed: Example('', str(seed)), lambda *_: True, group={'first': (0.5, first)}
  )
  t = rollouts.rollout(run, stage, None, 0, 0).kept
  assert [g.reward for g in t.grades] == pytest.approx([1.6, 1.1, 1.1, 1.1] * 4)
  assert [set(g.parts) for g in t.grades] == [{'first', 'relative_conciseness'}] * 16
  assert len(seen) == 4 and [s for group in seen for s in group] == [(x, 1) for x in t.texts]


def script(monkeypatch, *scripted):
  """Rollouts of these groups, each the outcomes of its samples, in place of sampled ones."""
  asked = []

  def sampled(run, stage, params, step, first, behind, check):
    groups = scripted[first // stage.prompts]
    reward = np.array([float(c == 'c') for group in groups for c in group])
    t = hand_made(reward, first * stage.algorithm.group)
    asked.append((step, first, behind))
    outcome = {'c': Outcome.CORRECT, 'w': Outcome.WRONG}
    outcomes = [outcome[c] for group in groups for c in group]
    grades = [Grade(o, r, {'timeout': 1.0} if first else {}) for o, r in zip(outcomes, reward)]
    t = t._replace(grades=grades)
    told = telemetry.measure(t.samples, t.texts, grades)
    told['groups_kept'] = telemetry.mean(rl.judged(t, stage)[0].tolist())
    return t, told

  monkeypatch.setattr(rollouts, 'sampled', sampled)
  return asked


@pytest.mark.parametrize(
  'more, groups, kept',
  [
    (0, [0, 1, 2, 3], 0.25),  # nothing is dropped
    (1, [0, 1, 5, 6], 3 / 8),  # three have both; the fourth is the first of the rest
    (9, [1, 5, 6, 8], 6 / 12),  # as soon as there are enough no more is asked
  ],
)
def test_contract_10_groups_without_both_outcomes_are_refilled(
  experiment, bare, monkeypatch, more, groups, kept
):
  stage = dataclasses.replace(experiment.stages[1], refill=rl.Refill(more))
  scripted = (
    ('cccc', 'cwcw', 'wwww', 'cccc'),
    ('wwww', 'cwww', 'cccw', 'cccc'),
    ('cwww', 'cwww', 'cccw', 'cccc'),
  )
  asked = script(monkeypatch, *scripted)
  made = rollouts.rollout(bare(experiment), stage, None, 7, 40)
  n = min(more, 2) + 1
  assert asked == [(7, 4 * r, 40) for r in range(n)] and made.asked == 4 * n
  rows = [i for g in groups for i in range(4 * g, 4 * g + 4)]
  assert (made.kept.samples.tokens_BT[:, 0] - 1).tolist() == rows
  assert made.figures['groups_kept'] == pytest.approx(kept)
  assert made.figures['rollouts'] == n and made.tokens == n * 16 * 2
  outcomes = [c == 'c' for r in scripted[:n] for group in r for c in group]
  assert made.figures['accuracy'] == pytest.approx(np.mean(outcomes))
  assert made.figures.get('part/timeout', 0.0) == pytest.approx((n - 1) / n)
