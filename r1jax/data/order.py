"""Seeded orders: one place of a permutation too long to hold, or a short one whole.

`index` is a Feistel network on pairs (l, r) in Z_a × Z_b, a = ⌈√n⌉, b = ⌈n/a⌉:

    l ← l + F(r, k₁) mod a,    r ← r + F(l, k₂) mod b,    …, eight rounds

Every round can be undone, so the whole is a bijection of range(a·b); what falls on n … a·b−1, fewer
than √n + 1 places, walks on until it falls inside (Black and Rogaway, "Ciphers with Arbitrary
Finite Domains", 2002). F is the finalizer of splitmix64, the round keys are a hash of the key. No
library's random generator enters: their streams may change between versions, a resumed run may not.

Cost: O(1) memory, some 5 µs a place.
"""

import functools
import hashlib
import math
import struct

import numpy as np

Key = int | str
_WORD = 2**64 - 1


def index(i: int, n: int, *key: Key) -> int:
  """Place i of the permutation of range(n) that the key names."""
  if not 0 <= i < n:
    raise ValueError(f'place {i} of a permutation of {n}; expected 0 <= place < {n}')
  a = math.isqrt(n - 1) + 1
  b = -(-n // a)
  keys = _keys(key)
  while True:
    l, r = divmod(i, b)
    for k in range(0, 8, 2):
      l = (l + _mix(r ^ keys[k])) % a
      r = (r + _mix(l ^ keys[k + 1])) % b
    i = l * b + r
    if i < n:
      return i


def shuffled(n: int, *key: Key) -> np.ndarray:
  """The whole permutation of a small range(n): numbers sorted by their hashes, which never tie."""
  return np.argsort(_mix(np.arange(n, dtype=np.uint64) ^ np.uint64(_keys(key)[0])))


@functools.lru_cache(maxsize=256)
def _keys(key: tuple[Key, ...]) -> tuple[int, ...]:
  return struct.unpack('<8Q', hashlib.blake2b(repr(key).encode(), digest_size=64).digest())


def _mix(x: int | np.ndarray) -> int | np.ndarray:
  """The finalizer of splitmix64, a bijection of 64-bit words (Steele, Lea and Flood, 2014)."""
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
  return x ^ (x >> 31)
