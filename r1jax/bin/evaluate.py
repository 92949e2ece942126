"""Evaluates a checkpoint on held-out problems.

python -m r1jax.bin.evaluate --checkpoint=runs/quickstart
python -m r1jax.bin.evaluate --checkpoint=runs/smollm2 --config=configs/smollm2_gym.py
"""

import json
import pathlib

from absl import flags as absl_flags
from absl import logging

from r1jax.bin import flags

CHECKPOINT = absl_flags.DEFINE_string(
  'checkpoint', None, 'A workdir, its checkpoints folder, or one step of it.', required=True
)
CONFIG = flags.define_config(
  text='Python file with get_config(): its task and evaluation, for a checkpoint that has none.'
)
OUT = absl_flags.DEFINE_string(
  'out', None, 'File for the figures as JSON; printed only if not given.'
)
LM_EVAL = absl_flags.DEFINE_list(
  'lm_eval', None, 'Tasks of the standard harness (extra eval) in place of the own one.'
)
TASKS = absl_flags.DEFINE_string(
  'lm_eval_folder', None, 'Folder of local YAML tasks for --lm_eval.'
)
LIMIT = absl_flags.DEFINE_integer('lm_eval_limit', None, 'Problems a task for --lm_eval.')
CHAT = absl_flags.DEFINE_bool('lm_eval_chat', False, 'Apply the chat template in --lm_eval.')
SHOW = absl_flags.DEFINE_integer('show', 3, 'Transcripts to print.')


def main(overrides: flags.Overrides) -> None:
  """Restores, evaluates, prints the table and transcripts; --config.… overrides apply."""
  from r1jax.core import files
  from r1jax.eval import report
  from r1jax.train import restored
  from r1jax.train.experiment import Experiment

  logging.set_verbosity(logging.WARNING)
  measure = flags.load_config(Experiment, CONFIG.value, []) if CONFIG.value else None
  model = restored.load(CHECKPOINT.value, overrides, measure)
  if LM_EVAL.value:
    figures = restored.harness(
      model, LM_EVAL.value, TASKS.value, limit=LIMIT.value, chat=CHAT.value
    )
    print(json.dumps(figures, indent=2))
    if OUT.value:
      files.write_json(pathlib.Path(OUT.value), figures)
    return
  figures = restored.evaluate(model)
  print(report.table([figures]))
  for s in figures['shown'][: SHOW.value]:
    print(f'\n{s["question"]}\n{s["completion"]}\n→ {s["outcome"]}')
  if OUT.value:
    files.write_json(pathlib.Path(OUT.value), figures)
  else:
    brief = {k: v for k, v in figures.items() if k != 'shown'}
    print('\n' + json.dumps(files.plain(brief)))


if __name__ == '__main__':
  flags.run(main)
