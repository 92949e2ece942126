"""Answers of a tiny model: whole groups, independent of the batch; prompts from rows."""

import dataclasses
import json

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.curate.sample import Asking, distinct, prompts, sample, width
from r1jax.engine.engine import Engine
from r1jax.records.jsonl import Jsonl, JsonlRecords
from r1jax.tasks.task import Example, Grade, Outcome
from r1jax.tokenizers.byte import ByteTokenizer

TOK = ByteTokenizer()
EXAMPLES = [Example(str(i), f'{i} + {i}') for i in range(5)]


@pytest.fixture(scope='module')
def engine(cfg):
  return Engine(cfg, TOK.stops)


def grade(calls):
  return [Grade(Outcome.WRONG, len(text) / 100) for _, text in calls]


def ask(engine, params, examples, batch, grade=grade, **more):
  asking = Asking(group=2, batch=batch, limit=6)
  made = sample(engine, params, TOK, examples, grade, asking, **more)
  return [answers for part in made for answers in part]


def test_samples_do_not_depend_on_the_batch_nor_on_where_it_begins(engine, params):
  whole = ask(engine, params, EXAMPLES, 5)
  assert [a.example for a in whole] == EXAMPLES
  assert all(len(a.samples) == 2 for a in whole)
  assert ask(engine, params, EXAMPLES, 2) == whole  # the last batch is filled up
  assert ask(engine, params, EXAMPLES[3:], 2, first=3) == whole[3:]
  assert ask(engine, params, EXAMPLES[3:], 2) != whole[3:]


def test_a_sample_holds_its_tokens_and_its_grade(engine, params):
  for answers in ask(engine, params, EXAMPLES, 5):
    for s in answers.samples:
      assert s.tokens[: s.prompt] == TOK.prompt(answers.example.question)
      drawn = s.tokens[s.prompt :]
      assert TOK.decode(drawn) == s.text and 1 <= len(drawn) <= 6
      assert s.stopped == (drawn[-1] == TOK.eos) and s.grade.reward == len(s.text) / 100


def test_a_grader_that_cannot_judge_is_an_error_one_that_judges_some_is_not(engine, params):
  crash = Grade(Outcome.UNPARSEABLE, 0.0, {'crash': 1.0})
  crashing = lambda calls: [crash for _ in calls]
  with pytest.raises(UserError, match='the grader failed on 10 of 10 samples and judged none'):
    ask(engine, params, EXAMPLES, 5, crashing)
  half = lambda calls: [crash if i % 2 else g for i, g in enumerate(grade(calls))]
  assert len(ask(engine, params, EXAMPLES, 5, half)) == 5
  unread = Grade(Outcome.UNPARSEABLE, 0.0)
  one = lambda calls: [unread if i else crash for i, _ in enumerate(calls)]
  assert len(ask(engine, params, EXAMPLES, 5, one)) == 5


def test_rows_become_prompts(tmp_path):
  rows = [{'question': 'a?'}, {'question': 'b?', 'answer': '2', 'system': 'Think.', 'other': 3}]
  (tmp_path / 'p.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  first, second = prompts(JsonlRecords(Jsonl(str(tmp_path / 'p.jsonl'))))
  assert first == Example(f'{tmp_path}/p.jsonl line 1', 'a?')
  assert (second.question, second.answer, second.system) == ('b?', '2', 'Think.')


def test_what_is_asked_again_is_left_out():
  spoken = Example('s', EXAMPLES[0].question, system='Add.')
  again = [dataclasses.replace(e, id='again') for e in (*EXAMPLES, spoken)]
  assert distinct([*EXAMPLES, spoken, *again]) == [*EXAMPLES, spoken]


def test_the_width_is_a_bucket_that_holds_the_longest_prompt():
  longest = max(len(TOK.prompt(e.question)) for e in EXAMPLES)
  assert width(TOK, EXAMPLES) >= longest
  assert width(TOK, [*EXAMPLES, Example('x', 'y' * 100)]) >= 103


def test_numbers_are_plain(engine, params):
  """So that rows of them are JSON."""
  (first, *_) = ask(engine, params, EXAMPLES, 5)[0].samples
  assert {type(first.prompt), *map(type, first.tokens)} == {int}
  assert type(first.stopped) is bool and not isinstance(first.tokens, np.ndarray)
