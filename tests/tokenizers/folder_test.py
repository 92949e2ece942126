"""The files beside the weights: what wins over what, and one line for each way to be wrong."""

import json

import pytest

from r1jax.core.errors import UserError
from r1jax.tokenizers import folder
from r1jax.tokenizers.public import PublicTokenizer


def write(path, **files):
  """Files by name, '_' for '.', objects as JSON."""
  for name, value in files.items():
    stem, _, ending = name.rpartition('_')
    text = value if isinstance(value, str) else json.dumps(value)
    (path / f'{stem}.{ending}').write_text(text)
  return path


def test_the_config_goes_before_the_map_and_a_file_before_the_config(tmp_path):
  said = folder.read(
    write(
      tmp_path,
      tokenizer_config_json={
        'bos_token': {'content': '<s>', 'lstrip': False},
        'eos_token': None,
        'add_bos_token': False,
        'chat_template': 'config',
      },
      special_tokens_map_json={'bos_token': '<t>', 'eos_token': '</s>'},
      generation_config_json={'eos_token_id': [2, 7]},
      config_json={'eos_token_id': 3},
      chat_template_jinja='file',
    )
  )
  assert said.texts == {'bos_token': '<s>', 'eos_token': '</s>'}
  assert (said.ends, said.ends_file) == ((2, 7), tmp_path / 'generation_config.json')
  assert (said.begins, said.template.source) == (False, 'file')


def test_fallbacks(tmp_path):
  said = folder.read(write(tmp_path, config_json={'eos_token_id': 3}))
  assert (said.texts, said.ends, said.begins, said.template) == ({}, (3,), None, None)
  write(tmp_path, tokenizer_config_json={'chat_template': [{'name': 'default', 'template': 'x'}]})
  assert folder.read(tmp_path).template.source == 'x'
  write(tmp_path, generation_config_json={'eos_token_id': None})
  assert folder.read(tmp_path).ends == (3,)


WRONG = {
  'no JSON': ('config.json', '{', 'cannot read {file} as JSON (Expecting property name enclosed'),
  'no object': ('config.json', '[]', '{file} holds a list, expected an object; fetch it again'),
  'end': (
    'generation_config.json', '{"eos_token_id": "</s>"}',
    "{file}: eos_token_id is '</s>', expected one id or a list of ids"),
  'ends': (
    'generation_config.json', '{"eos_token_id": [999]}',
    '{file}: eos_token_id has [999], expected ids in [0, 318) of tokenizer.json; take both files'),
  'token': (
    'tokenizer_config.json', '{"eos_token": 3}',
    "{file}: eos_token is 3, expected a text or {{'content': text}}"),
  'object': (
    'tokenizer_config.json', '{"pad_token": {"text": "a"}}',
    "{file}: pad_token is {{'text': 'a'}}, expected a text or {{'content': text}}"),
  'unknown token': (
    'tokenizer_config.json', '{"bos_token": "<s>"}',
    "{file}: bos_token is '<s>', which tokenizer.json does not hold; take both files"),
  'template': (
    'tokenizer_config.json', '{"chat_template": 3}',
    '{file}: chat_template is 3, expected a text; fetch it again'),
  'names': (
    'tokenizer_config.json', '{"chat_template": [{"name": "rag", "template": "x"}]}',
    "{file}: chat_template has 'rag', expected one named 'default'; rename the one to use"),
  'bytes': ('chat_template.jinja', b'\xff', "cannot read {file} as text ('utf-8' codec can't"),
  'tokenizer': ('tokenizer.json', '{}', '{file} is not a tokenizer.json that `tokenizers`'),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_wrong_files(make_public, tmp_path, case):
  make_public('qwen', tmp_path)
  name, content, message = WRONG[case]
  if name == 'config.json':  # asked where the other is silent
    (tmp_path / 'generation_config.json').unlink()
  file = tmp_path / name
  file.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(UserError) as e:
    PublicTokenizer(tmp_path)
  assert str(e.value).startswith(message.format(file=file))
  assert '\n' not in str(e.value)


def test_missing_files(make_public, tmp_path):
  with pytest.raises(UserError, match=r'none/tokenizer.json is missing; copy the tokenizer files'):
    PublicTokenizer(tmp_path / 'none')
  make_public('qwen', tmp_path)
  (tmp_path / 'tokenizer_config.json').unlink()
  tok = PublicTokenizer(tmp_path)  # a base model has no template, and still reads text
  assert (tok.decode(tok.encode('the')), tok.stops, tok.opened) == ('the', (2, 0), '')
  with pytest.raises(UserError, match='has no chat template, expected chat_template'):
    tok.prompt('the')
  (tmp_path / 'generation_config.json').unlink()
  with pytest.raises(UserError, match='names no end token, expected eos_token in tokenizer_config'):
    PublicTokenizer(tmp_path)
