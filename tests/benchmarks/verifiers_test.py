"""What the benchmark of verifiers says where nothing can be verified."""

import sys

from r1jax.core.errors import UserError
from tests.benchmarks import verifiers


def test_without_a_sandbox_no_bar_is_run(monkeypatch, capsys):
  def missing(_):
    raise UserError('no bwrap')

  monkeypatch.setattr(verifiers.Bubblewrap, 'check', missing)
  monkeypatch.setattr(verifiers, 'waved', None)  # what a rollout would ask for first
  monkeypatch.setattr(sys, 'argv', ['verifiers'])
  verifiers.main()
  _, said, *bars = capsys.readouterr().out.splitlines()
  assert said == 'no bwrap' and [b.split()[-1] for b in bars] == ['not-run'] * 2
