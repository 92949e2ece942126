"""Judged completions: which tokens, which positions, in which order, and what is refused."""

import dataclasses
import json

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from r1jax.core.config import ConfigError
from r1jax.core.errors import UserError
from r1jax.core.text import render
from r1jax.data import preferences
from r1jax.data.preferences import Labelled, Mistakes, Pairs, Steps
from r1jax.records.jsonl import Jsonl
from r1jax.records.parquet import Parquet
from r1jax.tasks.task import Example
from r1jax.tokenizers import chat
from r1jax.tokenizers.byte import ByteTokenizer

TOK = ByteTokenizer()
KINDS = {'pairs': 2, 'labels': 1, 'steps': 1}


class Task:
  """Products in two steps."""

  name = 'products'

  def examples(self, split, start, count):
    assert (split, start) == ('sft', 0)
    return [
      Example(f'{i}', f'{i}*12', f'{i * 12}', f'{i}*10={i * 10}\n{i * 10}+{i * 2}={i * 12}')
      for i in range(min(count, 20))
    ]


class Opened(ByteTokenizer):
  """Prompts end with what opens the thought."""

  opened = '<think>\n'

  def prompt(self, question, system=None):
    return [*super().prompt(question, system), *self.encode_special('<think>'), *self.encode('\n')]


@pytest.fixture
def jsonl(tmp_path):
  """jsonl(rows): their file."""

  def write(*rows):
    path = tmp_path / 'data.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return Jsonl(str(path))

  return write


def make(spec, kind, width=64, tok=TOK):
  return preferences.make(spec, kind, Task(), tok, width)


def said(function, *args):
  """The text of the error; its type is part of it."""
  with pytest.raises(UserError) as error:
    function(*args)
  return f'{type(error.value).__name__}: {error.value}'


def read_up_to(completion, end, tok=TOK):
  """What the model has read at input `end`, as text."""
  return tok.decode(completion.row.tokens[: end + 1])


# What a completion is.


def test_pairs_are_rows_as_the_chat_template_writes_them(jsonl):
  better, worse = render('1+1=2', '2'), render('1+1=3', '3')
  spec = Pairs(jsonl({'q': '1+1', 'good': better, 'bad': worse}), 'q', 'good', 'bad')
  (good, bad) = make(spec, 'pairs').groups[0]
  for completion, text in ((good, ('1+1=2', '2')), (bad, ('1+1=3', '3'))):
    tokens, mask = chat.render(TOK, '1+1', *text)
    assert completion.row.tokens.tolist() == tokens and completion.row.weights.tolist() == mask
    assert completion.row.tokens[completion.ends[0]] == TOK.encode_special('</answer>')[0]
    assert completion.row.tokens[completion.ends[0] + 1] == TOK.eos
  assert (good.labels, bad.labels) == ((1.0,), (0.0,))


@pytest.mark.parametrize(
  ('spec', 'kind', 'judged'),
  [
    (Pairs, 'pairs', {'chosen': '2', 'rejected': '3'}),
    (Labelled, 'labels', {'completion': '2', 'label': 1}),
    (Steps, 'steps', {'steps': ['1', '2'], 'labels': [1, 1]}),
  ],
)
def test_a_system_prompt_of_a_record_is_read(jsonl, spec, kind, judged):
  row = {'question': '1+1', 'system': 'Be brief.', **judged}
  for c in make(spec(jsonl(row)), kind).groups[0]:
    assert c.row.tokens.tolist()[: c.row.weights.tolist().index(1)] == TOK.prompt(
      '1+1', 'Be brief.'
    )
  assert "field 'system' is of type int" in said(make, spec(jsonl(row | {'system': 3})), kind)


def test_a_completion_is_not_opened_twice(jsonl):
  for text in ('<think>\n2</think>', '<think>2</think>', '2</think>'):
    spec = Labelled(jsonl({'question': '1+1', 'completion': text, 'label': 0.25}))
    ((one,),) = make(spec, 'labels', tok=Opened()).groups
    assert read_up_to(one, one.ends[0]) == '<|bos|><|user|>1+1<|assistant|><think>\n2</think>'
    assert one.labels == (0.25,)


def test_a_step_ends_behind_what_joins_it_to_the_next(jsonl):
  spec = Steps(jsonl({'question': '?', 'steps': ['a', 'bc'], 'labels': [1, 0]}), joint=';')
  ((one,),) = make(spec, 'steps').groups
  read = [read_up_to(one, end).removeprefix('<|bos|><|user|>?<|assistant|>') for end in one.ends]
  assert read == ['a;', 'a;bc']
  assert one.labels == (1.0, 0.0)


def test_mistakes_are_worked_solutions_against_mistaken_ones():
  pairs, labelled, steps = (make(Mistakes(3, skip=1), kind) for kind in KINDS)
  assert (len(pairs), len(labelled), len(steps)) == (3, 6, 6)
  for (sound, unsound), e in zip(pairs.groups, Task().examples('sft', 0, 4)[1:]):
    tokens, mask = chat.render(TOK, e.question, e.solution, e.answer)
    assert sound.row.tokens.tolist() == tokens and sound.row.weights.tolist() == mask
    assert len(unsound.row.tokens) and unsound.row.tokens.tolist() != tokens
  flat = [c for group in pairs.groups for c in group]
  for one, (by_label,), (by_step,) in zip(flat, labelled.groups, steps.groups, strict=True):
    assert one.row.tokens.tolist() == by_label.row.tokens.tolist() == by_step.row.tokens.tolist()
    assert min(by_step.labels) == by_label.labels[0] == one.labels[0]
    assert len(by_step.labels) == 3 and sorted(by_step.labels)[::-1] == list(by_step.labels)
    ends = [read_up_to(by_step, end)[-1] for end in by_step.ends]
    assert ends == ['\n', '>', '>'] and by_step.ends[-1] == one.ends[0]


# Batches.


def test_a_batch_says_where_each_completion_ends_and_fills_up_with_nothing():
  docs = make(Mistakes(2), 'steps')
  rows = preferences.taken(docs, 0, 3, 7)
  b = preferences.batch(rows, 4, 64, depths=1)
  for i, c in enumerate(rows):
    n = len(c.row.tokens)
    assert b.batch.inputs.tokens_BL[i, : n - 1].tolist() == c.row.tokens[:-1].tolist()
    assert b.last_B[i] == n - 2 == np.flatnonzero(b.batch.inputs.segments_BL[i])[-1]
    assert np.flatnonzero(b.end_BL[i]).tolist() == list(c.ends)
    assert b.label_BL[i][b.end_BL[i]].tolist() == list(c.labels)
    assert b.label_B[i] == min(c.labels)
    assert b.batch.targets_BL[i][b.batch.weights_BL[i] > 0].tolist()[-1] == TOK.eos
  assert not b.batch.inputs.segments_BL[3].any() and not b.batch.weights_BL[3].any()
  assert not b.end_BL[3].any() and len(b.batch.ahead_targets) == 1


@given(st.integers(1, 20), st.integers(0, 50), st.integers(1, 50), st.integers(0, 3))
def test_each_epoch_holds_every_document_once_in_an_order_of_its_own(n, start, count, seed):
  docs = preferences.Documents('a', tuple((i, -i) for i in range(1, n + 1)), '')
  rows = preferences.taken(docs, start, count, seed)
  assert rows[1::2] == [-i for i in rows[::2]]
  whole = preferences.taken(docs, 0, start + count, seed)
  assert rows == whole[2 * start :]
  for epoch in range((start + count) // n):
    held = whole[2 * epoch * n : 2 * (epoch + 1) * n : 2]
    assert sorted(held) == list(range(1, n + 1))


def test_epochs_and_seeds_differ_in_order():
  docs = preferences.Documents('a', tuple((i,) for i in range(20)), '')
  orders = [tuple(preferences.taken(docs, at, 20, seed)) for at in (0, 20) for seed in (0, 1)]
  assert len(set(orders)) == 4


# What cannot be used.


def test_wrong_rows_are_named_before_anything_starts(jsonl):
  bad = lambda kind, spec, **row: said(make, spec(jsonl(row)), kind)
  labelled = {'question': 'q', 'completion': 'c'}
  assert bad('labels', Labelled, **labelled, label=2).endswith(
    'data.jsonl line 1: label 2, expected a number from 0 to 1'
  )
  assert "label 'good', expected" in bad('labels', Labelled, **labelled, label='good')
  assert "no field 'label'" in bad('labels', Labelled, **labelled)
  assert 'label nan, expected' in bad('labels', Labelled, **labelled, label=float('nan'))
  assert 'line 1: a completion or a step of it is empty' in bad(
    'labels', Labelled, question='q', completion='', label=1
  )
  for steps, labels in ((['a'], [1, 0]), ('ab', [1, 0]), ([], []), (['a'], 1)):
    assert 'expected a list of steps and as many labels' in bad(
      'steps', Steps, question='q', steps=steps, labels=labels
    )
  assert 'a step is no text' in bad('steps', Steps, question='q', steps=[3], labels=[1])
  assert "no field 'rejected'" in bad('pairs', Pairs, question='q', chosen='a')


def test_what_does_not_fit_is_said_and_never_cut(jsonl):
  spec = Labelled(jsonl({'question': 'q', 'completion': 'abcd', 'label': 1}))
  assert len(make(spec, 'labels', 8)) == 1
  assert said(make, spec, 'labels', 7).endswith('line 1: 8 inputs, a row holds 7; raise width')
  assert 'problem 0: 2' in said(make, Mistakes(1), 'pairs', 20)


def test_data_of_another_kind_no_task_and_too_few_problems_are_said(jsonl):
  spec = Pairs(jsonl({}))
  assert said(make, spec, 'steps') == (
    "UserError: data is Pairs(…), which gives 'pairs', the objective learns from 'steps'; choose "
    "the other's match"
  )
  assert 'the run has none' in said(preferences.make, Mistakes(), 'pairs', None, TOK, 9)
  assert 'has 20 worked problems for sft, the stage asks for 21' in said(
    make, Mistakes(1, skip=20), 'pairs'
  )
  with pytest.raises(ConfigError, match='expected'):
    Pairs(spec.records, share=(0.5, 0.5))
  with pytest.raises(ValueError, match='examples=0, skip=0'):
    Mistakes(0)


def test_shares_divide_and_fingerprints_tell_data_apart(jsonl):
  spec = Labelled(jsonl(*({'question': str(i), 'completion': 'c', 'label': 1} for i in range(10))))
  a, b = (dataclasses.replace(spec, share=share) for share in ((0.0, 0.7), (0.7, 1.0)))
  assert len(make(a, 'labels')) == 7 and len(make(b, 'labels')) == 3
  assert make(a, 'labels').fingerprint == make(b, 'labels').fingerprint
  assert (
    make(a, 'labels').fingerprint
    != make(dataclasses.replace(a, completion='question'), 'labels').fingerprint
  )
  assert make(Mistakes(2), 'pairs').fingerprint != make(Mistakes(2, 1), 'pairs').fingerprint


def test_steps_come_from_parquet_too(tmp_path):
  path = str(tmp_path / 'a.parquet')
  table = pyarrow.table({'question': ['q'], 'steps': [['a', 'b']], 'labels': [[1.0, 0.5]]})
  parquet.write_table(table, path)
  ((one,),) = make(Steps(Parquet(path)), 'steps').groups
  assert one.labels == (1.0, 0.5) and read_up_to(one, one.ends[1]).endswith('>a\nb')
