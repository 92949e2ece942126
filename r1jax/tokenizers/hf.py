"""Any Hugging Face `tokenizer.json`, read by the `tokenizers` library (Rust, offline).

The file's own post-processor is not used: the template of `chat.py` places every marker. Markers
are texts given by the caller ('<|im_start|>user\\n'); what the file holds as an added token becomes
that token, the rest is tokenized as plain text, so that tags the vocabulary lacks still work.

Injection: `encode` never yields a token that the template's markers are made of. Added tokens that
stand for something else (runs of blanks in some vocabularies) keep their meaning.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.tokenizers.tokenizer import (
  ASSISTANT,
  BOS,
  EOS,
  MARKERS,
  PAD,
  TAGS,
  USER,
  known,
  marked_prompt,
)


class HfTokenizer:
  """A `Tokenizer` over a tokenizer.json. `bos=''`: none. `pad=''`: the same token as eos."""

  opened = ''

  def __init__(
    self,
    path: str | os.PathLike[str],
    bos: str,
    eos: str,
    pad: str,
    user: str = USER,
    assistant: str = ASSISTANT,
    stops: tuple[str, ...] = (),
  ):
    text = read(path)
    template, tokens = load(path, text)
    added = {i: t.content for i, t in tokens.items()}
    self._check_single(path, template, added, bos=bos, eos=eos, pad=pad, stops=stops)
    self._texts = dict(zip(TAGS, TAGS)) | {
      PAD: pad or eos,
      BOS: bos,
      EOS: eos,
      USER: user,
      ASSISTANT: assistant,
    }
    self._template = template
    self._ids = {m: template.encode(self._texts[m], add_special_tokens=False).ids for m in MARKERS}
    self.eos = template.token_to_id(eos)
    self.pad = template.token_to_id(pad or eos)
    self.bos = template.token_to_id(bos) if bos else None
    self.stops = tuple(dict.fromkeys([self.eos, *map(template.token_to_id, stops)]))
    ends = {self.pad, *self.stops} | {self.bos} - {None}
    self.special = frozenset(ends.union(i for i, t in tokens.items() if t.special))
    # Not the vocabulary's size: ids may have gaps.
    self.vocab = 1 + max(template.get_vocab(with_added_tokens=True).values())
    reserved = {i for ids in self._ids.values() for i in ids if i in added} | set(self.stops)
    self._plain = plain(text, reserved)
    check_safe(path, self._plain, {template.id_to_token(i): i for i in reserved})

  def encode(self, text: str) -> list[int]:
    """Ids of plain text, no marker among them."""
    return self._plain.encode(text, add_special_tokens=False).ids

  def encode_special(self, marker: str) -> list[int]:
    """Ids of a marker, as its text was given to the constructor."""
    if marker not in self._ids:
      raise UserError(f'unknown marker {marker!r}; the template has {", ".join(MARKERS)}')
    return list(self._ids[marker])

  def prompt(self, question: str, system: str | None = None) -> list[int]:
    """Ids of a question between its markers."""
    return marked_prompt(self, question, system)

  def decode(self, ids: Iterable[int]) -> str:
    """Text of any ids, markers included."""
    kept = known(ids, (*self.stops, self.pad), self.vocab)
    return self._template.decode(kept, skip_special_tokens=False)

  @staticmethod
  def _check_single(path, template, added: dict[int, str], **roles: str | tuple[str, ...]) -> None:
    """Each of bos, eos, pad and stops must be one token of the file; says which are not."""
    if not roles['eos']:
      raise UserError(
        "eos='' : a tokenizer needs an end token; give the text of one, such as '<|im_end|>'"
      )
    wanted = [(role, t) for role, v in roles.items() for t in (v if role == 'stops' else (v,))]
    missing = [f'{role}={t!r}' for role, t in wanted if t and template.token_to_id(t) is None]
    if missing:
      raise UserError(
        f'{path} has no token for {", ".join(missing)}. Its added tokens: '
        f'{", ".join(map(repr, added.values())) or "none"}. Give the texts it uses.'
      )


def read(path: str | os.PathLike[str]) -> str:
  """The file's text, or an error that says what to give."""
  try:
    with open(path, encoding='utf-8') as f:
      return f.read()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'cannot read {path} ({e}); expected the path of a tokenizer.json') from e


def load(path: str | os.PathLike[str], text: str) -> tuple[Any, dict[int, Any]]:
  """The `tokenizers.Tokenizer` of a file's text, and its added tokens by id."""
  import tokenizers  # the compiled library loads only where it is used

  try:
    file = tokenizers.Tokenizer.from_str(text)
  except Exception as e:  # the library raises bare Exception
    raise UserError(f'{path} is not a tokenizer.json that `tokenizers` can read: {e}') from e
  return file, file.get_added_tokens_decoder()


def plain(text: str, reserved: set[int]) -> Any:
  """The same tokenizer, which reads reserved tokens as the characters they are spelled with."""
  import tokenizers

  spec = json.loads(text)
  for token in spec.get('added_tokens', ()):
    token['special'] = token['id'] in reserved
  made = tokenizers.Tokenizer.from_str(json.dumps(spec))
  made.encode_special_tokens = True
  return made


def check_safe(path: str | os.PathLike[str], plain: Any, reserved: Mapping[str, int]) -> None:
  """Some models of text reach a marker's id without the added token: refuse those."""
  bad = [t for t, i in reserved.items() if i in plain.encode(t, add_special_tokens=False).ids]
  if bad:
    raise UserError(
      f'{path}: plain text can produce {", ".join(map(repr, bad))}, so a question could '
      'forge the template. Choose markers that are added tokens and not words of the vocabulary.'
    )
