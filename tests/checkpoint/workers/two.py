"""One of two processes with four devices each: `two.py PORT INDEX FOLDER`; prints JSON at the end.

Saves a sharded and a replicated leaf, fails on purpose, restores on the same mesh, discards, and
ends with a save in flight.
"""

import json
import sys

import jax

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
port, index, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f'127.0.0.1:{port}', 2, index)

import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402

from r1jax.checkpoint import checksum, marker, peers  # noqa: E402
from r1jax.checkpoint.errors import CheckpointError  # noqa: E402
from r1jax.checkpoint.steps import Steps  # noqa: E402
from r1jax.checkpoint.store import Store  # noqa: E402

MESH = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def place(values, spec):
  sharding = jax.sharding.NamedSharding(MESH, spec)
  return jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])


def make(step):
  w = np.arange(96, dtype='float32').reshape(16, 6) + step
  return {'w': place(w, jax.P('a', 'b')), 'n': place(np.asarray(step, 'int32'), jax.P())}


def template(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def refused(what):
  try:
    what()
  except CheckpointError as error:
    return f'{type(error).__name__}: {error}'
  return 'nothing was wrong'


def full(*_, **__):
  raise OSError(28, 'No space left on device')


said, store = {}, Store(folder, keep=9)
store.save(1, make(1), {'at': 1})
store.save(2, make(2), {'at': 2}, block=True)
said['steps'] = store.steps()

# One process cannot write its arrays, then process 0 cannot write the marker: both say so, at the
# wait or, as the last one, at the save after.
for name, where, home, attribute, ask in [
  ('arrays', 1, ocp.PyTreeCheckpointHandler, 'async_save', store.wait),
  ('marker', 0, marker, 'write', store.wait),
  ('next', 0, marker, 'write', lambda: store.save(5, make(5), {})),
]:
  real = getattr(home, attribute)
  if index == where:
    setattr(home, attribute, full)
  store.save(3, make(3), {})
  said[name] = refused(ask)
  setattr(home, attribute, real)
said['after'] = refused(store.wait)
said['left'] = store.steps()

old = Store(f'{folder}/old', keep=1)
old.save(1, make(1), {}, block=True)
real = Steps.remove
if index == 0:
  Steps.remove = lambda self, step: step == 1 and full()
said['old'] = refused(lambda: old.save(2, make(2), {}, block=True))
Steps.remove = real

got = store.restore(template(make(2)))
said['whole'] = [bool(jax.jit(lambda a, b: (a == b).all())(got[k], make(2)[k])) for k in ('w', 'n')]
said['sums'] = checksum.start([got['w'], got['n']])()

real = marker.broken_file
if index == 1:
  marker.broken_file = lambda *_: 'tree/x is missing'
said['damaged'] = refused(lambda: store.restore(template(make(2))))
marker.broken_file = real
store.discard(2)
said['discarded'] = [store.steps(), (store.directory / '2.damaged' / 'tree').exists()]
said['peers'] = refused(lambda: peers.together(peers.meeting(), lambda: None))
print(json.dumps(said), flush=True)
store.save(4, make(4), {'at': 4})
if (3, 12) <= sys.version_info[:3] < (3, 12, 2):  # no threads at exit: gh-113964
  store.wait()
