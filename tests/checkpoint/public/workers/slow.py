"""Converts the fake slowly, to be killed: `slow.py FOLDER`; with `limit`, no file may grow."""

import resource
import signal
import sys
import time

import fake

from r1jax.checkpoint.public.convert import convert
from r1jax.core.errors import UserError

fake.limits(setattr)
weights = fake.Fake()
read = weights.read
if len(sys.argv) > 2:
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
else:
  weights.read = lambda *args: time.sleep(0.05) or read(*args)
try:
  convert(weights, sys.argv[1], {}, source={'model.safetensors': [100, 1, 2]})
except UserError as error:
  print(f'{type(error).__name__}: {error}')
