"""Completes prompts; one alone appears while it is written.

python -m r1jax.bin.generate --checkpoint=runs/quickstart --prompt='4 + 3 - 2'
python -m r1jax.bin.generate --checkpoint=runs/quickstart --prompt='4 + 3 - 2' --think_tokens=8
"""

from collections.abc import Iterator
from typing import Any

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
MIN_P = absl_flags.DEFINE_float(
  'min_p', 0.0, 'Keep tokens of at least this share of the likeliest one; 0 keeps all.'
)
REPETITION = absl_flags.DEFINE_float(
  'repetition_penalty', 1.0, 'Divides positive logits of tokens that occurred; 1 is off.'
)
PRESENCE = absl_flags.DEFINE_float(
  'presence_penalty', 0.0, 'Subtracted from logits of tokens of the completion.'
)
FREQUENCY = absl_flags.DEFINE_float(
  'frequency_penalty', 0.0, 'The same, for each time that the token occurs.'
)
MAX_TOKENS = absl_flags.DEFINE_integer('max_tokens', 256, 'Longest completion.', lower_bound=1)
STOP = absl_flags.DEFINE_multi_string(
  'stop', [], 'A string that ends the completion; may be given several times.'
)
SYSTEM = absl_flags.DEFINE_string(
  'system', None, "A system message, where the model's template has one."
)
SEED = absl_flags.DEFINE_integer('seed', 0, 'Of the samples.')
THINK = absl_flags.DEFINE_integer(
  'think_tokens', None, 'Most tokens of the thought; then the answer is forced.', lower_bound=0
)
STEPS = absl_flags.DEFINE_integer(
  'think_steps', None, 'Most steps (lines) of the thought.', lower_bound=0
)
CONFIDENCE = absl_flags.DEFINE_float(
  'confidence', None, 'Mean probability of the last tokens at which the thought ends.'
)
SECONDS = absl_flags.DEFINE_float('seconds', None, 'Time for a completion, compiling included.')
FALLBACK = absl_flags.DEFINE_enum(
  'fallback', 'answer', ['answer', 'cut', 'refuse'],
  'What is given when tokens or time are over within the answer: what there is, closed; the same, '
  'not closed; nothing.',
)  # fmt: skip
BOUNDS = {'thinking': THINK, 'steps': STEPS, 'confidence': CONFIDENCE, 'seconds': SECONDS}


def asked() -> dict[str, Any]:
  """Sampling and budget of every request; a value that makes no sense is a UserError."""
  from r1jax.engine.budget import Budget
  from r1jax.engine.sampling import RequestSampling

  bounds = {name: flag.value for name, flag in BOUNDS.items() if flag.value is not None}
  if FALLBACK.present and not bounds:
    names = ', '.join(f'--{flag.name}' for flag in BOUNDS.values())
    raise flags.UserError(f'--fallback goes with a budget ({names}); give one, or leave it out')
  try:
    sampling = RequestSampling(
      TEMPERATURE.value, TOP_K.value, TOP_P.value, MIN_P.value, REPETITION.value, PRESENCE.value,
      FREQUENCY.value,
    )  # fmt: skip
    reserve = min(Budget.reserve, MAX_TOKENS.value // 2)
    budget = Budget(**bounds, reserve=reserve, fallback=FALLBACK.value) if bounds else None
  except ValueError as e:
    raise flags.UserError(str(e)) from e
  return {'sampling': sampling, 'budget': budget, 'stops': tuple(STOP.value)}


def told(done: Any) -> str:
  """Why a completion with a budget ended, in words."""
  if done.used is None:
    return ''
  u = done.used
  return (
    f'\n[{u.thinking} tokens of thought in {u.steps} steps, ended by {u.thought or "nothing"}; '
    f'{u.tokens} tokens in {u.seconds:.1f} s, ended by {u.ended}]'
  )


def show(events: Iterator[Any], prompts: list[str], opened: str) -> None:
  """Prints completions in the order of asking: one alone as it is written."""
  from r1jax.engine.requests import Completion, Piece

  alone, waiting, shown = len(prompts) == 1, {}, 0
  if alone:
    print(f'{prompts[0]}\n{opened}', end='', flush=True)
  for event in events:
    if isinstance(event, Piece):
      print(event.text if alone else '', end='', flush=True)
    elif isinstance(event, Completion):
      waiting[event.number] = event
    while shown in waiting:
      done = waiting.pop(shown)
      text = '' if alone else f'{prompts[shown]}\n{opened}{done.text}'
      print(f'{text}{told(done)}\n', flush=True)
      shown += 1


def main(overrides: flags.Overrides) -> None:
  """Restores the model with its tokenizer and prints each completion."""
  how = asked()
  from r1jax.train import restored

  logging.set_verbosity(logging.WARNING)
  model = restored.load(CHECKPOINT.value, overrides)
  requests = restored.requests(
    model, PROMPT.value, MAX_TOKENS.value, samples=SAMPLES.value, seed=SEED.value,
    system=SYSTEM.value, stream=True, **how,
  )  # fmt: skip
  prompts = [prompt for prompt in PROMPT.value for _ in range(SAMPLES.value)]
  show(restored.stream(model, requests), prompts, model.tok.opened)


if __name__ == '__main__':
  flags.run(main)
