"""Prompts, keys and grades of a rollout; the engine is a stub that remembers its orders."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.core import prng
from r1jax.core.errors import UserError
from r1jax.engine.generate import Samples
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.rollout import collect
from r1jax.rollout.collect import Limits, Trajectories
from r1jax.tasks.file import from_functions
from r1jax.tasks.task import Example, Grade, Outcome
from r1jax.tokenizers.byte import ByteTokenizer

TOK = ByteTokenizer()
EXAMPLES = [Example('a', '1+2'), Example('b', '10+20')]


def samples(rows, limit=8, stopped=True):
  tokens = np.full((len(rows), limit), TOK.pad, np.int32)
  for row, ids in zip(tokens, rows):
    row[: len(ids)] = ids
  lengths = np.array([len(r) for r in rows])
  flags = np.broadcast_to(np.asarray(stopped), len(rows))
  return Samples(tokens, np.zeros(tokens.shape, np.float32), lengths, flags, ())


def test_prompt_rows_are_padded_right_and_carry_the_prefix():
  prompts, lengths = collect.prompt_rows(TOK, EXAMPLES, 9, prefix=[7])
  assert lengths.tolist() == [7, 9]
  bos, user, assistant = (
    TOK.encode_special(m)[0] for m in ('<|bos|>', '<|user|>', '<|assistant|>')
  )
  assert prompts[0].tolist() == [bos, user, *b'1+2', assistant, 7, TOK.pad, TOK.pad]
  assert prompts[1].tolist() == [bos, user, *b'10+20', assistant, 7]


def test_a_prompt_too_long_is_named_with_its_length_and_the_limit():
  said = r'the prompt of b has 8 tokens, the limit is 7: raise limits.prompt'
  with pytest.raises(UserError, match=said):
    collect.prompt_rows(TOK, EXAMPLES, 7)


def test_sample_gives_each_sample_its_own_key_and_keeps_groups_together():
  asked = {}

  def engine(params, prompts, lengths, keys, sampling, limit):
    asked.update(prompts=prompts, lengths=lengths, keys=keys, rest=(params, sampling, limit))
    return samples([[1]] * len(prompts))

  key, sampling = jax.random.key(4), Sampling(0.5)
  prompts, lengths, made = collect.sample(
    engine,
    'params',
    TOK,
    EXAMPLES,
    group=3,
    key=key,
    first=10,
    sampling=sampling,
    limits=Limits(9, 5),
  )
  assert asked['rest'] == ('params', sampling, 5) and len(made.length_B) == 6
  assert lengths.tolist() == [6, 6, 6, 8, 8, 8]
  assert [p.tobytes() for p in prompts] == [prompts[i].tobytes() for i in (0, 0, 0, 3, 3, 3)]
  expected = [prng.fold(key, n, s) for n in (10, 11) for s in range(3)]
  data = lambda k: np.asarray(jax.random.key_data(k))
  np.testing.assert_array_equal(data(asked['keys']), np.stack([data(k) for k in expected]))


def test_texts_end_at_the_length_and_unknown_ids_are_no_crash():
  made = samples([[*b'hi', TOK.eos], [*b'abc'], [65, 270, 66]])._replace(length_B=[3, 2, 3])
  assert collect.texts(TOK, made, prefix=[88]) == ['Xhi', 'Xab', 'XA\N{REPLACEMENT CHARACTER}B']


def test_texts_begin_with_what_the_prompt_opened():
  class Opened(ByteTokenizer):
    opened = '<think>\n'

  assert collect.texts(Opened(), samples([[*b'hi']]), prefix=[88]) == ['<think>\nXhi']


def test_contract_09_a_completion_that_was_cut_has_no_answer_unless_something_closed_it():
  made = samples([[1] * 4] * 3, stopped=[True, False, False])
  closed = Grade(Outcome.CORRECT, 1.2, {'accuracy': 1.0, 'format': 0.2})
  grades = [dataclasses.replace(closed, open=True)] * 2 + [closed]
  found = collect.graded(lambda calls: grades, [Example('0', '1 + 2', '3')] * 3, ['3'] * 3, made)
  cut = Grade(Outcome.UNPARSEABLE, 0.0, {'accuracy': 0.0, 'format': 0.0})
  assert found == [grades[0], cut, closed]


def numbered(first, n, support):
  """Rows whose every array says which row it is."""
  row = np.arange(first, first + n)
  wide = row[:, None] * np.ones((1, 3), int)
  ids = np.tile(row[:, None, None], (1, 3, 2)) if support else None
  made = Samples(
    wide, wide * 0.5, row, row % 2 > 0, ((None, np.tile(row[:, None, None], (2, 1, 4, 1))),), ids
  )
  texts, grades = [str(i) for i in row], [Grade(Outcome.WRONG, float(i)) for i in row]
  return Trajectories(wide, row, made, texts, grades)


@pytest.mark.parametrize('support', [False, True])
def test_rows_are_joined_and_taken_in_every_part(support):
  both = collect.join(numbered(0, 3, support), numbered(3, 2, support))
  jax.tree.map(np.testing.assert_array_equal, both[:3], numbered(0, 5, support)[:3])
  assert both[3:] == numbered(0, 5, support)[3:]
  got = collect.take(both, np.array([1, 2, 3]))
  jax.tree.map(np.testing.assert_array_equal, got[:3], numbered(1, 3, support)[:3])
  assert got[3:] == numbered(1, 3, support)[3:]
  assert collect.count(got) == 2 * (1 + 2 + 3)


def test_a_task_regrades_its_groups_one_by_one_and_with_lengths_in_tokens():
  shorter = lambda samples: [float(s.length == min(t.length for t in samples)) for s in samples]
  make = lambda seed: Example('', str(seed))
  grades = [Grade(Outcome.WRONG, float(i)) for i in range(4)]
  args = (grades, ['', '', '', ''], 2, [5, 4, 9, 9])
  found = collect.regraded(from_functions('t', make, None, group={'s': (0.5, shorter)}), *args)
  assert [g.reward for g in found] == [0, 1.5, 2.5, 3.5]
  assert [g.parts for g in found] == [{'s': v} for v in (0, 1, 1, 1)]
  assert collect.regraded(object(), *args) == grades
