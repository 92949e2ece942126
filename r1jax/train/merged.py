"""A LoRA checkpoint as an ordinary one: base + scale · down·up, in fp32.

    TARGET/checkpoints/N   the merged weights, N the update of the adapters
    TARGET/public/         the tokenizer's files, where the base has a public tokenizer

On one device; base and sum are in memory together.
"""

import dataclasses
import json
import pathlib

from r1jax.algos import lora
from r1jax.checkpoint.public.target import check_free
from r1jax.checkpoint.store import FOLDER, Store, resolve
from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.tokenizers.make import Public
from r1jax.train import parameters, provenance
from r1jax.train.restored import described
from r1jax.train.run import PUBLIC, keep_tokenizer


def write(checkpoint: str, target: pathlib.Path) -> str:
  """Writes the target and gives a line that says what was merged."""
  directory, step = resolve(checkpoint)
  store = Store(directory)
  meta = store.meta(step)
  exp = described(directory, meta)
  if exp.lora is None:
    raise UserError(f'{checkpoint} has no adapters to merge: its weights are whole as they are')
  check_free(target, (PUBLIC, FOLDER))  # of a merge that was interrupted
  said = lora.summary(parameters.weights(store, step, exp.model, None))
  params = parameters.masters(store, step, exp.model, None)
  whole = dataclasses.replace(exp, lora=None, init=None, stages=())
  keep_tokenizer(whole, target)
  if isinstance(exp.tokenizer, Public):
    whole = dataclasses.replace(whole, tokenizer=Public(str(target / PUBLIC)))
  meta = meta | {
    'experiment': json.loads(config.to_json(whole)),
    'stage': None,
    'step': 0,
    'position': None,
    'asked': 0,
    'pending': None,
    'base': None,
    'provenance': provenance.record(),
  }
  with Store(target / FOLDER) as made:
    made.save(step, {'params': params}, meta, block=True)
  return f'{target}: {checkpoint} step {step} merged with {exp.init} ({said})'
