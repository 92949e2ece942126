"""What generation remembers: one stack a run and block, in the scan's carry, indexed by layer.

MLA keeps the latent and the rotated key only (R + P numbers a token and layer: 576 for V3, where
expanded keys and values would be 40,960). Four kinds of cache behind `put` and `look`:

    dense   LatentCache, KVCache [n, B, M, …]    slot m of row b holds position m of its sequence
    Pages   [n, P, S, …]                         place p % S of page table[p // S] holds position p
    Ring    [n, slots, R, …]                     place p % R of the row's slot holds position p
    Pinned  a ring, and [n, slots, G, …]         place g holds the row's g-th key token

Layers with Blocks have four of a kind, `Blocked`, each written by an `update` of its own.

A page is S positions of one sequence in all layers; the table is the same for every layer, and
several rows may read a page. Ring is for layers with a window w: R ≥ w + the longest chunk − 1, and
bytes do not grow with the sequence. Pinned is for hybrid layers, whose key tokens outlive the ring:
they are copied aside as they come, with their positions, so that bytes grow with them alone. What
is written at a position ends what the slot knew from there on: a sequence that begins anew and
drafts that were refused need no clearing. What a place of a ring holds follows from the row's
newest position, so the sequence must have been computed from position 0 in its slot: a prefix that
lies in shared pages is not there. Padding (segment 0) and positions beyond the table or the slots
write nothing; what lies past the newest position of a row is read as 0, whatever was left there,
NaN too.

In int8 a vector is values x̂ and one bf16 scale s: x̂ = round(x / s), s = max|x| / 126.5 (rounding
s to bf16 must not lift x / s above 127.5), so that |x − s·x̂| ≤ s/2. Of MLA the latent and the
rotated key have a scale each, of GQA each head of keys and of values. Bytes a token, all layers:

    DeepSeek-V3         61 · (512+2 + 64+2) =     35,380     bf16 70,272, 0.503
    SmolLM2-135M        30 · 2·3·(64+2)     =     11,880     bf16 23,040, 0.516     fp32 46,080
    R1-Distill-Qwen-7B  28 · 2·4·(128+2)    =     29,120     bf16 57,344, 0.508

Cost of `put`, a layer: one scatter of B·L entries. Of `look`: of pages or ring one gather of B·T·S
(B·R) that writes a copy in the activations' dtype; dense memory is sliced. One query a row needs no
`look` (model/pool.py).

On a mesh rows, pages and slots are split over the batch axes, d shards: shard i holds rows
i·B/d … (i+1)·B/d − 1 of a batch and pages i·P/d … (i+1)·P/d − 1 of the pool, and numbers in its
rows' tables and slots count from its own first, 0 … P/d − 1. Nothing of the memory ever crosses
devices. Over `tensor` the heads of keys and values are split; latents, which every head needs, are
on every device.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core.errors import UserError
from r1jax.kernels.paged.memory import Int8, Stack, dequantize, quantize
from r1jax.model import keys
from r1jax.model.config import (
  GQA,
  MLA,
  Blocks,
  Full,
  Hybrid,
  ModelConfig,
  Pattern,
  TopK,
  Watched,
  Window,
  runs,
)
from r1jax.model.types import Place
from r1jax.sharding import rules
from r1jax.sharding.place import check_rows

Stored = Literal['float32', 'bfloat16', 'int8']
NONE = np.int32(np.iinfo(np.int32).max)  # the position of what is not pinned


class LatentCache(NamedTuple):
  """MLA: the normed latent and the rotated key side by side, C = R + P: decode reads one array."""

  kv_nBMC: jax.Array
  candidate_nBM1: jax.Array | None = None
  index_nBMI: jax.Array | None = None


class KVCache(NamedTuple):
  """GQA; beside keys and values what patterns need of each token.

  candidate: of hybrid layers whether it may be a key token, 1 or 0 (keys.py); index: its key for
  the indexer of a layer that has one (indexer.py).
  """

  key_nBMKH: jax.Array
  value_nBMKH: jax.Array
  candidate_nBM1: jax.Array | None = None
  index_nBMI: jax.Array | None = None


class Pages(NamedTuple):
  """For each array of a dense cache the stacks [n, P, S, …] that side by side make its last axis.

  One stack, or of MLA in int8 two: latent and rotated key.
  """

  arrays: tuple[tuple[Stack, ...], ...]


class Ring(NamedTuple):
  """The same as [n, slots, R, …]."""

  arrays: tuple[tuple[Stack, ...], ...]


class Pinned(NamedTuple):
  """A ring, and the key tokens of each slot in order: positions ascend, NONE behind the last."""

  ring: tuple[tuple[Stack, ...], ...]
  arrays: tuple[tuple[Stack, ...], ...]
  positions_nBG: jax.Array


class Candidates(NamedTuple):
  """Of the entries of a hybrid layer this alone."""

  candidate_nBM1: jax.Array


class IndexKeys(NamedTuple):
  """Of the entries of a layer with an indexer this alone."""

  index_nBMI: jax.Array


Entries = LatentCache | KVCache
Last = Candidates | IndexKeys  # of the arrays of such a layer's pages
Pool = Pages | Ring | Pinned
Cache = Entries | Pool


class Blocked(NamedTuple):
  """GQA with Blocks (nsa.py): of each branch the tokens' keys and values, and summaries.

  raw: what is summed up, neither normed nor rotated. strides: at place m / stride the summary of
  the block whose last token is m; pages of it are as many times smaller, of the same table.
  """

  raw: 'KVCache | Pages'
  select: 'KVCache | Pages'
  window: 'KVCache | Pages'
  strides: 'KVCache | Pages'


class Held(NamedTuple):
  """One layer's memory, without the layer axis, in the activations' dtype.

  positions_BM: what place m holds, negative where nothing of the row; None where it is m.
  """

  memory: Entries
  positions_BM: jax.Array | None = None


def empty(cfg: ModelConfig, batch: int, length: int) -> tuple[tuple[Entries | Blocked, ...], ...]:
  """Zeros for every run and block: cache[run][block]."""

  def one(spec: MLA | GQA, n: int, length: int = length) -> Entries | Blocked:
    zeros = lambda *shape: jnp.zeros((n, batch, length, *shape), cfg.dtype)
    if isinstance(spec.pattern, Blocks):
      plain = functools.partial(one, dataclasses.replace(spec, pattern=Full()), n)
      return Blocked(plain(), plain(), plain(), plain(-(-length // spec.pattern.stride)))
    marks = (width and zeros(width) for width in marked(spec.pattern))
    match spec:
      case MLA():
        return LatentCache(zeros(spec.kv_latent + spec.rope), *marks)
      case GQA():
        return KVCache(*(zeros(spec.kv_heads, spec.head) for _ in 'kv'), *marks)

  return tuple(tuple(one(l.attention, r.repeats) for l in r.period) for r in runs(cfg.layers))


def marked(pattern: Pattern) -> tuple[int | None, int | None]:
  """Widths of what a pattern keeps of each token beside keys and values: candidate, index."""
  match pattern:
    case Hybrid():
      return 1, None
    case TopK(indexer=indexer) | Watched(indexer=indexer):
      return None, indexer.head
    case _:
      return None, None


def paged(
  cfg: ModelConfig,
  pages: int,
  size: int,
  dtype: Stored | None = None,
  slots: int = 0,
  ring: int = 0,
  longest: int = 0,
) -> tuple[tuple[Pool | Blocked, ...], ...]:
  """Zeros, like `empty`: `pages` of `size` positions, in the activations' dtype if None is given.

  ring: with R > 0, layers with a window keep the last R positions for each of `slots` instead;
  hybrid ones also as many key tokens as sequences of `longest` can have, rounded up to `size`.
  """
  dtype = dtype or cfg.dtype
  if dtype not in Stored.__args__:
    raise ValueError(f'a cache in {dtype!r}; expected one of {", ".join(Stored.__args__)}')
  if ring and slots < 1:
    raise ValueError(f'a ring of {ring} positions for {slots} slots; say how many rows decode')

  def zeros(lead: tuple[int, ...], shape: tuple[int, ...]) -> Stack:
    lead = (*lead, *shape[:-1])
    if dtype == 'int8':
      return Int8(jnp.zeros((*lead, shape[-1]), dtype), jnp.zeros(lead, jnp.bfloat16))
    return jnp.zeros((*lead, shape[-1]), dtype)

  def one(spec: MLA | GQA, n: int, size: int = size) -> Pool | Blocked:
    shapes = _shapes(spec, dtype == 'int8')
    make = lambda *lead: tuple(tuple(zeros((n, *lead), s) for s in array) for array in shapes)
    match spec.pattern:
      case Blocks(stride=stride) if size % stride:
        raise UserError(
          f'pages of {size} positions under Blocks with stride={stride}; a page holds whole '
          'strides: choose a multiple of it'
        )
      case Blocks(stride=stride):
        plain = functools.partial(one, dataclasses.replace(spec, pattern=Full()), n)
        return Blocked(plain(), plain(), plain(), plain(size // stride))
      case Window() if ring:
        return Ring(make(slots, ring))
      case Hybrid() if ring:
        shapes = shapes[:-1]  # whether a token is a key token is settled when it comes
        places = -(-keys.most(spec.pattern, longest) // size) * size
        positions_nBG = jnp.full((n, slots, places), NONE)
        return Pinned(make(slots, ring), make(slots, places), positions_nBG)
      case _:
        return Pages(make(pages, size))

  return tuple(tuple(one(l.attention, r.repeats) for l in r.period) for r in runs(cfg.layers))


def _shapes(spec: MLA | GQA, parted: bool) -> tuple[tuple[tuple[int, ...], ...], ...]:
  """Of a token's entries: for each array of the dense cache those of its stacks."""
  marks = [((width,),) for width in marked(spec.pattern) if width]
  match spec:
    case MLA() if parted:
      return (((spec.kv_latent,), (spec.rope,)), *marks)
    case MLA():
      return (((spec.kv_latent + spec.rope,),), *marks)
    case GQA():
      return (*((((spec.kv_heads, spec.head),),) * 2), *marks)


def shardings(mesh: jax.sharding.Mesh, cache: Any) -> Any:
  """Where what `paged` makes lives, abstract or not: a NamedSharding an array."""
  is_kind = lambda x: isinstance(x, Pool)
  specs = jax.tree.map(lambda c: _specs(c, mesh), cache, is_leaf=is_kind)
  return jax.tree.map(lambda p: jax.sharding.NamedSharding(mesh, p), specs)


def _specs(cache: Pool, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Any:
  """A PartitionSpec an array; a pool that does not divide over the shards is an error."""
  count = jax.tree.leaves(cache)[0].shape[1]
  shards = rules.axis_size(table := rules.ACTIVATIONS['batch'], dict(mesh.shape))
  if count % shards:
    raise UserError(
      f'{count} {"pages" if isinstance(cache, Pages) else "slots"} of a cache do not split over '
      f'{shards} devices (mesh axes {", ".join(table)}); choose a multiple'
    )

  def one(stack: Stack) -> Stack:
    shape = jax.tree.leaves(stack)[0].shape[:-1]  # a scale's; the values have one axis more
    names = (None, 'batch', None, 'kv_heads')[: len(shape)]
    return jax.tree.map(lambda _: rules.fitting(shape, names, mesh), stack)

  return jax.tree.map(one, cache, is_leaf=lambda x: isinstance(x, Int8))


def bytes_a_token(cfg: ModelConfig, dtype: Stored | None = None) -> int:
  """Of a position in pages, over all layers, scales included; rounded up."""
  patterns = [layer.attention.pattern for layer in cfg.layers]
  size = math.lcm(*(p.stride for p in patterns if isinstance(p, Blocks)))
  leaves = jax.tree.leaves(jax.eval_shape(lambda: paged(cfg, 1, size, dtype)))
  return -(-sum(x.size * x.dtype.itemsize for x in leaves) // size)


def bytes_of(
  cfg: ModelConfig, length: int, dtype: Stored | None = None, ring: int = 0, size: int = 64
) -> int:
  """Of one sequence of `length`, over all layers, scales and what is left free of a page included.

  ring: as `paged` has it.
  """
  make = lambda: paged(cfg, -(-length // size), size, dtype, 1, ring, length)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(make)))


def write(
  stack_nBM: jax.Array, layer: jax.Array, slots_BL: jax.Array, values_BL: jax.Array
) -> jax.Array:
  """Puts new entries into one layer's slots; slots beyond the cache are dropped."""
  rows_B1 = jnp.arange(slots_BL.shape[0])[:, None]
  return stack_nBM.at[layer, rows_B1, slots_BL].set(values_BL.astype(stack_nBM.dtype), mode='drop')


def read(stack_nBM: jax.Array, layer: jax.Array) -> jax.Array:
  """One layer's memory."""
  return jax.lax.dynamic_index_in_dim(stack_nBM, layer, 0, keepdims=False)


def put(cache: Cache, place: Place, new: Entries, pattern: Pattern | None = None) -> Cache:
  """Writes new entries (without the layer axis); pattern: whose key tokens are pinned.

  The dense cache writes padding too: decoding overwrites it before anything sees it.
  """
  match cache:
    case Pages():
      return _on_shards(_put_pages, 'pool', cache, place, new)
    case Ring():
      return _on_shards(_put_ring, 'pool', cache, place, new)
    case Pinned():
      return _on_shards(functools.partial(_put_pinned, pattern=pattern), 'pool', cache, place, new)
    case _:
      at = place.layer, place.positions_BL
      return jax.tree.map(lambda c, x: write(c, *at, x), cache, new)


def look(cache: Cache, place: Place, like: Entries | Last) -> Held:
  """What the rows may see, as entries like these; of pages the last array alone, if asked."""
  match cache:
    case Pages():
      part = cache.arrays[-1:] if isinstance(like, Last) else cache.arrays
      return _on_shards(_look_pages, 'held', Pages(part), place, like)
    case Ring():
      return _on_shards(_look_ring, 'held', cache, place, like)
    case Pinned():
      return _on_shards(_look_pinned, 'held', cache, place, like)
    case _:
      return Held(jax.tree.map(lambda c: read(c, place.layer), cache))


def pinned_at(cache: Pinned, place: Place) -> jax.Array:
  """Positions [B, G] of the rows' key tokens, ascending; NONE behind the last."""
  return _on_shards(lambda *given: _positions(*given[:2]), 'rows', cache, place, None)


def _on_shards(
  one: Callable, gives: Literal['pool', 'held', 'rows'], cache: Pool, place: Place, new: Any
) -> Any:
  """one(cache, place, new) over the mesh in context, each shard of itself; without one, here."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return one(cache, place, new)
  check_rows(mesh, len(place.positions_BL))
  rows = rules.spec(('batch',), rules.ACTIVATIONS)
  names = ('batch', None, 'kv_heads')
  entries = jax.tree.map(lambda x: rules.fitting(x.shape[:-1], names[: x.ndim - 1], mesh), new)
  pool = _specs(cache, mesh)
  places = Place(rows, rows, jax.P(), rows, rows)
  out = {'pool': pool, 'held': Held(entries, rows), 'rows': rows}[gives]
  run = jax.shard_map(one, in_specs=(pool, places, entries), out_specs=out)
  return run(cache, place._replace(listed_BL=None), new)


def _put_pages(cache: Pages, place: Place, new: Entries) -> Pages:
  table_BT, P, S = _table(cache, place)
  page_BL = jnp.take_along_axis(table_BT, place.positions_BL // S, 1, mode='fill', fill_value=P)
  page_BL = jnp.where(place.segments_BL > 0, page_BL, P)
  return Pages(_put(cache.arrays, (place.layer, page_BL, place.positions_BL % S), new))


def _look_pages(cache: Pages, place: Place, like: Entries | Last) -> Held:
  table_BT, _, S = _table(cache, place)
  known_BM = jnp.arange(table_BT.shape[1] * S) <= newest(place)[:, None]
  return Held(_get(cache.arrays, (place.layer, table_BT), known_BM, like))


def _table(cache: Pages, place: Place) -> tuple[jax.Array, int, int]:
  """Each row's pages, P where there is none: a negative index would wrap."""
  if place.table_BT is None:
    raise ValueError("pages need each row's table: give Inputs.table_BT")
  _, P, S = jax.tree.leaves(cache)[0].shape[:3]
  return jnp.where(place.table_BT < 0, P, place.table_BT), P, S


def slots_of(place: Place) -> jax.Array:
  """Each row's slot."""
  return jnp.arange(len(place.positions_BL)) if place.slots_B is None else place.slots_B


def _put_ring(cache: Ring, place: Place, new: Entries) -> Ring:
  R = jax.tree.leaves(cache)[0].shape[2]
  place_BL = jnp.where(place.segments_BL > 0, place.positions_BL % R, R)
  return Ring(_put(cache.arrays, (place.layer, slots_of(place)[:, None], place_BL), new))


def _look_ring(cache: Ring, place: Place, like: Entries) -> Held:
  R, newest_B1 = jax.tree.leaves(cache)[0].shape[2], newest(place)[:, None]
  # The latest position at this place that is not past the newest: others have been overwritten.
  positions_BM = newest_B1 - (newest_B1 - jnp.arange(R)) % R
  held = _get(cache.arrays, (place.layer, slots_of(place)), positions_BM >= 0, like)
  return Held(held, positions_BM)


def _put_pinned(cache: Pinned, place: Place, new: Entries, pattern: Hybrid) -> Pinned:
  R, L = jax.tree.leaves(cache.ring)[0].shape[2], place.positions_BL.shape[1]
  if (need := pattern.window + L - 1) > R:
    raise ValueError(
      f'a ring of {R} positions under a window of {pattern.window} and chunks of {L}; it needs '
      f'{need}, or shorter chunks'
    )
  (_, slots, G), there_BL = cache.positions_nBG.shape, place.segments_BL > 0
  first_B1 = jnp.where(there_BL, place.positions_BL, NONE).min(1, keepdims=True)
  had_BG = _positions(cache, place)
  had_BG = jnp.where((had_BG >= 0) & (had_BG < first_B1), had_BG, NONE)
  had_B = (had_BG < NONE).sum(1)
  candidates_BL = (new.candidate_nBM1[..., 0] > 0.5) & there_BL
  count_BL = keys.counted(candidates_BL, place.positions_BL, there_BL, had_B, pattern)
  taken_BL = jnp.diff(count_BL, axis=1, prepend=had_B[:, None]) > 0
  to_BL = jnp.where(taken_BL, count_BL - 1, G)
  rows_B1 = jnp.arange(len(to_BL))[:, None]
  has_BG = had_BG.at[rows_B1, to_BL].set(place.positions_BL, mode='drop')
  slots_B = slots_of(place)
  slot_B = jnp.where(there_BL.any(1), slots_B, slots)
  return Pinned(
    _put_ring(Ring(cache.ring), place, new).arrays,
    _put(cache.arrays, (place.layer, slots_B[:, None], to_BL), new),
    cache.positions_nBG.at[place.layer, slot_B].set(has_BG, mode='drop'),
  )


def _look_pinned(cache: Pinned, place: Place, like: Entries) -> Held:
  """The ring, and behind it what is pinned, marked by candidate = 1."""
  bare, at_BG = like._replace(candidate_nBM1=None), _positions(cache, place)
  near = _look_ring(Ring(cache.ring), place, bare)
  known_BG = (at_BG >= 0) & (at_BG <= newest(place)[:, None])
  far = _get(cache.arrays, (place.layer, slots_of(place)), known_BG, bare)
  memory = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), near.memory, far)
  positions_BM = jnp.concatenate([near.positions_BM, jnp.where(known_BG, at_BG, -1)], 1)
  pinned_M = jnp.arange(positions_BM.shape[1]) >= near.positions_BM.shape[1]
  pinned_BM1 = jnp.broadcast_to(pinned_M, positions_BM.shape)[..., None]
  return Held(memory._replace(candidate_nBM1=pinned_BM1.astype(near.memory[0].dtype)), positions_BM)


def _positions(cache: Pinned, place: Place) -> jax.Array:
  """Of what the rows' slots have pinned."""
  return cache.positions_nBG.at[place.layer, slots_of(place)].get(mode='fill', fill_value=NONE)


def newest(place: Place) -> jax.Array:
  """The last position of each row [B]; −1 where all is padding."""
  return jnp.where(place.segments_BL > 0, place.positions_BL, -1).max(1)


def _put(arrays: tuple, at: tuple, new: Entries) -> tuple:
  """Scatters entries x_BL… at (layer, page or slot, place); what is out of range is dropped."""

  def one(stack: Stack, x: jax.Array) -> Stack:
    coded = quantize(x) if isinstance(stack, Int8) else x.astype(stack.dtype)
    return jax.tree.map(lambda s, y: s.at[at].set(y, mode='drop'), stack, coded)

  def each(stacks: tuple[Stack, ...], x: jax.Array) -> tuple[Stack, ...]:
    widths = [jax.tree.leaves(s)[0].shape[-1] for s in stacks]
    return tuple(map(one, stacks, jnp.split(x, np.cumsum(widths)[:-1], -1)))

  return tuple(map(each, arrays, (x for x in new if x is not None)))


def _get(arrays: tuple, at: tuple, known_BM: jax.Array, like: Entries | Last) -> Entries | Last:
  """Gathers pages or slots as x_BM… of the dtype and trailing shape of `like`; 0 where unknown."""

  def one(stack: Stack, dtype: jnp.dtype) -> jax.Array:
    held = jax.tree.map(lambda s: s.at[at].get(mode='fill', fill_value=0), stack)
    return dequantize(held, dtype) if isinstance(held, Int8) else held.astype(dtype)

  def each(stacks: tuple[Stack, ...], x: jax.Array) -> jax.Array:
    parts = [one(s, x.dtype) for s in stacks]
    held = parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)
    held_BM = held.reshape(*known_BM.shape, *x.shape[2:])
    return jnp.where(known_BM.reshape(*known_BM.shape, *(1,) * (x.ndim - 2)), held_BM, 0)

  held = map(each, arrays, (x for x in like if x is not None))
  return type(like)(*(x if x is None else next(held) for x in like))
