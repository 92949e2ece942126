"""A public checkpoint as a workdir of ours, and a workdir as a public checkpoint.

    WORKDIR/checkpoints/0   the weights, as a training run would have saved them
    WORKDIR/public/         what was published beside them: config.json, tokenizer, chat template

`generate`, `evaluate` and `train --config.init` take the workdir by its path.
"""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from r1jax.checkpoint import leaves
from r1jax.checkpoint.errors import reason
from r1jax.checkpoint.public import describe, export
from r1jax.checkpoint.public.convert import convert
from r1jax.checkpoint.public.gguf_names import Renamed
from r1jax.checkpoint.public.manifest import fingerprint
from r1jax.checkpoint.public.safetensors import INDEX, TEMPORARY, told
from r1jax.checkpoint.public.source import open_source
from r1jax.checkpoint.public.spread import Progress
from r1jax.checkpoint.public.target import check_free
from r1jax.checkpoint.public.weights import Weights
from r1jax.checkpoint.public.writer import Reader
from r1jax.checkpoint.store import TREE, Store, resolve
from r1jax.core import config, files
from r1jax.core.errors import UserError
from r1jax.model.config import MLA, ModelConfig, Yarn
from r1jax.sharding import processes
from r1jax.tokenizers import folder as folders
from r1jax.tokenizers import gguf as gguf_tokenizer
from r1jax.tokenizers.make import Public
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.train import provenance
from r1jax.train.experiment import Experiment
from r1jax.train.restored import described
from r1jax.train.run import PUBLIC

DTYPES = {'keep': None, 'float32': np.dtype('float32'), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}
LENGTH = 4096  # of a model whose longest context nothing says


def into(
  source: pathlib.Path, target: pathlib.Path, workers: int, say: Callable[[Progress], None]
) -> Experiment:
  """Converts a public checkpoint, by every process; after an interruption it goes on."""
  weights, which = processes.together(lambda: opened(source))
  folder = target / PUBLIC
  exp = Experiment(named(source), weights.public.model, None, (), tokenizer=Public(str(folder)))
  ours = (PUBLIC, folders.UNFINISHED.format(PUBLIC))

  def check() -> dict[str, bytes]:
    check_free(epath.Path(target), ours)
    with reading(source):
      held = gather(source, weights)
      weights.check_copies()
    return held

  held = processes.together(lambda: check() if processes.leader() else {})
  meta = {
    'experiment': json.loads(config.to_json(exp)),
    'stage': None,
    'step': 0,
    'position': None,
    'pending': None,
    'provenance': processes.together(provenance.record),
  }
  convert(
    weights, target, meta, source=which, beside=ours, bring=lambda: folders.keep(held, folder),
    workers=workers, say=say,
  )  # fmt: skip
  return exp


def opened(source: pathlib.Path) -> tuple[Weights, dict[str, list[int]]]:
  """The weights, and the fingerprint of the files that a conversion reads."""
  with reading(source):
    weights = open_source(source)
    paths = {pathlib.Path(tensor.file) for tensor in weights.tensors.table.values()}
    if not isinstance(weights.tensors, Renamed):
      paths |= {source / name for name in (INDEX, *folders.BESIDE)}
    return weights, fingerprint(paths)


def named(source: pathlib.Path) -> str:
  """'Tiny-1.5B' of downloads/Tiny-1.5B or Tiny-1.5B.gguf; a link's own name."""
  return os.path.basename(os.path.abspath(source)).removesuffix('.gguf')


@contextlib.contextmanager
def reading(source: pathlib.Path) -> Iterator[None]:
  """Says in one line why the source cannot be read."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f'cannot read {error.filename or source} ({reason(error)}); mend that and start the same '
      'command again'
    ) from error


def gather(source: pathlib.Path, weights: Weights) -> dict[str, bytes]:
  """config.json, tokenizer and what else was published, once the tokenizer fits the model."""
  cfg = weights.public.model
  if not isinstance(weights.tensors, Renamed):
    check_vocabulary(source, source, cfg)
    return folders.published(source)
  data, file = weights.tensors.gguf.metadata, weights.tensors.gguf.path
  length = data.get(f'{data["general.architecture"]}.context_length', LENGTH)
  said = describe.describe(cfg, length, 'float32', weights.public.architecture)
  with tempfile.TemporaryDirectory() as made:
    files.write_json(pathlib.Path(made, 'config.json'), said)
    gguf_tokenizer.write(data, made, str(file))
    check_vocabulary(made, file, cfg)
    return folders.published(made)


def check_vocabulary(
  folder: str | os.PathLike[str], source: pathlib.Path, cfg: ModelConfig
) -> None:
  """There is a tokenizer, and it gives no id that the model has no row for."""
  tok = make_tokenizer(Public(os.fspath(folder)))
  if tok.vocab > cfg.vocab:
    raise UserError(
      f'the tokenizer of {source} has {tok.vocab} ids, the embedding {cfg.vocab} rows: tokenizer '
      'and weights are not of one model'
    )


def out_of(
  source: str, target: pathlib.Path, dtype: str, say: Callable[[Progress], None]
) -> dict[str, Any]:
  """Writes a checkpoint as safetensors with config.json and tokenizer; gives config.json."""
  directory, step = resolve(source)
  with told(f'{target}'):
    strange = target.exists() and any(not p.name.endswith(TEMPORARY) for p in target.iterdir())
  if strange:
    raise UserError(f'{target} is not empty; give a new folder as --target')
  store = Store(directory)
  exp = described(directory, store.meta(step))
  if exp.lora:
    raise UserError(
      f'{source} holds LoRA adapters alone; add them to their base first: '
      f'python -m r1jax.bin.merge --checkpoint={source} --target=NEW, then --source=NEW'
    )
  own = isinstance(exp.tokenizer, Public)
  beside = folders.published(exp.tokenizer.path) if own else {}
  original = json.loads(beside.pop('config.json', '{}'))
  held = {
    name.removeprefix('params/'): leaves.parse(said)
    for name, said in store.describe(step).items()
    if name.startswith('params/')
  }
  names = original.get('architectures') or [None]
  public = describe.public(exp.model, names[0])
  length = longest(exp.model, original.get('max_position_embeddings', LENGTH))
  kind = DTYPES[dtype]
  said = str(kind or held['embedding'].dtype)
  said = describe.describe(exp.model, length, said, names[0])
  kept = {k: v for k, v in original.items() if k.endswith('_token_id')}
  reader = Reader(epath.Path(directory) / str(step) / TREE)
  read = lambda path, index: reader.read(f'params/{path}', index)
  for done, total in export.write(public, held, read, target, said | kept, kind, beside):
    say(Progress('written', done, total))
  return said


def longest(cfg: ModelConfig, otherwise: int) -> int:
  """The longest context: of MLA under YaRN that of YaRN, which decides whether it acts."""
  attention = cfg.layers[0].attention
  scaling = attention.rotary.scaling
  return scaling.length if isinstance(attention, MLA) and isinstance(scaling, Yarn) else otherwise
