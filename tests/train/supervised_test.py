"""Worked solutions as rows, and what the stage refuses."""

import dataclasses

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.data.batch import batch
from r1jax.tasks.file import load
from r1jax.tasks.task import Example
from r1jax.tokenizers import chat
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import supervised
from r1jax.train.supervised import SFT

TOK = ByteTokenizer()


class Task:
  """Three examples, the second without what `lacks` names."""

  name = 'three'

  def __init__(self, lacks=None):
    self._lacks = lacks

  def examples(self, split, start, count):
    assert split == 'sft'
    made = [Example(str(i), f'{i}?', str(i), 'because') for i in range(min(count, 3))]
    if self._lacks:
      made[1] = dataclasses.replace(made[1], **{self._lacks: None})
    return made


def test_rows_hold_prompt_and_solution_with_the_prompt_masked():
  row = supervised.rows(Task(), TOK, 2)[1]
  prompt = chat.render_prompt(TOK, '1?')
  solution = chat.render_solution(TOK, 'because', '1')
  assert list(row.tokens) == prompt + solution and row.tokens[-1] == TOK.eos
  assert list(row.weights) == [0] * len(prompt) + [1] * len(solution)


@pytest.mark.parametrize('lacks', ['solution', 'answer'])
def test_a_missing_solution_is_named(lacks):
  with pytest.raises(UserError, match='task three gives no worked solution for 1; SFT needs'):
    supervised.rows(Task(lacks), TOK, 3)


def test_too_few_examples_and_uneven_microbatches_are_errors(experiment):
  with pytest.raises(UserError, match=r'task three has 3 worked problems for sft, .* asks for 4'):
    supervised.rows(Task(), TOK, 4)
  with pytest.raises(ValueError, match='10 lines do not split into 4 microbatches'):
    SFT(experiment.stages[0].optimizer, steps=1, lines=10, microbatches=4)


def test_batches_are_packed_and_counted(experiment):
  stage, task = experiment.stages[0], load(experiment.task)
  first = next(supervised.batches(stage, task, TOK, 1, seed=3))
  again = next(supervised.batches(stage, task, TOK, 1, seed=3))
  np.testing.assert_array_equal(first.inputs.tokens_BL, again.inputs.tokens_BL)
  assert first.targets_BL.shape == (8, 64) and len(first.ahead_targets) == 1
  assert supervised.tokens(first) == (first.inputs.segments_BL > 0).sum()


def test_target_tokens_divide_the_loss(experiment):
  row = supervised.rows(Task(), TOK, 1)[0]
  data = batch([[row], [row, row]], 60, 1)
  d = supervised.denominators(data, experiment.model)
  targets = 3 * sum(row.weights)
  assert (float(d.main), float(d.tokens), float(d.balance)) == (targets, targets, 3 * 3)
