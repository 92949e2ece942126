"""The tokenizer inside a GGUF file, written as the files that `public.PublicTokenizer` reads.

GGUF keeps a byte-level BPE vocabulary ('gpt2') as tokens, merges and token types, and names how
text is cut into words before the merges (`tokenizer.ggml.pre`). The patterns are llama.cpp's
(src/llama-vocab.cpp), written as in Llama 3's and Qwen 2's own tokenizer.json. Qwen 2 also composes
text (NFC) first, as its authors' tokenizer does and llama.cpp does not. Vocabularies of Llama 3
take a word that is a token as it is, without merges, and begin a text with bos.

`transformers` reads the same metadata without SmolLM2's rule that every numeral stands alone: it
gives other ids to '½', and to blanks in front of a digit.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from r1jax.core.errors import UserError, nearest

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}"
  r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_LLAMA3, _QWEN2 = (_WORDS.format(numbers=n) for n in (r'\p{N}{1,3}', r'\p{N}'))
# How `pre` cuts: each pattern cuts what those before it left, its finds and the rest apart.
PATTERNS = {
  'default': (r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', '[0-9][0-9][0-9]'),
  'gpt-2': (_GPT2,),
  'smollm': (r'\p{N}', _GPT2),
  'llama-bpe': (_LLAMA3,),
  'qwen2': (_QWEN2,),
  'deepseek-r1-qwen': (_QWEN2,),
}
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types that are matched whole


def write(metadata: Mapping[str, Any], folder: str | os.PathLike[str], file: str) -> None:
  """Writes tokenizer.json, tokenizer_config.json and generation_config.json; `file` for errors."""
  tokens = _get(metadata, 'tokenizer.ggml.tokens', file)
  ids = {
    role: _token_id(metadata, f'tokenizer.ggml.{key}_token_id', len(tokens), file)
    for role, key in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'), ('eot', 'eot'))
  }
  _get(metadata, 'tokenizer.ggml.eos_token_id', file)
  tokenizer = _tokenizer(metadata, tokens, ids['bos'], file)
  named = {f'{r}_token': tokens[ids[r]] for r in ('bos', 'eos', 'pad') if ids[r] is not None}
  template = metadata.get('tokenizer.chat_template')
  config = {**named, **({} if template is None else {'chat_template': template})}
  ends = [ids[r] for r in ('eos', 'eot') if ids[r] is not None]
  path = pathlib.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  _dump(path / 'tokenizer_config.json', {**config, 'tokenizer_class': 'PreTrainedTokenizerFast'})
  _dump(path / 'generation_config.json', {'eos_token_id': list(dict.fromkeys(ends))})
  tokenizer.save(str(path / 'tokenizer.json'))


def _tokenizer(metadata: Mapping[str, Any], tokens: list[str], bos: int | None, file: str) -> Any:
  """The `tokenizers.Tokenizer` of the metadata."""
  import tokenizers  # the compiled library loads only where it is used
  from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

  pre = _pre(metadata, file)
  merges = [tuple(m.split(' ', 1)) for m in _get(metadata, 'tokenizer.ggml.merges', file)]
  types = _get(metadata, 'tokenizer.ggml.token_type', file)
  vocab = {token: i for i, token in enumerate(tokens)}
  made = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == 'llama-bpe'))
  if PATTERNS[pre] == (_QWEN2,):
    made.normalizer = normalizers.NFC()
  cuts = [pre_tokenizers.Split(tokenizers.Regex(p), 'isolated') for p in PATTERNS[pre]]
  level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
  made.decoder = decoders.ByteLevel()
  made.add_tokens(
    [
      tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
      for token, kind in zip(tokens, types)
      if kind in (_CONTROL, _USER_DEFINED)
    ]
  )
  if bos is not None and metadata.get('tokenizer.ggml.add_bos_token', pre == 'llama-bpe'):
    made.post_processor = processors.TemplateProcessing(
      single=f'{tokens[bos]} $A', special_tokens=[(tokens[bos], bos)]
    )
  return made


def _pre(metadata: Mapping[str, Any], file: str) -> str:
  """How the file cuts text; what this module cannot read is an error."""
  model = _get(metadata, 'tokenizer.ggml.model', file)
  if model != 'gpt2':
    raise UserError(
      f"{file}: tokenizer.ggml.model is '{model}', expected 'gpt2' (byte-level BPE); convert the "
      "model's safetensors, whose folder has a tokenizer.json"
    )
  pre = metadata.get('tokenizer.ggml.pre', 'default')
  pre = {'llama3': 'llama-bpe', 'llama-v3': 'llama-bpe'}.get(pre, pre)
  if pre not in PATTERNS:
    guess = nearest(pre, PATTERNS)
    raise UserError(
      f"{file}: tokenizer.ggml.pre is '{pre}', expected one of {', '.join(PATTERNS)}"
      f"{f' (nearest: {guess})' if guess else ''}; convert the model's safetensors, whose folder "
      'has a tokenizer.json'
    )
  return pre


def _get(metadata: Mapping[str, Any], key: str, file: str) -> Any:
  if key not in metadata:
    raise UserError(f'{file} has no {key}, which a tokenizer needs; convert the model again')
  return metadata[key]


def _token_id(metadata: Mapping[str, Any], key: str, vocab: int, file: str) -> int | None:
  i = metadata.get(key)
  if i is not None and not (isinstance(i, int) and 0 <= i < vocab):
    raise UserError(
      f'{file}: {key} is {i}, expected an id in [0, {vocab}); convert the model again'
    )
  return i


def _dump(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, ensure_ascii=False, indent=2), 'utf-8')
