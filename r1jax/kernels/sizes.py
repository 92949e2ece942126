"""Block and chunk sizes that were measured: looked up by op, device and shape class.

Each op has a rule for its sizes; an entry of measured.MEASURED goes before it. Entries come from
`python -m tests.benchmarks.tune_attention`, which keeps the rule unless something beats it twice.
A shape class is a label such as 'band full, group 4, width 64, length short'.
"""

import jax

from r1jax.kernels.attention.lists import Band
from r1jax.kernels.measured import MEASURED

SHORT = 8192  # positions: up to here a length is 'short'


def measured(what: str, device: str | None = None) -> tuple[int, ...] | None:
  """The sizes of an op and shape class on a kind of device (the first here), or None."""
  kind = jax.devices()[0].device_kind if device is None else device
  return MEASURED.get(kind, {}).get(what)


def label(op: str, **shape: int | str) -> str:
  """'op, name value, …'; a number stands for its bucket, a length is 'short' or 'long'."""
  if 'length' in shape:
    shape['length'] = 'short' if shape['length'] <= SHORT else 'long'
  named = (f'{k} {bucket(x) if isinstance(x, int) else x}' for k, x in shape.items())
  return ', '.join([op, *named])


def bucket(n: int) -> int:
  """The power of two that holds n."""
  return 1 << max(n - 1, 0).bit_length()


def banded(implementation: str, band: Band, group: int, width: int, length: int) -> str:
  """The label of banded attention."""
  match band:
    case Band(0, None):
      seen = 'full'
    case Band(_, None):
      seen = 'before'
    case Band(near, far):
      seen = f'window {bucket(far - near)}'
  return label(f'attention/{implementation}', band=seen, group=group, width=width, length=length)


def chunk(rule: int, op: str, **shape: int | str) -> int:
  """How many queries an op in XLA handles at a time: measured, or by its rule."""
  return (measured(label(op, **shape)) or (rule,))[0]
