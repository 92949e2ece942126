"""The tokenizer and chat template that lie beside a public model's weights (`folder.py`).

For ordinary text the ids of a prompt are those of `transformers`' apply_chat_template: the template
is rendered and the text encoded in one piece. Where a message spells a control token, the text is
cut at the control tokens of the template (`template.Guard`), and what lies between is read as
characters. Control tokens are all added tokens but blanks and single characters that the file does
not call special: some vocabularies hold runs of blanks and letters so, and those stay text. A
template that puts a control token together from pieces of a message is not defended against.

`encode` is the tokenizer's own, as `transformers` runs it without special tokens. Byte-level
vocabularies give any text back, but for characters whose bytes they lack (SmolLM2 has no 0x04) and
what a normalizer rewrites (Qwen's: NFC). Vocabularies of sentencepiece's kind (Mistral v0.1, Llama
2) put a blank in front of a text and take it off again in `decode`; where the file does so by
Metaspace, a text that begins with a blank gets no second one, and comes back without its first.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from r1jax.core.errors import UserError, no_such
from r1jax.core.text import THINK_OPEN
from r1jax.tokenizers import folder as files
from r1jax.tokenizers import hf
from r1jax.tokenizers.template import Guard, any_of
from r1jax.tokenizers.tokenizer import BOS, EOS, PAD, TAGS, known

SPEAKERS = ('system', 'user', 'assistant', 'tool')
_BLANKS = re.compile(r'\s*')
_PROBE = 'r1jax'  # stands for a question when the template is asked how it opens an answer


class PublicTokenizer:
  """A `Tokenizer` over the files of a public model."""

  def __init__(self, folder: str | os.PathLike[str]):
    self._folder = pathlib.Path(folder)
    path = self._folder / 'tokenizer.json'
    if not path.exists():
      raise UserError(
        f'{path} is missing; copy the tokenizer files that lie beside the weights there (a model '
        "with tokenizer.model alone: save it by transformers' AutoTokenizer first)"
      )
    text, said = hf.read(path), files.read(folder)
    self._file, added = hf.load(path, text)
    # Not the vocabulary's size: ids may have gaps.
    self.vocab = 1 + max(self._file.get_vocab(with_added_tokens=True).values(), default=-1)
    self._names, self._template = said.texts, said.template
    self.bos, eos, pad = (self._id(role) for role in ('bos_token', 'eos_token', 'pad_token'))
    self.stops = self._stops(eos, said)
    self.eos = self.stops[0]
    self.pad = self.eos if pad is None else pad
    begins = self.bos in self._file.encode('').ids if said.begins is None else said.begins
    self._begin = [self.bos] if begins and self.bos is not None else []
    ends = {self.pad, *self.stops, *([] if self.bos is None else [self.bos])}
    self.special = frozenset(ends.union(i for i, t in added.items() if t.special))
    controls = {i: t for i, t in added.items() if i in ends or _is_control(t)}
    self._controls = {t.content: i for i, t in controls.items()}
    self._tokens = {t.content: t for t in controls.values()}
    self._ids = frozenset(controls)
    self._cut = re.compile(any_of(self._controls))
    self._guard = Guard(self._controls)
    self._plain = hf.plain(text, set(controls))
    inner = _never_prepending(text)
    self._inner = self._plain if inner == text else hf.plain(inner, set(controls))
    words = {self._file.id_to_token(i): i for i in ends if self._file.id_to_token(i)}
    hf.check_safe(path, self._plain, words | self._controls)
    self.opened = self._opened()

  def encode(self, text: str) -> list[int]:
    """Ids of plain text, no control token among them."""
    return self._plain.encode(text, add_special_tokens=False).ids

  def encode_special(self, marker: str) -> list[int]:
    """The end, the padding, what begins a text, or a tag: its own token, or else plain text."""
    if marker in TAGS:
      return [self._controls[marker]] if marker in self._controls else self.encode(marker)
    ids = {PAD: [self.pad], BOS: self._begin, EOS: [self.eos]}
    if marker not in ids:
      raise UserError(no_such('marker', marker, (*ids, *TAGS)))
    return list(ids[marker])

  def prompt(self, question: str, system: str | None = None) -> list[int]:
    """Ids of a question in the model's own template."""
    first = [] if system is None else [{'role': 'system', 'content': system}]
    return self.messages([*first, {'role': 'user', 'content': question}])

  def messages(
    self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
  ) -> list[int]:
    """Ids of a conversation of {'role', 'content'}, and of what opens the next answer."""
    if self._template is None:
      raise UserError(
        f'{self._folder} has no chat template, expected chat_template.jinja there or chat_template '
        "in tokenizer_config.json; add that of the model's instruction-tuned sibling"
      )
    for i, m in enumerate(messages):
      known = m.get('role') in SPEAKERS and isinstance(m.get('content'), str)
      if not known or len(m) > 2:  # what else a template prints could forge a control token
        raise UserError(
          f"message {i} is {m!r}; expected a text as 'content', one of {SPEAKERS} as 'role', and "
          'nothing else'
        )
    hidden, show = self._guard.hide(messages, self._template.source)
    text = self._template.render(hidden, add_generation_prompt, **self._names)
    if hidden == list(messages):
      ids = self._file.encode(text, add_special_tokens=False).ids
      # A normalizer can make a control token of what did not spell one ('＜|im_end|＞' by NFKC).
      if [i for i in ids if i in self._ids] == [self._controls[t] for t in self._cut.findall(text)]:
        return ids
    return self._encode_around(text, show)

  def decode(self, ids: Iterable[int]) -> str:
    """Text of any ids, control tokens included."""
    kept = known(ids, (*self.stops, self.pad), self.vocab)
    return self._file.decode(kept, skip_special_tokens=False)

  def _encode_around(self, text: str, show: Mapping[int, str]) -> list[int]:
    """Control tokens that stand in `text` become themselves, all else is read as characters."""
    ids, at = [], 0

    def read(piece: str) -> None:
      encoder = self._inner if at else self._plain
      ids.extend(encoder.encode(piece.translate(show), add_special_tokens=False).ids)

    for cut in self._cut.finditer(text):
      token, piece = self._tokens[cut[0]], text[at : cut.start()]
      read(piece.rstrip() if token.lstrip else piece)
      ids.append(self._controls[cut[0]])
      at = _BLANKS.match(text, cut.end()).end() if token.rstrip else cut.end()
    read(text[at:])
    return ids

  def _opened(self) -> str:
    """What the template writes behind a question, from the thought's opening tag on."""
    if self._template is None:
      return ''
    asked = [{'role': 'user', 'content': _PROBE}]
    _, _, tail = self._template.render(asked, True, **self._names).rpartition(_PROBE)
    return tail[tail.find(THINK_OPEN) :] if THINK_OPEN in tail else ''

  def _id(self, role: str) -> int | None:
    """The id of 'bos_token', …; None where the model has none."""
    text = self._names.get(role)
    i = None if text is None else self._file.token_to_id(text)
    if text is not None and i is None:
      raise UserError(
        f'{self._folder / "tokenizer_config.json"}: {role} is {text!r}, which tokenizer.json does '
        'not hold; take both files from the same model'
      )
    return i

  def _stops(self, eos: int | None, said: files.Folder) -> tuple[int, ...]:
    """eos first, then all others that a completion may end with."""
    wrong = [i for i in said.ends if not 0 <= i < self.vocab]
    if wrong:
      raise UserError(
        f'{said.ends_file}: eos_token_id has {wrong}, expected ids in [0, {self.vocab}) of '
        'tokenizer.json; take both files from the same model'
      )
    stops = tuple(dict.fromkeys([*([] if eos is None else [eos]), *said.ends]))
    if not stops:
      raise UserError(
        f'{self._folder} names no end token, expected eos_token in tokenizer_config.json or '
        'eos_token_id in generation_config.json; add the one that the model was trained with'
      )
    return stops


def _is_control(token: Any) -> bool:
  return token.special or len(token.content.strip()) > 1


def _never_prepending(text: str) -> str:
  """The tokenizer.json for text behind a control token: 'first' puts a blank at a text's start."""
  spec = json.loads(text)
  steps = json.dumps(spec.get('pre_tokenizer'))
  inner = steps.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
  return text if inner == steps else json.dumps({**spec, 'pre_tokenizer': json.loads(inner)})
