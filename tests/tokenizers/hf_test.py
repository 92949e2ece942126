"""A tokenizer.json built here, read back: markers, injection, errors."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.tokenizers import hf
from r1jax.tokenizers.hf import HfTokenizer
from r1jax.tokenizers.tokenizer import MARKERS

ADDED = ('<|im_start|>', '<|im_end|>', '<|end|>')


def build(model, trainer, path, tags=('<think>', '</think>')):
  tok = tokenizers.Tokenizer(model)
  tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tok.decoder = tokenizers.decoders.ByteLevel()
  tok.train_from_iterator(['the answer is 12, think, the user asks 34'] * 9, trainer)
  tok.add_tokens([tokenizers.AddedToken(t, special=False) for t in tags])
  tok.add_tokens([tokenizers.AddedToken('    ', special=False)])
  tok.save(str(path))
  return path


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300, special_tokens=list(ADDED), initial_alphabet=alphabet, show_progress=False
  )
  return build(tokenizers.models.BPE(), trainer, tmp_path_factory.mktemp('bpe') / 'tokenizer.json')


@pytest.fixture(scope='module')
def tok(path):
  return HfTokenizer(
    path,
    bos='',
    eos='<|im_end|>',
    pad='',
    user='<|im_start|>user\n',
    assistant='<|im_end|>\n<|im_start|>assistant\n',
    stops=('<|end|>',),
  )


def test_attributes(tok):
  assert (tok.bos, tok.eos, tok.pad, tok.stops) == (None, 1, 1, (1, 2))
  raw = tok._template
  assert tok.vocab == raw.get_vocab_size(with_added_tokens=True)


def test_markers_are_tokens_where_the_file_has_them_and_text_elsewhere(tok):
  raw = tok._template
  assert tok.encode_special('<|bos|>') == []
  assert tok.encode_special('<|eos|>') == tok.encode_special('<|pad|>') == [1]
  assert tok.encode_special('<think>') == [raw.token_to_id('<think>')]
  assert tok.encode_special('<|user|>') == [0, *tok.encode('user\n')]
  assert tok.encode_special('<answer>') == tok.encode('<answer>')
  assert len(tok.encode('<answer>')) > 1


def test_prompts_are_made_of_markers(tok):
  user, assistant = tok.encode_special('<|user|>'), tok.encode_special('<|assistant|>')
  assert tok.prompt('12') == [*user, *tok.encode('12'), *assistant]
  assert tok.prompt('12', system='34') == [*user, *tok.encode('34\n\n12'), *assistant]
  assert tok.opened == ''


def test_text_never_becomes_a_marker(tok):
  reserved = {i for m in MARKERS for i in tok.encode_special(m) if i <= 2}
  reserved |= set(tok.stops) | set(tok.encode_special('<think>') + tok.encode_special('</think>'))

  @given(st.lists(st.one_of(st.text(), st.sampled_from([*MARKERS, *ADDED, '    ']))).map(''.join))
  def check(text):
    ids = tok.encode(text)
    assert not reserved & set(ids)
    assert tok.decode(ids) == text

  check()


def test_other_added_tokens_keep_their_meaning(tok):
  assert tok.encode('a    b')[1] == tok._template.token_to_id('    ')


def test_decode_shows_markers_and_drops_the_end(tok):
  ids = [*tok.encode_special('<think>'), *tok.encode('12'), *tok.encode_special('</think>')]
  assert tok.decode([*ids, 2, 1, 1]) == '<think>12</think>'
  with pytest.raises(UserError, match='is not in'):
    tok.decode([tok.vocab])


def test_missing_tokens_are_all_named(path):
  with pytest.raises(UserError) as e:
    HfTokenizer(path, bos='<s>', eos='</s>', pad='<|im_end|>', stops=('<|eot|>',))
  assert "bos='<s>', eos='</s>', stops='<|eot|>'" in str(e.value)
  assert "'<|im_start|>'" in str(e.value)
  with pytest.raises(UserError, match='needs an end token'):
    HfTokenizer(path, bos='', eos='', pad='')


def test_unreadable_files(tmp_path):
  with pytest.raises(UserError, match=r'expected the path of a tokenizer\.json'):
    HfTokenizer(tmp_path / 'none.json', bos='', eos='x', pad='')
  (tmp_path / 'bad.json').write_text('{}')
  with pytest.raises(UserError, match=r'is not a tokenizer\.json'):
    HfTokenizer(tmp_path / 'bad.json', bos='', eos='x', pad='')


def test_a_vocabulary_that_can_spell_a_marker_is_refused(tmp_path):
  tok = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, '<end>': 1, '?': 2}, '?'))
  tok.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tok.add_special_tokens(['<end>'])
  tok.save(str(tmp_path / 'words.json'))
  with pytest.raises(UserError, match="plain text can produce '<end>'"):
    HfTokenizer(tmp_path / 'words.json', bos='', eos='<end>', pad='')


@pytest.mark.parametrize('absent', ['added_tokens', 'pre_tokenizer'])
def test_keys_that_the_library_does_not_ask_for(path, tmp_path, absent):
  spec = json.loads(path.read_text())
  del spec[absent]
  hf.plain(json.dumps(spec), set())
