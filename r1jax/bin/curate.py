"""Makes data with a model: samples graded and kept, preference pairs, labels, or its logits.

python -m r1jax.bin.curate --checkpoint=runs/quickstart --kind=samples --out=data/samples.jsonl
python -m r1jax.bin.curate --checkpoint=runs/quickstart --kind=logits --out=data/logits

Prompts are problems of the task's split rl, or rows of --source: fields question, and answer where
the task grades by it; of those that ask the same, the first. The task is the checkpoint's, or
--config's.

  samples  question, completion, thought, answer, reward, outcome, length    (SFT by Solved);
           a malformed sample, with --keep=all, has neither thought nor answer
  pairs    question, chosen, rejected
  labels   question, completion, label
  logits   a folder: the kept samples' tokens, beside each the --k likeliest ones (Stored)
"""

import dataclasses
import functools
import pathlib
import time
from typing import Any

from absl import flags as absl_flags
from absl import logging

from r1jax.bin import flags

CHECKPOINT = absl_flags.DEFINE_string(
  'checkpoint', None, 'A workdir, its checkpoints folder, or one step of it.', required=True
)
CONFIG = flags.define_config(
  text='Python file with get_config(): its task and verifier, for a checkpoint that has none.'
)
KIND = absl_flags.DEFINE_enum(
  'kind', 'samples', ['samples', 'pairs', 'labels', 'logits'], 'What is made.'
)
OUT = absl_flags.DEFINE_string('out', None, 'File, or for logits folder, to make.', required=True)
OVERWRITE = absl_flags.DEFINE_bool('overwrite', False, 'Replaces what has that name.')
PROMPTS = absl_flags.DEFINE_integer('prompts', 256, 'Problems of split rl.', lower_bound=1)
FIRST = absl_flags.DEFINE_integer('first', 0, 'The first of them.', lower_bound=0)
SOURCE = absl_flags.DEFINE_string('source', None, "JSON Lines of prompts in place of the task's.")
GROUP = absl_flags.DEFINE_integer('group', 4, 'Completions of each prompt.', lower_bound=1)
KEEP = absl_flags.DEFINE_enum(
  'keep',
  'correct',
  ['correct', 'all'],
  'Which samples (or their logits) are kept; of all, malformed ones get no thought and answer.',
)
PER_PROMPT = absl_flags.DEFINE_integer(
  'per_prompt', None, 'Rows of a prompt at most; no limit if not given.', lower_bound=1
)
TEMPERATURE = absl_flags.DEFINE_float('temperature', 1.0, 'Of the samples.', lower_bound=0.0)
TOP_P = absl_flags.DEFINE_float('top_p', 1.0, 'Keep the most likely tokens up to this mass.')
TOP_K = absl_flags.DEFINE_integer('top_k', 0, 'Keep this many tokens; 0 keeps all.', lower_bound=0)
MAX_TOKENS = absl_flags.DEFINE_integer(
  'max_tokens', None, "Longest completion; the evaluation's if not given.", lower_bound=1
)
BATCH = absl_flags.DEFINE_integer('batch', 32, 'Prompts at a time.', lower_bound=1)
SEED = absl_flags.DEFINE_integer('seed', 0, 'Of the samples.')
K = absl_flags.DEFINE_integer('k', 32, 'Likeliest tokens a position, for logits.', lower_bound=1)
HEAT = absl_flags.DEFINE_float('logits_temperature', 1.0, 'Of the logits that are kept.')
LENGTH = absl_flags.DEFINE_integer(
  'length', None, 'Inputs a line, for logits; twice the longest row if not given.', lower_bound=1
)
LINES = absl_flags.DEFINE_integer('lines', 64, 'Lines of a shard, for logits.', lower_bound=1)


def main(overrides: flags.Overrides) -> None:
  """Samples, grades, writes, and says what was kept; mistakes before the weights are loaded."""
  check()
  from r1jax.curate import output
  from r1jax.train import restored
  from r1jax.train.experiment import Experiment

  logging.set_verbosity(logging.WARNING)
  out = pathlib.Path(OUT.value).expanduser()
  output.check(out, OVERWRITE.value, KIND.value == 'logits')
  measure = flags.load_config(Experiment, CONFIG.value, []) if CONFIG.value else None
  examples = asked(described(overrides, measure))
  make(restored.load(CHECKPOINT.value, overrides, measure), examples, out)


def check() -> None:
  """Refuses flags that would be ignored, or cannot be meant."""
  for flag in (K, HEAT, LENGTH, LINES):
    if flag.present and KIND.value != 'logits':
      raise flags.UserError(f'--{flag.name} goes with --kind=logits; leave it out')
  for flag in (PROMPTS, FIRST):
    if flag.present and SOURCE.present:
      raise flags.UserError(f'--{flag.name} does not go with --source, which is read whole')
  if KEEP.present and KIND.value in ('pairs', 'labels'):
    raise flags.UserError(
      f'--keep does not go with --kind={KIND.value}, which takes right and wrong'
    )
  if KIND.value == 'pairs' and (GROUP.value == 1 or TEMPERATURE.value == 0):
    raise flags.UserError(
      '--kind=pairs needs different completions of a prompt: --group=2 or more, --temperature '
      'above 0'
    )
  if not 0 < TOP_P.value <= 1:
    raise flags.UserError(f'--top_p={TOP_P.value}; expected a number above 0, 1 at most')
  if HEAT.value <= 0:
    raise flags.UserError(f'--logits_temperature={HEAT.value}; expected a number above 0')


def make(model: Any, examples: list[Any], out: pathlib.Path) -> None:
  """Everything behind the flags, for a restored checkpoint."""
  from r1jax.curate import made
  from r1jax.curate.sample import Asking
  from r1jax.engine import make as engines
  from r1jax.kernels.logprob.truncate import Sampling
  from r1jax.rewards.pool import Pool
  from r1jax.tasks.make import make as make_task
  from r1jax.train.progress import Progress

  exp = model.exp
  sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)
  limit = MAX_TOKENS.value or exp.evaluation.limits.completion
  asking = Asking(GROUP.value, BATCH.value, limit, sampling, SEED.value)
  build = functools.partial(make_task, exp.task)
  with (
    Pool(build, exp.verifier.workers, exp.verifier.seconds) as pool,
    Progress(KIND.value, len(examples)) as progress,
  ):
    engine = engines.make(exp.engine, exp.model, model.tok.stops, None, progress.compiling)
    maker = made.Maker(
      engine, model.params, model.tok, pool.map, asking, FIRST.value, progress.update,
      progress.compiling,
    )  # fmt: skip
    begin = time.monotonic()
    match KIND.value:
      case 'samples':
        told = made.samples(maker, examples, out, KEEP.value, PER_PROMPT.value)
      case 'pairs':
        told = made.pairs(maker, examples, out, PER_PROMPT.value)
      case 'labels':
        told = made.labels(maker, examples, out, PER_PROMPT.value)
      case 'logits':
        spec = made.Logits(CHECKPOINT.value, K.value, HEAT.value, LENGTH.value, LINES.value)
        told = made.logits(maker, examples, out, KEEP.value, PER_PROMPT.value, spec)
    seconds = time.monotonic() - begin
  summarize(told, out, seconds)


def described(overrides: flags.Overrides, measure: Any) -> Any:
  """The experiment that the checkpoint will be restored with."""
  from r1jax.checkpoint.store import Store, resolve
  from r1jax.core import config
  from r1jax.train import restored
  from r1jax.train.experiment import with_key_ids

  directory, step = resolve(CHECKPOINT.value)
  exp = restored.described(directory, Store(directory).meta(step))
  if measure is not None:
    exp = dataclasses.replace(exp, task=measure.task)
  return with_key_ids(config.override_all(exp, overrides))


def asked(exp: Any) -> list[Any]:
  """The prompts, those that ask the same once."""
  from r1jax.curate.sample import distinct, prompts
  from r1jax.records.jsonl import Jsonl, JsonlRecords
  from r1jax.tasks.make import make as make_task

  if exp.task is None:
    raise flags.UserError(f'{exp.name} has no task to grade by; name a config that has: --config=…')
  if SOURCE.value:
    given = prompts(JsonlRecords(Jsonl(SOURCE.value)))
  else:
    given = make_task(exp.task).examples('rl', FIRST.value, PROMPTS.value)
  found = distinct(given)
  if len(found) < len(given):
    print(f'{len(given) - len(found)} of {len(given)} prompts repeat others and are left out')
  return found


def summarize(told: Any, out: pathlib.Path, seconds: float) -> None:
  """Says what there was, what was kept, how much of it was right, and how fast."""
  from r1jax.eval.report import wilson

  correct = told.outcomes['correct']
  low, high = wilson(correct, told.samples)
  others = ', '.join(f'{n} {name}' for name, n in told.outcomes.items())
  print(
    f'made {out}: {told.rows} rows of {told.samples} samples, {told.samples - told.used} rejected'
  )
  print(f'{told.served} of {told.prompts} prompts have a row; samples: {others}')
  print(
    f'accuracy {correct / told.samples:.1%} ({low:.1%} to {high:.1%}, 95 %), '
    f'{told.tokens} tokens, {told.tokens / seconds:.0f} tokens/s in all'
  )


if __name__ == '__main__':
  flags.run(main)
