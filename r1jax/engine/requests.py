"""What the engine is asked for and what it gives: requests, pieces, completions, failures."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from r1jax.core.errors import UserError
from r1jax.engine.budget import Budget, Ended, Marks, Used
from r1jax.engine.sampling import RequestSampling

PLAIN = RequestSampling()


@dataclasses.dataclass(frozen=True)
class Request:
  """Tokens to go on from and how; `seed` is the data of a jax key, whose draws are its own.

  stops, stop_tokens: strings and ids that end it, beside the engine's own stop tokens. stream:
  whether pieces of it are given out while it is written.
  """

  prompt: tuple[int, ...]
  limit: int
  seed: tuple[int, ...]
  sampling: RequestSampling = PLAIN
  priority: int = 0
  budget: Budget | None = None
  stops: tuple[str, ...] = ()
  stop_tokens: tuple[int, ...] = ()
  stream: bool = False


class Piece(NamedTuple):
  """What a streamed request has got since the last piece; text may lag behind tokens."""

  number: int
  tokens: tuple[int, ...]
  text: str


class Completion(NamedTuple):
  """What a request got, on the host.

  number: of the request, in the order of asking. ended: 'stop' by a stop token, the last of
  `tokens`, or by the string `stop`; 'length' by its limit; else what a budget ended. used: figures
  of a budget. versions: of the weights that wrote the first and the last token, None where
  none was sampled. Forced tokens have
  log-probability 0. routes[run][block]: experts [n, prompt + tokens, A] by position, of the last
  token zeros, for it was never read. support: ids that each token was drawn from. text: up to a
  stop string, where the engine can decode.
  """

  number: int
  tokens: np.ndarray
  logp: np.ndarray
  ended: Ended
  routes: tuple | None
  support: np.ndarray | None
  used: Used | None
  versions: tuple[int, int] | None
  text: str | None = None
  stop: str | None = None


class Failed(NamedTuple):
  """A request that can never be served, and why in one line; nothing else of the engine changed."""

  number: int
  error: str


Event = Piece | Completion | Failed


def check(
  r: Request, number: int, words: int, vocab: int, marks: Marks | None, decode: Any
) -> None:
  """UserError for what no engine of these sizes can serve; without marks no budget, without decode
  no stop string.
  """
  name = f'request {number}'
  if len(r.seed) != words:
    raise UserError(
      f'{name}: seed has {len(r.seed)} words, a key has {words}; give '
      'tuple(jax.random.key_data(key))'
    )
  if not all(0 <= word < 1 << 32 for word in r.seed):
    raise UserError(f'{name}: seed={r.seed}; words are of 32 bits, as jax.random.key_data gives')
  if not isinstance(r.sampling, RequestSampling):
    raise UserError(f'{name}: sampling is {r.sampling!r}; expected a RequestSampling')
  for what, ids in (('', r.prompt), ('stop ', r.stop_tokens)):
    wrong = [t for t in ids if not 0 <= t < vocab]
    if wrong:
      raise UserError(f'{name}: {what}token {wrong[0]}, the vocabulary has {vocab}')
  if isinstance(r.stops, str) or not all(isinstance(s, str) and s for s in r.stops):
    raise UserError(f'{name}: stops are a tuple of strings, none empty; got {r.stops!r}')
  if r.stops and decode is None:
    raise UserError(f'{name}: stop strings need the text of tokens: give the engine decode')
  if r.budget is not None and marks is None:
    raise UserError(f'{name}: a budget needs the tags of a thought: give marks')
