"""The typed union of tokenizers."""

import pytest
import tokenizers

from r1jax.core.errors import UserError
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.tokenizers.make import Byte, HuggingFace, Public, make
from r1jax.tokenizers.public import PublicTokenizer


def test_byte():
  assert isinstance(make(Byte()), ByteTokenizer)


def test_hugging_face(tmp_path):
  path = tmp_path / 'tokenizer.json'
  raw = tokenizers.Tokenizer(tokenizers.models.BPE({'a': 0}, []))
  raw.add_special_tokens(['<end>'])
  raw.save(str(path))
  tok = make(HuggingFace(str(path), bos='', eos='<end>'))
  assert (tok.encode('a'), tok.eos, tok.pad, tok.bos, tok.vocab) == ([0], 1, 1, None, 2)


def test_public(public):
  assert isinstance(make(Public(str(public('llama3')))), PublicTokenizer)


def test_anything_else_is_an_error():
  with pytest.raises(UserError, match=r'expected Byte\(\), HuggingFace\(.*\) or Public'):
    make('byte')
