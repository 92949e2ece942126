"""Evaluation from the checkpoint in a new process gives the figures of the end of training."""

import json

import pytest


def compare(workdir, printed, binary, name, step, file):
  """The last figures of a training run and those of its newest checkpoint are the same."""
  last = json.loads((workdir / 'summary.json').read_text())['evaluations'][-1]
  out = binary('evaluate', f'--checkpoint={workdir}', f'--out={file}', '--show=1')
  assert out.returncode == 0, out.stderr
  figures = json.loads(file.read_text())
  assert figures.pop('name') == f'step {step}' and last.pop('name') == name
  assert figures.pop('step') == step and last.pop('step') == 4  # of the run, of the stage
  assert {'samples', 'correct', 'greedy_accuracy', 'length', 'shown'} <= figures.keys()
  assert figures == {key: last[key] for key in figures}
  assert figures['samples'] == 32 and len(figures['shown']) == 3
  # Text that is read from a pipe has no carriage returns.
  said = figures['shown'][0]['completion'].replace('\r\n', '\n').replace('\r', '\n')
  assert said in out.stdout
  row = lambda text, start: next(l for l in text.splitlines() if l.startswith(start)).split()[2:14]
  # Self-checks beyond the SFT rate come after these: one checkpoint alone knows no SFT rate.
  assert row(out.stdout, f'step {step}') == row(printed, name)


@pytest.mark.whole
def test_a_new_process_measures_the_same_figures_exactly(trained, binary, tmp_path):
  workdir, printed, _ = trained
  compare(workdir, printed, binary, 'after SFT', 4, tmp_path / 'figures.json')


@pytest.mark.slow
def test_a_new_process_measures_the_same_figures_after_grpo(binary, tmp_path):
  workdir = tmp_path / 'run'
  out = binary('train', '--config=tests/system/tiny_config.py', f'--workdir={workdir}')
  assert out.returncode == 0, out.stderr
  assert 'grpo  4/4  100%' in out.stderr
  compare(workdir, out.stdout, binary, 'after GRPO', 8, tmp_path / 'figures.json')
