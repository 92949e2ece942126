"""Memory that is used again and again stays with the process.

glibc gives a freed block of more than 32 MiB back to the system at once, and a smaller one when it
lies at the end of the heap; what is asked for next comes back as pages of 4 KiB, each with a fault
and zeros. A stream of chunks pays that for every copy of every chunk: half of a conversion's CPU
time. Other C libraries are left as they are.
"""

import contextlib
import ctypes
from collections.abc import Iterator

TRIM, MAPPED = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
DEFAULT = 128 << 10  # bytes, of both thresholds
NEVER = 1 << 30


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Freed blocks are given out again; at the end they go back to the system."""
  libc = ctypes.CDLL(None)
  if not hasattr(libc, 'mallopt'):
    yield
    return
  for threshold in (TRIM, MAPPED):
    libc.mallopt(threshold, NEVER)
  try:
    yield
  finally:
    for threshold in (TRIM, MAPPED):
      libc.mallopt(threshold, DEFAULT)
    libc.malloc_trim(0)
