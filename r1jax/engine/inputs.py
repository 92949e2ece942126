"""From what the host knows of its rows to the arrays of a compiled step, in a few shapes.

Tables and texts are padded to powers of two, the rows of a burst to powers of four, chunks to a few
widths and volumes, so that a workload compiles few programs.
"""

import math
from collections.abc import Sequence as Items
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.engine import drafts
from r1jax.engine.drafts import Drafting, NGram
from r1jax.engine.plan import Chunk, Config, Sequence
from r1jax.engine.record import Record
from r1jax.engine.requests import PLAIN
from r1jax.engine.sampling import Kinds, controls
from r1jax.engine.shards import Shards
from r1jax.engine.steps import History, Rows

SHORT, TABLE, WIDTH = 8, 8, 32  # the least: of a chunk, a table, a text


class Part(NamedTuple):
  """Chunks of one width as a batch: rows[b] is the engine's row of b, None where there is none."""

  tokens_BL: np.ndarray
  next_B: np.ndarray
  start_B: np.ndarray
  length_B: np.ndarray
  rows: list[int | None]
  where: list[tuple[int, Chunk]]


def power(n: int, base: int = 2, least: int = 1) -> int:
  """The smallest base^k · least that holds n."""
  size = least
  while size < n:
    size *= base
  return size


def width(n: int) -> int:
  """Of a batch of chunks whose longest has n tokens: what is left behind a prefix, or a prompt."""
  return SHORT if n <= SHORT else power(n, least=4 * SHORT)


def batches(given: Items[Chunk], shards: Shards, volume: int) -> list[tuple[int, list[Chunk]]]:
  """Chunks of like width together, with the rows that each shard computes of them at a time.

  A batch has about `volume` tokens with its padding, or a quarter or a sixteenth where that is
  enough: three programs a width, and at worst four times the work.
  """
  groups: dict[int, list[list[Chunk]]] = {}
  for c in given:
    by_shard = groups.setdefault(width(len(c.tokens)), [[] for _ in shards.all])
    by_shard[shards.shard(c.slot)].append(c)
  made = []
  for L, by_shard in groups.items():
    most = max(map(len, by_shard))
    each = next((n for v in (16, 4) if (n := volume // v // L) >= most), max(1, volume // L))
    for at in range(0, most, each):
      made.append((each, [c for part in by_shard for c in part[at : at + each]]))
  return made


def spread(rows: Items[int], shards: Shards) -> list[int | None]:
  """A batch of these rows, each in the part that its shard computes, None where there is none.

  Its size is that of few live rows: who has ended, or never was, costs nothing.
  """
  by_shard: list[list[int | None]] = [[] for _ in shards.all]
  for row in rows:
    by_shard[shards.shard(row)].append(row)
  each = min(shards.rows, power(max(map(len, by_shard)), base=4))
  return [row for part in by_shard for row in (*part, *[None] * (each - len(part)))]


def chunks(given: Items[Chunk], each: int, shards: Shards) -> Part:
  """A batch of chunks, `each` a shard; every one lies in the part that its shard computes."""
  L, B = width(max(len(c.tokens) for c in given)), each * len(shards.all)
  tokens_BL, (start_B, length_B) = np.zeros((B, L), np.int32), np.zeros((2, B), np.int32)
  next_B, rows, where = np.full(B, -1, np.int32), [None] * B, []
  taken = [i * each for i in range(len(shards.all))]
  for c in given:
    b, n = taken[shards.shard(c.slot)], len(c.tokens)
    taken[shards.shard(c.slot)] += 1
    tokens_BL[b, :n], start_B[b], length_B[b] = c.tokens, c.start, n
    if not c.last:
      next_B[b] = shards.at(c.slot).tokens[c.start + n]
    rows[b] = c.slot
    where.append((b, c))
  return Part(tokens_BL, next_B, start_B, length_B, rows, where)


def rows(
  texts: Items[Sequence | None],
  records: Items[Record | None],
  tables: Items[np.ndarray | None],
  support: int,
  config: Config,
  drafting: Drafting | None,
) -> tuple[Kinds, Rows]:
  """Tables, seeds and sampling of rows; their texts only where something reads them."""
  B, most = len(texts), -(-config.longest // config.page)
  T = min(most, power(max(len(t) for t in tables if t is not None), least=TABLE))
  table_BT = np.full((B, T), -1, np.int32)
  words = len(next(r.request.seed for r in records if r))
  seed_BW = np.zeros((B, words), np.uint32)
  for b, (table, r) in enumerate(zip(tables, records)):
    if r is not None:
      table_BT[b, : len(table)], seed_BW[b] = table, r.request.seed
  settings, kinds = controls([r.request.sampling if r else PLAIN for r in records], support)
  history = None
  if kinds.penalties or isinstance(drafting, NGram):
    longest = max(len(s.tokens) for s in texts if s is not None)
    room = longest + config.burst + drafts.count(drafting)
    tokens_BM = np.zeros((B, power(room, least=WIDTH)), np.int32)
    prompt_B = np.zeros(B, np.int32)
    for b, s in enumerate(texts):
      if s is not None:
        tokens_BM[b, : len(s.tokens)], prompt_B[b] = s.tokens, len(s.request.prompt)
    history = History(tokens_BM, prompt_B)
  return kinds, Rows(table_BT, seed_BW, settings, history)


class Packed(NamedTuple):
  """Arrays of B rows side by side as the bits of one: a dozen small transfers become one."""

  bits_BX: np.ndarray | jax.Array
  scalars: tuple


def pack(args: tuple) -> tuple[Packed, Any]:
  """Host arrays of B rows, four bytes a number, and numbers; and, hashable, how they lay."""
  leaves, structure = jax.tree.flatten(args)
  rows = [x for x in leaves if x.ndim]
  bits = [np.ascontiguousarray(x).view(np.int32).reshape(len(x), -1) for x in rows]
  how = structure, tuple((x.shape[1:], x.dtype) if x.ndim else None for x in leaves)
  return Packed(np.concatenate(bits, 1), tuple(x for x in leaves if not x.ndim)), how


def unpack(packed: Packed, how: Any) -> tuple:
  """The arrays again, on the device."""
  structure, kinds = how
  leaves, at, scalars = [], 0, iter(packed.scalars)
  for kind in kinds:
    if kind is None:
      leaves.append(next(scalars))
      continue
    shape, dtype = kind
    size = math.prod(shape)
    bits = packed.bits_BX[:, at : at + size].reshape(-1, *shape)
    leaves.append(jax.lax.bitcast_convert_type(bits, dtype))
    at += size
  return structure.unflatten(leaves)
