"""The four kinds on the disk, from a stub of an engine whose completions are known."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.text import render
from r1jax.curate import made, shards
from r1jax.curate.made import Logits, Maker
from r1jax.curate.sample import Asking
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Solved
from r1jax.engine.generate import Samples
from r1jax.model import transformer
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.records.jsonl import Jsonl
from r1jax.records.record import RecordError
from r1jax.sharding import place
from r1jax.tasks.task import Example, Grade, Outcome
from r1jax.tokenizers import chat
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import supervised

TOK = ByteTokenizer()
LIMIT = 12
EXAMPLES = [Example(str(n), f'{n} + 1', str(n + 1)) for n in range(6)]


class Engine:
  """Says 'n' to n + 1 in every first sample, the right answer in every second one."""

  def __init__(self, cfg):
    self.cfg = cfg

  def __call__(self, params, prompts_BP, lengths_B, keys_B, sampling, limit):
    tokens_BT = np.full((len(prompts_BP), limit), TOK.pad, np.int32)
    lengths = []
    for b, (p, n) in enumerate(zip(prompts_BP, lengths_B)):
      number = int(TOK.decode(p[:n].tolist()).split('|user|>')[1].split()[0])
      ids = chat.render_solution(TOK, 'add', str(number + b % 2))
      tokens_BT[b, : len(ids)] = ids
      lengths.append(len(ids))
    return Samples(
      tokens_BT, np.zeros(tokens_BT.shape, 'f4'), np.array(lengths), np.ones(len(lengths), bool), ()
    )


def grade(calls):
  good = lambda e, text: text == render('add', e.answer)
  outcome = lambda *call: Outcome.CORRECT if good(*call) else Outcome.WRONG
  return [Grade(o, float(o is Outcome.CORRECT)) for o in (outcome(*call) for call in calls)]


@pytest.fixture
def maker(cfg, params):
  return make(cfg, params)


def make(cfg, params):
  told = []
  asking = Asking(group=2, batch=4, limit=LIMIT)
  narrate = lambda done, **figures: told.append((done, figures))
  made = Maker(Engine(cfg), params, TOK, grade, asking, narrate=narrate)
  return made, told


def test_samples_are_a_file_that_sft_reads(maker, tmp_path):
  m, narrated = maker
  out = tmp_path / 's.jsonl'
  told = made.samples(m, EXAMPLES, out, 'correct', None)
  assert (told.prompts, told.served, told.samples, told.used, told.rows) == (6, 6, 12, 6, 6)
  assert told.outcomes['correct'] == told.outcomes['wrong'] == 6
  assert narrated == [(4, {'rows': 4, 'accuracy': 0.5}), (6, {'rows': 6, 'accuracy': 0.5})]
  data = Mixture((Part(Solved(Jsonl(str(out)), 'question', 'thought', 'answer')),))
  (source,) = supervised.opened(data, 64, None, TOK)
  want, weights = chat.render(TOK, '2 + 1', 'add', '3')
  (row,) = source.rows(2)
  assert row.tokens.tolist() == want and row.weights.tolist() == weights
  assert told.tokens == sum(2 * sum(chat.render(TOK, '', 'add', e.answer)[1]) for e in EXAMPLES)


def test_pairs_and_labels_are_files(maker, tmp_path):
  m, _ = maker
  made.pairs(m, EXAMPLES[:1], tmp_path / 'p', None)
  pair = {'question': '0 + 1', 'chosen': render('add', '1'), 'rejected': render('add', '0')}
  assert json.loads((tmp_path / 'p').read_text()) == pair
  told = made.labels(m, EXAMPLES[:1], tmp_path / 'l', None)
  rows = [json.loads(line) for line in (tmp_path / 'l').read_text().splitlines()]
  assert [(r['completion'], r['label']) for r in rows] == [
    (render('add', '0'), 0.0),
    (render('add', '1'), 1.0),
  ]
  assert (told.used, told.rows) == (2, 2)


def test_logits_are_the_models_own_of_the_kept_tokens(maker, params, cfg, tmp_path):
  m, _ = maker
  spec = Logits('teacher', k=5, temperature=2.0, lines=2)
  told = made.logits(m, EXAMPLES, tmp_path / 'f', 'correct', None, spec)
  assert told.rows == 6
  lines = shards.Lines(str(tmp_path / 'f'))
  assert (lines.about.k, lines.about.temperature, lines.about.teacher) == (5, 2.0, 'teacher')
  taught = lines.take(0, len(lines), 0, 0)
  batch = taught.batch
  learned = sorted(
    TOK.decode(t[w > 0].tolist()) for t, w in zip(batch.targets_BL, batch.weights_BL)
  )
  assert sum(text.count('<think>') for text in learned) == 6
  x_BLD = Transformer(cfg).apply({'params': params}, Inputs(*batch.inputs)).x_BLD
  z_BLV = np.asarray(x_BLD @ transformer.head(params, cfg), 'f8') / 2.0
  logp_BLV = z_BLV - np.log(np.exp(z_BLV).sum(-1, keepdims=True))
  used = batch.inputs.segments_BL > 0
  want_BLK = -np.sort(-logp_BLV, -1)[..., :5]
  np.testing.assert_allclose(taught.logp_BLK[used], want_BLK[used], rtol=1e-4, atol=1e-4)
  at_BLK = np.take_along_axis(logp_BLV, taught.ids_BLK, -1)
  np.testing.assert_allclose(at_BLK[used], want_BLK[used], rtol=1e-4, atol=1e-4)


def test_ids_that_only_pad_the_models_vocabulary_have_none_of_the_mass(cfg, tmp_path):
  padded = dataclasses.replace(cfg, vocab=272)
  params = place.init(Transformer(padded), jax.random.key(0), None, dummy_inputs(padded))
  m, _ = make(padded, params)
  made.logits(m, EXAMPLES[:2], tmp_path / 'f', 'correct', None, Logits('t', k=265))
  lines = shards.Lines(str(tmp_path / 'f'))
  found = lines.take(0, len(lines), 0, 0)
  used = found.batch.inputs.segments_BL > 0
  assert (np.sort(found.ids_BLK[used]) == np.arange(265)).all()
  np.testing.assert_allclose(np.exp(found.logp_BLK[used]).sum(-1), 1, rtol=1e-4)
  with pytest.raises(UserError, match='k 266; the tokenizer has 265 ids'):
    made.logits(m, EXAMPLES, tmp_path / 'g', 'correct', None, Logits('t', k=266))


def test_malformed_samples_are_kept_but_not_learned_by_sft(maker, tmp_path):
  m, _ = maker
  written = functools.partial(chat.render_solution, TOK)
  bare = lambda tok, thought, answer: TOK.encode(answer) + written('', '')[-1:]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(chat, 'render_solution', bare)
    told = made.samples(m, EXAMPLES[:1], tmp_path / 's', 'all', None)
  assert told.rows == 2
  source = Solved(Jsonl(str(tmp_path / 's')), 'question', 'thought', 'answer')
  (opened,) = supervised.opened(Mixture((Part(source),)), 64, None, TOK)
  with pytest.raises(RecordError, match="line 1: no field 'thought'"):
    opened.rows(0)


def test_what_cannot_hold_or_be_asked_is_refused_before_anything_is_sampled(maker, tmp_path):
  m, narrated = maker
  go = functools.partial(made.logits, m, EXAMPLES, tmp_path / 'f', 'correct', None)
  with pytest.raises(UserError, match=r'length 3; a row may have \d+ inputs: give that at least'):
    go(Logits('t', length=3))
  with pytest.raises(UserError, match='k 266; the tokenizer has 265 ids: give that at most'):
    go(Logits('t', k=266))
  assert not narrated and not list(tmp_path.iterdir())


def test_no_row_at_all_is_an_error_and_leaves_no_file(maker, tmp_path):
  m, _ = maker
  wrong = lambda calls: [Grade(Outcome.WRONG, 0.0) for _ in calls]
  m = Maker(m.engine, m.params, TOK, wrong, m.asking)
  with pytest.raises(UserError, match=r"none of 12 samples makes a row .*'wrong': 12.*keep all"):
    made.samples(m, EXAMPLES, tmp_path / 's', 'correct', None)
  assert not list(tmp_path.iterdir())
