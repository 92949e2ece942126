"""The benchmark of attention at its smallest."""

import dataclasses

import jax
import numpy as np

from r1jax.model.config import MLA, Blocks, Hybrid, Indexer, KeyTokens, TopK, Window
from tests.benchmarks import attention

PATTERNS = (
  ('dense', None),
  ('window', Window(8)),
  ('hybrid', Hybrid(8, KeyTokens(0.1, slots=8))),
  ('blocks', Blocks(8, 4, 8, 4, window=8)),
)
LATENT = MLA(2, 8, 4, 8, 16, pattern=TopK(8, Indexer(2, 8, 4)))
SMALL = attention.Case(4, 2, 8, 'float32', PATTERNS, LATENT, mla_trains=16)


def test_a_table_and_a_picture(tmp_path, capsys):
  by = attention.measured(SMALL, 32, 1)
  attention.table(SMALL, 32, by)
  rows = capsys.readouterr().out.splitlines()[1:]
  assert [row[2:14].strip() for row in rows] == list(SMALL.names)
  # Of latent attention, too long here, no backward.
  assert [len(row[14:].split()) for row in rows] == [5, 5, 5, 5, 3, 3]
  assert [row.split()[-1] for row in rows if 'dense' in row] == ['1.00', '1.00']
  attention.draw({32: by}, f'{tmp_path}/a.png')
  assert (tmp_path / 'a.png').stat().st_size > 0


def test_as_many_keys_as_tokens_give_dense_latent_attention():
  case = dataclasses.replace(
    SMALL, mla=dataclasses.replace(LATENT, pattern=TopK(64, Indexer(2, 8, 4)))
  )
  arrays, marks = attention.latent(case, 48)
  got, want = (
    jax.jit(attention.latent_attention(case, name, attention.row(48)))(*arrays, marks)
    for name in ('MLA top-k', 'MLA dense')
  )
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_bars_of_shorter_rows_are_not_run(capsys):
  by = {(n, k): (1.0, 1) for n in attention.CPU.names for k in ('forward', 'both')}
  attention.report({512: by, 1024: by}, full=False)
  assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()} == {'not-run'}
