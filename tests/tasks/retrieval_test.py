"""Facts and a question: needles, splits and distances, and what windows can know."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.core import config
from r1jax.model.config import Full, Window
from r1jax.model.presets import tiny_dense
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.rewards.outcome import Outcome
from r1jax.sharding import place
from r1jax.tasks.make import TaskSpec, make
from r1jax.tasks.retrieval import Retrieval, RetrievalTask
from r1jax.tasks.splits import split_of
from r1jax.tokenizers.byte import ByteTokenizer


@pytest.fixture(scope='module')
def task():
  return make(Retrieval())


@given(st.integers(1, 40), st.integers(0, 3), st.sampled_from(['sft', 'rl', 'eval']))
@settings(max_examples=20)
def test_a_question_has_one_answer_and_says_how_far_it_is(facts, seed, split):
  spec = Retrieval(4 * facts, seed)
  for e in RetrievalTask(spec).examples(split, 0, 3):
    lines, asked = e.question.split('\n')
    assert re.fullmatch(r'([a-z]\d; )+', lines) and re.fullmatch(r'[a-z]\?', asked)
    assert re.findall(rf'{asked[0]}(\d);', lines) == [e.answer]
    assert e.question[-e.meta['distance']] == e.answer and e.meta['needle'][-1] == e.answer
    assert e.question[-e.meta['distance'] - 1 :].startswith(e.meta['needle'] + ';')
    assert len(lines) == spec.length and len({*re.findall(r'..(?=;)', lines)}) <= 26
    assert (e.solution == e.meta['needle']) == (split == 'sft')
    assert split_of(e.question) == split


def test_needles_lie_everywhere_and_answers_are_even(task):
  held = task.examples('eval', 0, 400)
  distances = [e.meta['distance'] for e in held]
  assert {d // 32 for d in distances} >= set(range(8)) and max(distances) <= 258
  counts = [sum(e.answer == str(v) for e in held) for v in range(10)]
  assert min(counts) > 15 and max(counts) < 75


def test_splits_share_no_question(task):
  asked = [{e.question for e in task.examples(s, 0, 200)} for s in ('sft', 'rl', 'eval')]
  assert len(set.union(*asked)) == 600
  assert task.examples('eval', 5, 3) == RetrievalTask(Retrieval()).examples('eval', 0, 8)[5:]


@pytest.mark.parametrize(
  ('answer', 'outcome'),
  [('{}', Outcome.CORRECT), (' {} ', Outcome.CORRECT), ('{}{}', Outcome.WRONG), ('', None)],
)
def test_grades(task, answer, outcome):
  (e,) = task.examples('eval', 0, 1)
  said = answer.format(e.answer, e.answer)
  grade = task.grade(e, f'<think>{e.meta["needle"]}</think><answer>{said}</answer>')
  assert grade.outcome is (outcome or Outcome.UNPARSEABLE)
  assert grade.reward == float(outcome is Outcome.CORRECT)


@pytest.mark.parametrize('length', [0, -4, 6])
def test_bad_lengths(length):
  with pytest.raises(ValueError, match='expected a multiple of 4, the characters of a fact'):
    Retrieval(length)


def test_the_spec_survives_configs():
  @dataclasses.dataclass(frozen=True)
  class Run:
    task: TaskSpec

  run = Run(Retrieval(length=512, seed=3))
  assert config.from_dict(Run, config.to_dict(run)) == run


@pytest.mark.parametrize(('pattern', 'knows'), [(Full(), True), (Window(8), False)])
def test_layers_times_window_bounds_what_is_known(task, pattern, knows):
  """Another value at a distance beyond 2·(8 − 1) changes nothing where the answer is written."""
  base = tiny_dense(embed=16, layers=2)
  (layer, *_) = base.layers
  attention = dataclasses.replace(layer.attention, head=8, pattern=pattern)
  cfg = dataclasses.replace(base, layers=(dataclasses.replace(layer, attention=attention),) * 2)
  model, tok = Transformer(cfg), ByteTokenizer()
  params = place.init(model, jax.random.key(0), None, dummy_inputs(cfg))
  e = next(e for e in task.examples('eval', 0, 50) if e.meta['distance'] > 14)
  ids = np.array(
    [*tok.prompt(e.question), *tok.encode_special('<think>'), *tok.encode(e.meta['needle'][0])],
    np.int32,
  )
  other = ids.copy()
  at = len(tok.prompt(e.question)) - 1 - e.meta['distance']
  assert chr(ids[at]) == e.answer
  other[at] = ord('0') + (int(e.answer) + 1) % 10
  tokens_BL = np.stack([ids, other])
  positions_BL = np.broadcast_to(np.arange(len(ids)), tokens_BL.shape)
  x_BLD = model.apply(
    {'params': params}, Inputs(tokens_BL, positions_BL, np.ones_like(tokens_BL))
  ).x_BLD
  assert bool((x_BLD[0, -1] != x_BLD[1, -1]).any()) == knows
