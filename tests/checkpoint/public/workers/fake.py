"""Weights in memory behind the interface that a conversion reads, and limits that cut them."""

import jax
import ml_dtypes
import numpy as np

from r1jax.checkpoint import checksum
from r1jax.checkpoint.public import chunks, manifest, writer


def limits(set_attribute):
  """Cuts and commits after some hundred bytes, and notes at once."""
  set_attribute(chunks, 'FLOOR', 300)
  set_attribute(chunks, 'CAP', 400)
  set_attribute(writer, 'FLYING', 600)
  set_attribute(writer, 'CACHED', 1000)
  set_attribute(manifest, 'EVERY', 0.0)
  set_attribute(checksum, 'PIECE', checksum.BLOCK)


def values():
  """Arrays of a small mixture of experts, and kinds that it has not."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  bf16 = lambda *shape: draw(*shape).astype(ml_dtypes.bfloat16)
  return {
    'embedding': bf16(40, 10),
    'final_scale': draw(10),
    'run0/block0/mlp/gate': bf16(4, 3, 12, 16),
    'run0/block0/mlp/down': bf16(4, 3, 16, 12),
    'run0/block0/mlp/router/bias': draw(4, 3),
    'run0/block0/mlp/quantized': rng.integers(-128, 128, (8, 3, 130), dtype=np.int8),
    'run1/block0/zeros': np.zeros((64, 9), ml_dtypes.bfloat16),  # equal to what is not written
    'count': np.int32(7).reshape(()),
  }


class Fake:
  """`values` by path; reads are views in another order, as transposed tensors are."""

  def __init__(self):
    self.values, self.reads = values(), []
    self.leaves = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in self.values.items()}

  def read(self, path, index=()):
    self.reads.append((path, index))
    return self.values[path].T.copy().T[index]


def every_chunk(weights):
  """All chunks of a conversion, in its order."""
  for name, leaf in weights.leaves.items():
    yield from chunks.cut(f'params/{name}', leaf, chunks.grid(leaf.shape, leaf.dtype.itemsize))
