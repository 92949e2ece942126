"""What the files beside a public model's weights say about its tokenizer.

    tokenizer.json           vocabulary, merges, added tokens (needed; read by public.py)
    tokenizer_config.json    bos, eos, pad, unk, whether a text begins with bos, chat_template
    chat_template.jinja      the template, where it has a file of its own
    special_tokens_map.json  bos, eos, pad, unk that the config does not name
    generation_config.json   the ids that end a completion; config.json where that has none

The formats are those that `transformers` writes and reads; a token is its text, or an object with
the text as 'content'; ends are one id or a list; a template is a text or a list of named ones.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.tokenizers.template import ChatTemplate

BESIDE = (  # what is published beside the weights
  *('config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json'),
  *('special_tokens_map.json', 'added_tokens.json', 'chat_template.jinja', 'chat_template.json'),
  *('tokenizer.model', 'vocab.json', 'merges.txt', 'LICENSE', 'LICENSE.txt', 'README.md'),
)
UNFINISHED = '{}.tmp'  # a folder that `keep` has not completed
ROLES = ('bos_token', 'eos_token', 'pad_token', 'unk_token')


@dataclasses.dataclass(frozen=True)
class Folder:
  """`texts` of special tokens by ROLES, those it has; `ends` are ids, `ends_file` names them."""

  texts: Mapping[str, str]
  ends: tuple[int, ...]
  ends_file: pathlib.Path
  begins: bool | None  # whether a text begins with bos; None leaves it to tokenizer.json
  template: ChatTemplate | None


def published(folder: str | os.PathLike[str]) -> dict[str, bytes]:
  """What a folder holds of BESIDE."""
  paths = [pathlib.Path(folder, name) for name in BESIDE]
  try:
    return {path.name: path.read_bytes() for path in paths if path.is_file()}
  except OSError as e:
    raise UserError(f'cannot read {e.filename} ({e.strerror}); mend that and start again') from e


def keep(held: Mapping[str, bytes], folder: pathlib.Path) -> None:
  """Makes a folder of these files, in place of one of that name; a new one is whole or absent."""
  made = folder.with_name(UNFINISHED.format(folder.name))
  if made.exists():
    shutil.rmtree(made)  # of a start that was killed
  made.mkdir(parents=True)
  for name, text in held.items():
    (made / name).write_bytes(text)
  if folder.exists():
    shutil.rmtree(folder)
  made.rename(folder)


def read(folder: str | os.PathLike[str]) -> Folder:
  """Reads all but tokenizer.json; what a file says wrongly is a UserError that names it."""
  path = pathlib.Path(folder)
  held = _object(path / 'tokenizer_config.json')
  ends, ends_file = _ends(path)
  return Folder(_texts(path), ends, ends_file, held.get('add_bos_token'), _template(path, held))


def _object(path: pathlib.Path) -> dict[str, Any]:
  """The JSON object in a file; {} where there is no such file."""
  if not path.exists():
    return {}
  try:
    value = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError) as e:
    raise UserError(f'cannot read {path} as JSON ({e}); fetch it again') from e
  if not isinstance(value, dict):
    raise UserError(f'{path} holds a {type(value).__name__}, expected an object; fetch it again')
  return value


def _texts(folder: pathlib.Path) -> dict[str, str]:
  """Texts of the special tokens; the config's go before the map's."""
  texts: dict[str, str] = {}
  for path in (folder / 'tokenizer_config.json', folder / 'special_tokens_map.json'):
    held = _object(path)
    for role in ROLES:
      value = held.get(role)
      text = value.get('content') if isinstance(value, dict) else value
      if value is not None and not isinstance(text, str):
        raise UserError(f"{path}: {role} is {value!r}, expected a text or {{'content': text}}")
      if text is not None:
        texts.setdefault(role, text)
  return texts


def _ends(folder: pathlib.Path) -> tuple[tuple[int, ...], pathlib.Path]:
  """The ids of eos_token_id, and the first file that has it; () where neither has."""
  for path in (folder / 'generation_config.json', folder / 'config.json'):
    value = _object(path).get('eos_token_id')
    if value is not None:
      ends = tuple(value) if isinstance(value, list) else (value,)
      if not all(type(i) is int for i in ends):
        raise UserError(f'{path}: eos_token_id is {value!r}, expected one id or a list of ids')
      return ends, path
  return (), path


def _template(folder: pathlib.Path, held: Mapping[str, Any]) -> ChatTemplate | None:
  """The template: chat_template.jinja, or the config's one, or its one named 'default'."""
  path = folder / 'chat_template.jinja'
  if path.exists():
    try:
      return ChatTemplate(path.read_text('utf-8'), str(path))
    except (OSError, UnicodeDecodeError) as e:
      raise UserError(f'cannot read {path} as text ({e}); fetch it again') from e
  path, source = folder / 'tokenizer_config.json', held.get('chat_template')
  if isinstance(source, list):
    named = {t.get('name'): t.get('template') for t in source if isinstance(t, dict)}
    if 'default' not in named:
      raise UserError(
        f'{path}: chat_template has {", ".join(map(repr, named)) or "nothing"}, expected one named '
        "'default'; rename the one to use"
      )
    source = named['default']
  if source is not None and not isinstance(source, str):
    raise UserError(f'{path}: chat_template is {source!r}, expected a text; fetch it again')
  return None if source is None else ChatTemplate(source, str(path))
