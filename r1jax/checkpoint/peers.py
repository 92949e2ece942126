"""How the processes of one run agree on a checkpoint, from whatever thread.

Device collectives belong to the main thread: issued by a background thread they would fall between
those of the training step, in another order on every process. So the background writers meet at
barriers of jax's coordination service, which is no device program, and a process that failed leaves
its reason there before it comes: all of them raise, none waits for ever. One process meets nobody.

Cost: two small requests a process and meeting; a name costs one tiny device collective.
"""

import json
import secrets
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jax._src import distributed  # the service's client has no public name (Orbax does the same)
from jax.experimental import multihost_utils

from r1jax.checkpoint.errors import CheckpointError, Damaged, reason
from r1jax.sharding import processes

T = TypeVar('T')
# As long as the others live: when one dies the service misses its heartbeat and ends the meeting.
WEEKS_MS = 20 * 24 * 3_600_000  # fits into 31 bits


def meeting() -> str:
  """A name that no other meeting of the run has; by every process, from the main thread."""
  if processes.count() == 1:
    return ''
  return f'r1jax/{multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))}'


def together(name: str, what: Callable[[], T]) -> T:
  """What `what` returns; raises on every process when it raised on any."""
  if processes.count() == 1:
    return what()
  client, failure, result = distributed.global_state.client, None, None
  try:
    result = what()
  except Exception as error:  # told to the others, then raised
    failure = error
  try:
    if failure is not None:
      told = {'damaged': isinstance(failure, Damaged), 'why': reason(failure)}
      client.key_value_set(f'{name}/{processes.index()}', json.dumps(told))
    client.wait_at_barrier(f'{name}/all', WEEKS_MS)
  finally:
    if failure is not None:  # first, whatever became of the meeting
      raise failure
  for key, text in client.key_value_dir_get(f'{name}/'):
    told = json.loads(text)
    kind = Damaged if told['damaged'] else CheckpointError
    raise kind(f'process {key.rsplit("/", 1)[-1]}: {told["why"]}')
  return result
