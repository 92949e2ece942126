"""A public checkpoint as a workdir of ours, and a workdir as a public checkpoint.

    WORKDIR/checkpoints/0   the weights, as a training run would have saved them
    WORKDIR/public/         what was published beside them: config.json, tokenizer, chat template

`generate`, `evaluate` and `train --config.init` take the workdir by its path.
"""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from r1jax.checkpoint import leaves
from r1jax.checkpoint.public import describe, export
from r1jax.checkpoint.public.convert import convert
from r1jax.checkpoint.public.gguf import Gguf
from r1jax.checkpoint.public.manifest import fingerprint
from r1jax.checkpoint.public.source import find_gguf, open_source
from r1jax.checkpoint.public.spread import Progress
from r1jax.checkpoint.public.target import check_free
from r1jax.checkpoint.public.weights import Weights
from r1jax.checkpoint.public.writer import Reader
from r1jax.checkpoint.store import TREE, Store, resolve
from r1jax.core import config, files
from r1jax.core.errors import UserError
from r1jax.model.config import MLA, ModelConfig, Yarn
from r1jax.sharding import processes
from r1jax.tokenizers import gguf as gguf_tokenizer
from r1jax.tokenizers.make import Public
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.train import provenance
from r1jax.train.experiment import Experiment
from r1jax.train.restored import described
from r1jax.train.run import PUBLIC

TOKENIZER = 'tokenizer.json'
BESIDE = (
  *('config.json', 'generation_config.json', TOKENIZER, 'tokenizer_config.json'),
  *('special_tokens_map.json', 'added_tokens.json', 'chat_template.jinja', 'chat_template.json'),
  *('tokenizer.model', 'vocab.json', 'merges.txt', 'LICENSE', 'LICENSE.txt', 'README.md'),
)
DTYPES = {'keep': None, 'float32': np.dtype('float32'), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}
LENGTH = 4096  # of a model whose longest context nothing says


def into(
  source: pathlib.Path, target: pathlib.Path, workers: int, say: Callable[[Progress], None]
) -> Experiment:
  """Converts a public checkpoint, by every process; after an interruption it goes on."""
  weights = processes.together(lambda: open_source(source))
  folder = target / PUBLIC
  name, cfg = source.resolve().stem, weights.public.model
  exp = Experiment(name, cfg, None, (), tokenizer=Public(str(folder)))
  check_free(epath.Path(target), (PUBLIC,))
  processes.together(lambda: processes.leader() and weights.check_copies())
  processes.together(lambda: processes.leader() and bring(source, weights, folder))
  processes.together(lambda: check_vocabulary(folder, cfg))
  meta = {
    'experiment': json.loads(config.to_json(exp)),
    'stage': None,
    'step': 0,
    'position': None,
    'pending': None,
    'provenance': provenance.record(),
  }
  convert(
    weights, target, meta, source=fingerprint(source), beside=(PUBLIC,), workers=workers, say=say
  )
  return exp


def bring(source: pathlib.Path, weights: Weights, folder: pathlib.Path) -> None:
  """Puts config.json, tokenizer and what else was published into a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  file = find_gguf(source)
  if file is None:
    for name in BESIDE:
      if (source / name).is_file():
        shutil.copyfile(source / name, folder / name)
    return
  gguf = Gguf(file)
  length = gguf.metadata.get(f'{gguf.metadata["general.architecture"]}.context_length', LENGTH)
  said = describe.describe(weights.public.model, length, 'float32', weights.public.architecture)
  files.write_json(folder / 'config.json', said)
  gguf_tokenizer.write(gguf.metadata, folder, str(file))


def check_vocabulary(folder: pathlib.Path, cfg: ModelConfig) -> None:
  """The tokenizer, if one came along, gives no id that the model has no row for."""
  if not (folder / TOKENIZER).exists():
    return
  tok = make_tokenizer(Public(str(folder)))
  if tok.vocab > cfg.vocab:
    raise UserError(
      f'{folder / TOKENIZER} has {tok.vocab} ids, the embedding {cfg.vocab} rows: tokenizer and '
      'weights are not of one model'
    )


def out_of(
  source: str, target: pathlib.Path, dtype: str, say: Callable[[Progress], None]
) -> dict[str, Any]:
  """Writes a checkpoint as safetensors with config.json and tokenizer; gives config.json."""
  directory, step = resolve(source)
  if target.exists() and any(target.iterdir()):
    raise UserError(f'{target} is not empty; give a new folder as --target')
  store = Store(directory)
  exp = described(directory, store.meta(step))
  original = published(exp)
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
  for done, total in export.write(public, held, read, target, said | kept, kind):
    say(Progress('written', done, total))
  if isinstance(exp.tokenizer, Public):
    for name in BESIDE[1:]:
      if (pathlib.Path(exp.tokenizer.path) / name).is_file():
        shutil.copyfile(pathlib.Path(exp.tokenizer.path) / name, target / name)
  return said


def published(exp: Experiment) -> dict[str, Any]:
  """The config.json that a model came with, {} for one that was born here."""
  if not isinstance(exp.tokenizer, Public):
    return {}
  file = pathlib.Path(exp.tokenizer.path) / 'config.json'
  return json.loads(file.read_text('utf-8')) if file.exists() else {}


def longest(cfg: ModelConfig, otherwise: int) -> int:
  """The longest context: of MLA under YaRN that of YaRN, which decides whether it acts."""
  attention = cfg.layers[0].attention
  scaling = attention.rotary.scaling
  return scaling.length if isinstance(attention, MLA) and isinstance(scaling, Yarn) else otherwise
