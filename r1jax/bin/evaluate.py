"""Evaluates a checkpoint on held-out problems.

python -m r1jax.bin.evaluate --checkpoint=runs/quickstart
python -m r1jax.bin.evaluate --checkpoint=runs/smollm2 --config=configs/smollm2_gym.py
python -m r1jax.bin.evaluate --checkpoint=runs/smollm2 --lm_eval=arc_easy --lm_eval_limit=100
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
LIMIT = absl_flags.DEFINE_integer(
  'lm_eval_limit', None, 'Problems a task for --lm_eval.', lower_bound=1
)
SHOTS = absl_flags.DEFINE_integer(
  'lm_eval_shots', None, "Solved examples in a prompt of --lm_eval; the task's own number if not "
  'given.', lower_bound=0,
)  # fmt: skip
CONTEXT = absl_flags.DEFINE_integer(
  'lm_eval_context', None, 'Most tokens of an input in --lm_eval, at most what the model was '
  'published for; that or 4096 if not given, whichever is smaller.', lower_bound=1,
)  # fmt: skip
CHAT = absl_flags.DEFINE_bool('lm_eval_chat', False, 'Apply the chat template in --lm_eval.')
SHOW = absl_flags.DEFINE_integer('show', 3, 'Transcripts to print.', lower_bound=0)


def check() -> None:
  """Refuses flags that would be ignored."""
  if LM_EVAL.present and not LM_EVAL.value:
    raise flags.UserError('--lm_eval names no task; give some, such as --lm_eval=arc_easy,gsm8k')
  for flag in (TASKS, LIMIT, SHOTS, CONTEXT, CHAT):
    if flag.present and not LM_EVAL.present:
      raise flags.UserError(f'--{flag.name} goes with --lm_eval; give its tasks, or leave it out')
  for flag in (CONFIG, SHOW):
    if flag.present and LM_EVAL.present:
      raise flags.UserError(f'--{flag.name} does not go with --lm_eval; leave one of them out')


def main(overrides: flags.Overrides) -> None:
  """Restores, evaluates, prints the table and transcripts; --config.… overrides apply."""
  check()
  from r1jax.core import files
  from r1jax.eval import report
  from r1jax.train import restored
  from r1jax.train.experiment import Experiment

  logging.set_verbosity(logging.WARNING)
  measure = flags.load_config(Experiment, CONFIG.value, []) if CONFIG.value else None
  model = restored.load(CHECKPOINT.value, overrides, measure)
  if LM_EVAL.value:
    figures = restored.harness(
      model, LM_EVAL.value, TASKS.value,
      limit=LIMIT.value, shots=SHOTS.value, chat=CHAT.value, context=CONTEXT.value,
    )  # fmt: skip
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
