"""One of the two processes that conftest.py spawns; argv: HOST:PORT, index, result file.

Does everything that needs a second process once, writes what came out as JSON, and ends as a binary
does on the user's mistake: one line and exit code 2.
"""

import functools
import json
import os
import pathlib
import signal
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core.errors import UserError
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place, processes
from r1jax.sharding.mesh import Mesh

ROWS = 8
BATCH = {'x': np.arange(24).reshape(ROWS, 3), 'y': np.arange(16.0).reshape(2, ROWS)}
AXES = {'x': 0, 'y': 1, 'key': 0}
MESHES = {'split': Mesh(fsdp=8), 'shared': Mesh(fsdp=4, tensor=2), 'whole': Mesh(fsdp=1, tensor=8)}


def said(f):
  """What f raises, as 'Type: text'; or what it returns."""
  try:
    return f()
  except Exception as error:
    return f'{type(error).__name__}: {error}'


def fail(process, error):
  """0, or the error on one process."""
  if processes.index() == process:
    raise error
  return 0


def keys():
  """A random key a row, made outside jit as rollouts do."""
  return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(5)))(jnp.arange(ROWS))


def talk():
  """Exchange, agreement, and errors of one."""
  i = processes.index()
  uneven = {'process': i, 'text': 'é' * (500 * i), 'list': [1.5, None]}
  differ = {'config': 'aa', 'data': f'{i}{i}'}
  return {
    'leader': processes.leader(),
    'count': processes.count(),
    'exchange': processes.exchange(uneven),
    'agree': said(lambda: processes.agree({'config': 'aa', 'data': 'cd'})),
    'differ': said(lambda: processes.agree(differ)),
    'lacks': said(lambda: processes.agree({'config': 'aa'} | ({'git': 'f'} if i else {}))),
    'fine': said(lambda: processes.together(lambda: i)),
    'user': said(lambda: processes.together(lambda: fail(1, UserError('no file x')))),
    'bug': said(lambda: processes.together(lambda: fail(1, ValueError('bad\nvalue')))),
    'leaders': said(lambda: processes.together(lambda: fail(0, UserError('disk full')))),
  }


def rows(mesh):
  """Rows placed from the whole batch and from this process' lines of it, fetched again."""
  batch = BATCH | {'key': keys()}
  lines = place.lines_of(mesh, ROWS)
  mine = {name: x[lines] if AXES[name] == 0 else x[:, lines] for name, x in batch.items()}
  placed = place.rows(mesh, batch, AXES)
  parted = place.rows(mesh, mine, AXES, lines=lines, total=ROWS)
  bits = jax.jit(lambda key_B: jax.vmap(jax.random.bits)(key_B))
  total = jax.jit(lambda x: x.sum(), out_shardings=place.replicated(mesh))
  show = lambda b: {'x': b['x'], 'y': b['y'], 'bits': bits(b['key']), 'sum': total(b['x'])}
  listed = lambda b: jax.tree.map(np.ndarray.tolist, processes.fetch(show(b)))
  held = sorted({s.index[0].indices(ROWS)[:2] for s in placed['x'].addressable_shards})
  return {
    'whole': listed(placed),
    'parts': listed(parted),
    'same': all(placed[name].sharding == parted[name].sharding for name in placed),
    'lines': lines.tolist(),
    'held': held,
    'lacking': said(lambda: place.rows(mesh, BATCH['x'][:1], lines=lines[:1], total=ROWS)),
  }


def summed(mesh):
  """psum of the device numbers, by shard_map over the whole mesh."""
  n = place.rows(mesh, np.arange(8))
  add = lambda x: jax.lax.psum(x, 'fsdp')
  f = jax.shard_map(add, mesh=mesh, in_specs=jax.P('fsdp'), out_specs=jax.P())
  return processes.fetch(jax.jit(f)(n)).tolist()


def layer():
  """A weight, 'kernel', that is split over two mesh axes."""
  init = nn.with_logical_partitioning(nn.initializers.normal(), ('embed', 'ffw'))
  return nn.Dense(8, use_bias=False, kernel_init=init)


def state(mesh):
  """Parameters born split, a tree made from them, and replicated host values."""
  params = place.init(layer(), jax.random.key(7), mesh, jnp.ones((1, 8)))
  twice = place.jit_init(lambda p: jax.tree.map(lambda x: 2 * x, p), mesh, params)
  step = place.scalar(mesh, 3)
  whole = place.put(mesh, {'a': np.arange(3), 'key': jax.random.key(1)})
  host = np.arange(2)
  fetched = processes.fetch({'w': params['kernel'], 'step': step, 'host': host, 'a': whole['a']})
  return {
    'types': sorted({type(x).__name__ for x in jax.tree.leaves(fetched)}),
    'fetched': jax.tree.map(np.ndarray.tolist, fetched),
    'twice': processes.fetch(twice)['kernel'].tolist(),
    'spec': str(params['kernel'].sharding.spec),
    'dtype': str(step.dtype),
    'replicated': [step.is_fully_replicated, whole['key'].sharding.is_fully_replicated],
    'key': processes.fetch(jax.jit(jax.random.bits)(whole['key'])).tolist(),
  }


def stopped():
  """The safe point at which this process stops after process 1 got SIGTERM, None if at none."""
  for point in range(1, 2000):
    if point == 10 and processes.index() == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    if processes.stopping(point):
      return point
    time.sleep(0.01 + 0.01 * processes.index())


def main(coordinator, index, out):
  """Everything, under the mesh as in a run."""
  processes.start(coordinator, 2, int(index), devices=4)
  result = {'devices': [jax.device_count(), jax.local_device_count()], 'talk': talk()}
  for name, spec in MESHES.items():
    mesh = meshes.make(spec)
    with jax.set_mesh(mesh):
      result[name] = rows(mesh)
      result[name]['exchange'] = processes.exchange(processes.index())
      result[name]['state'] = state(mesh)
  result['psum'] = summed(meshes.make(MESHES['split']))
  processes.barrier('before the signal')
  result['stopped'] = stopped()
  pathlib.Path(out).write_text(json.dumps(result))
  processes.agree({'data': f'of {index}'})


if __name__ == '__main__':
  try:
    main(*sys.argv[1:])
  except UserError as error:
    print('error:', error, file=sys.stderr)
    sys.exit(2)
