"""What a process asks of the others; besides, checkpoint/peers.py meets them from its own thread.

Plain multi-controller JAX: every process runs the same program on its own devices, and the mesh
spans them all. Process 0, the leader, writes files and speaks to the user. What a process alone
knows (an error, a signal, its share of the rows) passes through here, so that all take the same
turn: a process that leaves while the others wait in a collective makes them wait in vain.

Talk between processes is a collective over the devices (jax.experimental.multihost_utils), at most
two a call; with one process nothing is sent. Every process must make the same calls in the same
order.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from r1jax.core.errors import UserError
from r1jax.sharding import rendezvous

T = TypeVar('T')
AUTO = 'auto'
LEAVING = 60  # seconds that a process which ends waits for the others to end too


def start(
  coordinator: str | None,
  count: int | None,
  index: int | None,
  devices: int | None = None,
  timeout: float = 60,
) -> None:
  """Joins this process to the others; before any device is touched, and nothing if all are None.

  coordinator is HOST:PORT of process 0, or 'auto' alone where jax detects the cluster (TPU pod,
  Slurm, Open MPI, Kubernetes). `devices` is the number of CPU devices that this process shows.
  From here on SIGTERM is jax's: it only makes `stopping` true, so set no handler of your own.
  """
  address = _check(coordinator, count, index, devices)
  if address is not None:
    rendezvous.meet(*address, count, index, timeout)
  if devices is not None:
    jax.config.update('jax_num_cpu_devices', devices)
  if coordinator is None:
    return
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.config.update('jax_enable_preemption_service', True)
  if coordinator == AUTO:
    return _start_by_cluster()
  jax.distributed.initialize(
    coordinator,
    count,
    index,
    cluster_detection_method='deactivate',
    initialization_timeout=int(timeout) + 1,
    shutdown_timeout_seconds=LEAVING,
  )


def _start_by_cluster() -> None:
  """What the cluster says about coordinator, number and index."""
  try:
    jax.distributed.initialize(shutdown_timeout_seconds=LEAVING)
  except ValueError as error:
    raise UserError(
      f'coordinator=auto, but jax detects no cluster here ({error}): give coordinator=HOST:PORT, '
      'processes=N and process=I'
    ) from None


def _check(
  coordinator: str | None, count: int | None, index: int | None, devices: int | None
) -> tuple[str, int] | None:
  """(host, port) of an explicit coordinator; a combination that makes no sense is an error."""
  given = f'coordinator={coordinator}, processes={count}, process={index}'
  if devices is not None and devices < 1:
    raise UserError(f'{devices} devices a process: at least 1 is needed')
  if count is None and index is None and coordinator in (None, AUTO):
    return None
  if None in (coordinator, count, index) or coordinator == AUTO:
    raise UserError(
      f'{given}: give all three, or coordinator=auto alone on a cluster, or none for one process'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UserError(f'{given}: the coordinator is HOST:PORT of process 0, such as 10.0.0.1:1234')
  if not 0 <= index < count:
    raise UserError(f'{given}: processes are numbered from 0 to processes - 1')
  return host.strip('[]'), int(port)


def index() -> int:
  """The number of this process, from 0."""
  return jax.process_index()


def count() -> int:
  """How many processes there are."""
  return jax.process_count()


def leader() -> bool:
  """Whether this is process 0, which writes files and speaks to the user."""
  return index() == 0


def barrier(name: str) -> None:
  """Waits until all are here. End with one: jax aborts all if one ends LEAVING s before another."""
  if count() > 1:
    multihost_utils.sync_global_devices(name)


def fetch(tree: Any) -> Any:
  """The tree with whole numpy arrays, on every process; arrays that spread are gathered."""

  def gather(x: Any) -> Any:
    spread = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return multihost_utils.process_allgather(x, tiled=True) if spread else x

  return jax.device_get(jax.tree.map(gather, tree))


def exchange(value: Any) -> list[Any]:
  """The JSON value of every process, in their order; sizes may differ."""
  if count() == 1:
    return [value]
  mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size_P = multihost_utils.process_allgather(np.int32(mine.size))
  width = 1 << (int(size_P.max()) - 1).bit_length()  # powers of two: few programs to compile
  text_PW = multihost_utils.process_allgather(np.pad(mine, (0, width - mine.size)))
  return [json.loads(text[:size].tobytes()) for text, size in zip(text_PW, size_P)]


def agree(facts: dict[str, str]) -> None:
  """All processes have the same facts (short texts: hashes, versions), or all raise the same."""
  first, *rest = exchange(facts)
  for i, other in enumerate(rest, start=1):
    for name in first | other:
      if other.get(name) != first.get(name):
        raise UserError(
          f'process {i} has another {name} ({other.get(name)}, process 0 has {first.get(name)}): '
          'start all processes with the same flags, config, code, packages and data'
        )


def together(what: Callable[[], T]) -> T:
  """what() on every process; where it fails on one it fails on all, as a UserError on the others.

  For what can fail on one process alone (files, data); `what` itself must not communicate.
  """
  if count() == 1:
    return what()
  result = error = None
  try:
    result = what()
  except Exception as raised:
    error = raised
  told = [line for line in exchange(None if error is None else _told(error)) if line is not None]
  if error is not None:
    raise error
  if told:
    raise UserError(told[0])
  return result


def _told(error: Exception) -> str:
  """The line by which the other processes hear of an error here."""
  failed = '' if isinstance(error, UserError) else f' failed: {type(error).__name__}'
  return ' '.join(f'process {index()}{failed}: {error}'.split())


def stopping(number: int) -> bool:
  """Whether all stop at this safe point, because one process of them got SIGTERM.

  Every process counts its safe points 1, 2, 3, … from its start and asks at each: jax answers True
  once, at the number after the highest that any process has reached. False without `start`.
  """
  return multihost_utils.reached_preemption_sync_point(number)
