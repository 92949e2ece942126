"""A trained reward model, restored and asked: its answers are those of its held-out figures."""

import dataclasses

import numpy as np
import pytest

from r1jax.algos.lora import LoRA
from r1jax.algos.reward_model import Pairwise, Process
from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core.errors import UserError
from r1jax.data import preferences as data
from r1jax.data.preferences import Mistakes
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant
from r1jax.tasks.file import load as load_task
from r1jax.train import judge, preferences
from r1jax.train.loop import train
from r1jax.train.preferences import Preference
from tests.train.stand_ins import SMALL

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


def stage(objective):
  """A few large steps, so that the head is not near zero."""
  return Preference(
    AdamW(Constant(3e-2)), 4, objective, Mistakes(4), Mistakes(3, skip=4), rows=4, width=48
  )


@pytest.fixture(scope='module')
def trained(experiment, one_device, tmp_path_factory):
  """(experiment, workdir) of a process model, and of a pairwise one on adapters."""
  process, pairs = tmp_path_factory.mktemp('process'), tmp_path_factory.mktemp('pairs')
  small = dataclasses.replace(experiment, model=SMALL)
  exp = dataclasses.replace(small, stages=(stage(Process()),))
  train(exp, process)
  adapted = dataclasses.replace(
    small, stages=(stage(Pairwise()),), init=str(process), lora=LoRA(rank=2, targets='.*')
  )
  train(adapted, pairs)
  return (exp, process), (adapted, pairs)


def held_out(exp, tok):
  """The held-out completions of the stage, and their texts in pieces."""
  _, held = preferences.opened(exp.stages[0], load_task(exp.task), tok)
  task = load_task(exp.task)
  examples = task.examples('sft', 4, 3)
  pieces = [data.in_pieces(e.solution, e.answer) for e in examples]
  return [c for group in held.groups for c in group], examples, pieces


def asked_in_training(exp, model, rows):
  """Scores of the rows as the stage measures them."""
  b = data.batch(rows, len(rows), 48)
  return np.asarray(preferences.judged(model.params, b, exp.model, exp.stages[0]))


def test_steps_are_judged_as_in_training(trained):
  (exp, workdir), _ = trained
  model = judge.load(str(workdir))
  rows, (example, *_), (pieces, *_) = held_out(exp, model.tok)
  scores_BL = asked_in_training(exp, model, rows)
  want = 1 / (1 + np.exp(-scores_BL[0, list(rows[0].ends)]))
  got = judge.steps(model, example.question, pieces)
  assert np.ptp(want) > 1e-3 and got.shape == (len(pieces),)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  with pytest.raises(UserError, match='trained on steps'):
    judge.rewards(model, ['1 + 1'], ['2'])
  with pytest.raises(UserError, match='no steps'):
    judge.steps(model, '1 + 1', [])


def test_completions_are_judged_as_in_training_with_adapters_and_their_head(trained):
  _, (exp, workdir) = trained
  model = judge.load(str(workdir))
  held = Store(workdir / FOLDER).describe(4)
  assert 'params/reward/weight' in held and not any(k == 'embedding/weight' for k in held)
  rows, examples, pieces = held_out(exp, model.tok)
  want = asked_in_training(exp, model, rows)[::2]  # the better ones
  questions = [e.question for e in examples]
  got = judge.rewards(model, questions, [''.join(p) for p in pieces])
  assert np.ptp(want) > 1e-3
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  with pytest.raises(UserError, match='trained on whole completions'):
    judge.steps(model, questions[0], pieces[0])
  with pytest.raises(UserError, match='3 questions and 1 completions'):
    judge.rewards(model, questions, [''])


def test_what_is_no_reward_model_says_so(experiment, one_device, tmp_path):
  small = dataclasses.replace(experiment, model=SMALL, stages=experiment.stages[:1])
  train(small, tmp_path)
  with pytest.raises(UserError, match="checkpoint of stage 'sft', not of a reward model"):
    judge.load(str(tmp_path))
