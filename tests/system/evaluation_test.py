"""Evaluation from the checkpoint in a new process gives the figures of the end of training."""

import json


def test_a_new_process_measures_the_same_figures_exactly(trained, binary, tmp_path):
  workdir, printed, _ = trained
  last = json.loads((workdir / 'summary.json').read_text())['evaluations'][-1]
  out = binary(
    'evaluate', f'--checkpoint={workdir}', f'--out={tmp_path / "figures.json"}', '--show=1'
  )
  assert out.returncode == 0, out.stderr
  figures = json.loads((tmp_path / 'figures.json').read_text())
  assert figures.pop('name') == 'step 8' and last.pop('name') == 'after GRPO'
  assert figures.pop('step') == 8 and last.pop('step') == 4  # updates of the run, of the stage
  assert {'samples', 'correct', 'greedy_accuracy', 'length', 'shown'} <= figures.keys()
  assert figures == {name: last[name] for name in figures}
  assert figures['samples'] == 32 and len(figures['shown']) == 3
  assert figures['shown'][0]['completion'] in out.stdout
  row = lambda text, name: next(l for l in text.splitlines() if l.startswith(name)).split()[2:14]
  # Self-checks beyond the SFT rate come after these: one checkpoint alone knows no SFT rate.
  assert row(out.stdout, 'step 8') == row(printed, 'after GRPO')
