"""Sources: which documents, which rows, and one line for whatever cannot be used."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.config import ConfigError
from r1jax.core.errors import UserError
from r1jax.data import sources
from r1jax.data.sources import Problems, Solved, Text, Worked
from r1jax.records.jsonl import Jsonl
from r1jax.records.record import RecordError
from r1jax.records.text_files import TextFiles
from r1jax.tasks.file import File
from r1jax.tasks.task import Example
from r1jax.tokenizers import chat
from r1jax.tokenizers.byte import ByteTokenizer

TOK = ByteTokenizer()
EXAMPLE = pathlib.Path(__file__).parents[1] / 'tasks' / 'my_task_example.py'


class Task:
  """Three examples, the second without what `lacks` names."""

  name = 'three'

  def __init__(self, lacks=None):
    self._lacks = lacks

  def examples(self, split, start, count):
    assert (split, start) == ('sft', 0)
    made = [Example(str(i), f'{i}?', str(i), 'because') for i in range(min(count, 3))]
    if self._lacks:
      made[1] = dataclasses.replace(made[1], **{self._lacks: None})
    return made


@pytest.fixture
def jsonl(tmp_path):
  """jsonl(rows): their file."""

  def write(rows):
    path = tmp_path / 'data.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return Jsonl(str(path))

  return write


def make(spec, length=100, task=None):
  return sources.make(spec, task or Task(), TOK, length)


def listed(rows):
  return [(list(map(int, row.tokens)), list(map(float, row.weights))) for row in rows]


def rendered(*texts):
  tokens, mask = chat.render(TOK, *texts)
  return [(tokens, list(map(float, mask)))]


def said(function, *args):
  """The text of the error; its type is part of it."""
  with pytest.raises(UserError) as error:
    function(*args)
  return f'{type(error.value).__name__}: {error.value}'


# Worked


def test_worked_rows_hold_prompt_and_solution_with_the_prompt_masked():
  source = make(Worked(2))
  assert (source.name, len(source)) == ('three', 2)
  assert listed(source.rows(1)) == rendered('1?', 'because', '1')
  tokens, weights = listed(source.rows(1))[0]
  assert tokens[-1] == TOK.eos and weights == [0] * 5 + [1] * (len(tokens) - 5)


def test_worked_prompts_are_those_of_the_rollout():
  """A system message stands in both, or the model is asked what it was not taught."""

  class Told(Task):
    def examples(self, split, start, count):
      return [dataclasses.replace(e, system='Add.') for e in super().examples(split, start, count)]

  tokens, weights = listed(make(Worked(1), task=Told()).rows(0))[0]
  prompt = tokens[: weights.index(1)]
  assert prompt == TOK.prompt('0?', 'Add.') != TOK.prompt('0?')


@pytest.mark.parametrize('lacks', ['solution', 'answer'])
def test_a_missing_solution_is_named(lacks):
  assert said(make, Worked(3), 100, Task(lacks)) == (
    'UserError: task three gives no worked solution for 1; SFT needs Example.solution and .answer'
  )


def test_too_few_none_and_too_long_solutions_are_said_at_once():
  assert said(make, Worked(4)) == (
    'UserError: task three has 3 worked problems for sft, the stage asks for 4; ask for 3 at most'
  )
  assert said(make, Worked(0)) == (
    'UserError: 0 problems of task three asked for; expected 1 or more'
  )
  assert said(make, Worked(3), 16) == (
    'UserError: the longest row has 17 inputs, a line holds 16: raise length'
  )
  assert len(make(Worked(3), 17)) == 3


# Text


def test_text_is_framed_and_every_token_is_a_target(jsonl):
  source = make(Text(jsonl([{'body': 'ab'}, {'body': 'é'}]), 'body'))
  assert len(source) == 2
  assert listed(source.rows(0)) == [([TOK.bos, 97, 98, TOK.eos], [1, 1, 1, 1])]
  assert listed(source.rows(1)) == [([TOK.bos, 0xC3, 0xA9, TOK.eos], [1, 1, 1, 1])]


def test_long_texts_are_cut_with_one_token_in_common(jsonl):
  source = make(Text(jsonl([{'text': 'abcde'}, {'text': 'abcd'}])), length=3)
  tokens = lambda i: [list(row.tokens) for row in source.rows(i)]
  assert tokens(0) == [[TOK.bos, 97, 98, 99], [99, 100, 101, TOK.eos]]
  assert tokens(1) == [[TOK.bos, 97, 98, 99], [99, 100, TOK.eos]]


@given(st.integers(1, 40), st.integers(1, 12))
def test_every_token_is_predicted_once(tmp_path_factory, size, length):
  folder = tmp_path_factory.mktemp('texts')
  (folder / 'a.txt').write_text(''.join(map(chr, range(40, 40 + size))))
  rows = make(Text(TextFiles(str(folder / '*.txt'))), length).rows(0)
  whole = [TOK.bos, *range(40, 40 + size), TOK.eos]
  assert [t for row in rows for t in row.tokens[:-1]] == whole[:-1]
  assert [t for row in rows for t in row.tokens[1:]] == whole[1:]
  assert all(1 < len(row.tokens) <= length + 1 and row.weights.all() for row in rows)


def test_a_text_that_cannot_be_used_is_named_when_it_is_read(jsonl):
  spec = jsonl([{'text': 'a'}, {'text': ''}, {'txt': 'b'}, {'text': 3}])
  source = make(Text(spec))
  assert said(source.rows, 1) == (
    f"RecordError: {spec.path} line 2: field 'text' is empty, expected text; remove the row"
  )
  assert f"RecordError: {spec.path} line 3: no field 'text'; did you mean 'txt'" in said(
    source.rows, 2
  )
  assert f"RecordError: {spec.path} line 4: field 'text' is of type int" in said(source.rows, 3)


@given(st.integers(1, 50), st.floats(0.05, 0.95))
def test_shares_part_the_documents(tmp_path_factory, count, cut):
  path = tmp_path_factory.mktemp('shares') / 'data.jsonl'
  path.write_text(''.join(json.dumps({'text': f'{i}'}) + '\n' for i in range(count)))
  held = []
  for share in ((0.0, cut), (cut, 1.0)):
    try:
      source = make(Text(Jsonl(str(path)), share=share))
    except UserError as error:
      assert str(error) == f'share {share} of the {count} rows of {path} is empty; widen it'
      continue
    held += [TOK.decode(source.rows(i)[0].tokens[1:]) for i in range(len(source))]
  assert held == [f'{i}' for i in range(count)]


@pytest.mark.parametrize('share', [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (1.0, 0.0)])
def test_a_share_is_a_part(share):
  for spec in (Text, Solved, Problems):
    with pytest.raises(ConfigError) as error:
      spec(Jsonl('a.jsonl'), share=share)
    assert str(error.value) == f'share={share}; expected (from, to) with 0 <= from < to <= 1'


# Solved


def test_solved_rows_are_those_of_the_template(jsonl):
  spec = jsonl([{'q': 'x', 'why': 'y', 'answer': 'z'}, {'q': '1', 'why': '2', 'answer': '3'}])
  source = make(Solved(spec, question='q', thought='why', share=(0.5, 1.0)))
  assert len(source) == 1
  assert listed(source.rows(0)) == rendered('1', '2', '3')


def test_solved_rows_may_have_a_system_prompt(jsonl):
  row = {'problem': 'x', 'solution': 'y', 'answer': 'z'}
  source = make(Solved(jsonl([row | {'system': s} for s in ('Be brief.', None, 3)])))
  assert listed(source.rows(0)) == rendered('x', 'y', 'z', 'Be brief.')
  assert listed(source.rows(1)) == rendered('x', 'y', 'z')
  assert "line 3: field 'system' is of type int, expected a text" in said(source.rows, 2)


def test_a_solution_too_long_for_a_line_or_without_a_field_is_a_bad_record(jsonl):
  rows = [{'problem': 'x', 'solution': 'y' * n, 'answer': 'z'} for n in (3, 4)]
  spec = jsonl([*rows, {'problem': 'x', 'solution': 'y'}])
  source = make(Solved(spec), length=12)
  assert len(source.rows(0)[0].tokens) == 13
  assert said(source.rows, 1) == (
    f'RecordError: {spec.path} line 2: 13 inputs, a line holds 12; raise length'
  )
  assert said(source.rows, 2).startswith(f"RecordError: {spec.path} line 3: no field 'answer'")


# Problems


def test_problems_are_written_out(jsonl):
  source = make(Problems(File(str(EXAMPLE)), 3), length=200)
  example = sources.tasks_make.make(File(str(EXAMPLE))).examples('sft', 0, 3)[2]
  written = f'{example.question}\n{example.solution}\n{example.answer}'
  assert (source.name, len(source)) == ('products', 3)
  assert listed(source.rows(2)) == [
    ([TOK.bos, *written.encode(), TOK.eos], [1.0] * (len(written) + 2))
  ]


def test_problems_without_solution_or_answer():
  assert sources.Written(Task('solution'), 3)[1] == {'text': '1?\n1'}
  bad = sources.Written(Task('answer'), 3)
  with pytest.raises(RecordError) as error:
    bad[1]
  assert str(error.value) == 'task three problem 1: no answer; Problems needs Example.answer'
  assert said(sources.Written, Task(), 4) == (
    'UserError: task three has 3 worked problems for sft, the stage asks for 4; ask for 3 at most'
  )


# All of them


def test_fingerprints_name_the_data_whatever_the_tokenizer_and_length(jsonl):
  rows = [{'text': 'a', 'problem': 'x', 'solution': 'y', 'answer': 'z'}] * 4
  spec = jsonl(rows)
  other = Jsonl(spec.path.replace('data', 'more'))
  pathlib.Path(other.path).write_text(json.dumps(rows[0]) + '\n')
  products = File(str(EXAMPLE))
  specs = [
    *(Worked(2), Worked(3), Text(spec), Text(spec, 'answer'), Text(other)),
    *(Solved(spec), Solved(spec, thought='text'), Problems(products, 2), Problems(products, 3)),
  ]
  found = [make(s).fingerprint() for s in specs]
  assert len(set(found)) == len(specs)
  assert [make(s, length=400).fingerprint() for s in specs] == found
  assert make(Text(spec, share=(0.0, 0.5))).fingerprint() == found[2]
  assert all(len(f) == 16 and int(f, 16) >= 0 for f in found)


def test_rows_are_arrays(jsonl):
  spec = jsonl([{'text': 'a', 'problem': 'x', 'solution': 'y', 'answer': 'z'}])
  for source in (make(Worked(1)), make(Text(spec)), make(Solved(spec))):
    (row,) = source.rows(0)
    assert (row.tokens.dtype, row.weights.dtype) == (np.int32, np.float32)


def test_an_unknown_source_and_a_missing_task_are_errors():
  assert said(sources.make, Worked(3), None, TOK, 100) == (
    "UserError: source Worked(…) is of the run's task, and the run has none; name a task"
  )
  assert said(make, 'text') == (
    "UserError: source is 'text'; expected Worked(…), Text(…), Solved(…) or Problems(…)"
  )
