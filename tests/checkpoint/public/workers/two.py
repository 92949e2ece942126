"""One of two processes that convert as one: `two.py PORT INDEX FOLDER`; prints JSON at the end."""

import json
import sys

import jax

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
port, index, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f'127.0.0.1:{port}', 2, index)

import fake  # noqa: E402

from r1jax.checkpoint.public.convert import convert  # noqa: E402
from r1jax.core.errors import UserError  # noqa: E402
from r1jax.sharding import processes  # noqa: E402

SOURCE = {'model.safetensors': [100, 1, 2]}
fake.limits(setattr)
said, weights = {}, fake.Fake()
convert(weights, f'{folder}/out', {}, source=SOURCE, workers=1)
numbers = {(c.leaf, str(c.index)): c.number for c in fake.every_chunk(weights)}
said['read'] = [[f'params/{path}', numbers[f'params/{path}', str(i)]] for path, i in weights.reads]

read = weights.read


def cut_short(path, at):
  if index == 1 and path == 'run1/block0/zeros':
    raise UserError('model-2.safetensors is cut short')
  return read(path, at)


weights.read = cut_short
try:
  convert(weights, f'{folder}/part', {}, source=SOURCE, workers=1)
except UserError as error:
  said['failed'] = f'{type(error).__name__}: {error}'
print(json.dumps(said), flush=True)
processes.barrier('end')
