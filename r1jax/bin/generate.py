"""Completes prompts.

python -m r1jax.bin.generate --checkpoint=runs/quickstart --prompt='4 + 3 - 2'
"""

from absl import flags as absl_flags
from absl import logging

from r1jax.bin import flags

CHECKPOINT = absl_flags.DEFINE_string(
  'checkpoint', None, 'A workdir, its checkpoints folder, or one step of it.', required=True
)
PROMPT = absl_flags.DEFINE_multi_string(
  'prompt', None, 'A question; may be given several times.', required=True
)
SAMPLES = absl_flags.DEFINE_integer('samples', 1, 'Completions of each prompt.', lower_bound=1)
TEMPERATURE = absl_flags.DEFINE_float(
  'temperature', 0.0, '0 takes the most likely token.', lower_bound=0.0
)
TOP_P = absl_flags.DEFINE_float('top_p', 1.0, 'Keep the most likely tokens up to this mass.')
TOP_K = absl_flags.DEFINE_integer('top_k', 0, 'Keep this many tokens; 0 keeps all.', lower_bound=0)
MAX_TOKENS = absl_flags.DEFINE_integer('max_tokens', 256, 'Longest completion.', lower_bound=1)
SYSTEM = absl_flags.DEFINE_string(
  'system', None, "A system message, where the model's template has one."
)
SEED = absl_flags.DEFINE_integer('seed', 0, 'Of the samples.')


def main(overrides: flags.Overrides) -> None:
  """Restores the model with its tokenizer and prints each completion."""
  from r1jax.kernels.logprob.truncate import Sampling
  from r1jax.train import restored

  logging.set_verbosity(logging.WARNING)
  try:
    sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)
  except ValueError as e:
    raise flags.UserError(str(e)) from e
  model = restored.load(CHECKPOINT.value, overrides)
  texts = restored.generate(
    model, PROMPT.value, SAMPLES.value, sampling, MAX_TOKENS.value, SEED.value, SYSTEM.value
  )
  for prompt, written in zip(PROMPT.value, texts):
    for text in written:
      print(f'{prompt}\n{text}\n', flush=True)


if __name__ == '__main__':
  flags.run(main)
