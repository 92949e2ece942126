"""The benchmark of decoding at its smallest: every part runs and says what it should."""

import sys

import pytest

from r1jax.model import presets
from tests.benchmarks import decode


def test_bytes_and_attention_alone(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['decode', '--only=bytes,kernels'])
  monkeypatch.setattr(decode, 'LONG', 8192)
  monkeypatch.setattr(decode, 'RING', 512)
  decode.main()
  said = capsys.readouterr().out
  bars = [line for line in said.splitlines() if line.startswith('bar: ')]
  assert bars[0].startswith('bar: decode_cache_bytes_saved_percent 8') and 'pass' in bars[0]
  assert [b.split()[-1] for b in bars[1:]] == ['not-run'] * 5
  assert [line.split()[0] for line in said.splitlines() if '%' in line][-5:] == [*decode.CASES]


@pytest.mark.slow
def test_paths(capsys):
  decode.paths({'one': presets.tiny_dense(layers=1)}, 2, [256], 1)
  said = capsys.readouterr().out
  rows = [line.split() for line in said.splitlines() if line.startswith('one  ')]
  assert [(row[2], row[-1]) for row in rows] == [
    ('full', 'gather'), ('window', 'pool'), ('hybrid', 'pool'), ('blocks', 'pool'),
  ]  # fmt: skip
  assert all(float(x) > 0 for row in rows for x in row[3:6])
  assert said.count('not-run') == 3
