"""Folders such as public models come in: toy vocabularies, templates in the public formats.

`public` gives the folder of a family: qwen (ChatML, thought tags that are not special, NFC), llama3
(headers, a date, bos from the post-processor), deepseek (opens the thought, drops earlier ones),
mistral (sentencepiece's kind: Metaspace, byte fallback; templates by name, several ends).
"""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = ['the answer is 12, think: the user asks system 34 + 5', '  Über\n\n naïve «日本» 🙂']

QWEN = """
{%- for message in messages %}
  {%- if loop.first and message.role != 'system' %}
    {{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}
  {%- endif %}
  {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
  {%- set system = messages[0]['content'] | trim %}
  {%- set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n\\n' + system }}
{{- '<|eot_id|>' }}
{%- for message in messages %}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
  {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

DEEPSEEK = """{%- set ns = namespace(system='') -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = message['content'] -%}
{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{ '<｜User｜>' + message['content'] }}
  {%- elif message['role'] == 'assistant' -%}
    {%- set said = message['content'].split('</think>')[-1] -%}
    {{ '<｜Assistant｜>' + said + '<｜end▁of▁sentence｜>' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜><think>\\n' }}{%- endif -%}"""

MISTRAL = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
  {%- set system = messages[0]['content'] + '\\n\\n' %}
  {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('roles must alternate user/assistant') }}
  {%- endif %}
  {%- if message['role'] == 'user' %}
    {{- '[INST]' + (system if loop.first and system is defined else '') + message['content'] }}
    {{- '[/INST]' }}
  {%- else %}{{ ' ' + message['content'] + eos_token }}{% endif %}
{%- endfor %}"""

# Per family: control tokens, the special ones first; how many are special; the files beside.
FAMILIES = {
  'qwen': (
    ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<think>', '</think>', '<tool_call>'), 3,
    {
      'tokenizer_config.json': {
        'bos_token': None, 'eos_token': {'__type': 'AddedToken', 'content': '<|im_end|>'},
        'pad_token': '<|endoftext|>', 'chat_template': QWEN,
      },
      'generation_config.json': {'eos_token_id': [2, 0]},
    },
  ),
  'llama3': (
    ('<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
     '<|eom_id|>', '<|eot_id|>'), 6,
    {
      'tokenizer_config.json': {'bos_token': '<|begin_of_text|>', 'eos_token': '<|eot_id|>'},
      'chat_template.jinja': LLAMA3,
      'generation_config.json': {'eos_token_id': [1, 4, 5]},
    },
  ),
  'deepseek': (
    ('<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜User｜>', '<｜Assistant｜>', '<think>',
     '</think>'), 2,
    {
      'tokenizer_config.json': {
        'bos_token': '<｜begin▁of▁sentence｜>', 'eos_token': '<｜end▁of▁sentence｜>',
        'pad_token': '<｜end▁of▁sentence｜>', 'add_bos_token': True, 'chat_template': DEEPSEEK,
      },
      'config.json': {'eos_token_id': 1},
    },
  ),
  'mistral': (
    ('<unk>', '<s>', '</s>', '[INST]', '[/INST]'), 5,
    {
      'tokenizer_config.json': {
        'chat_template': [
          {'name': 'tool_use', 'template': '{{ 1 / 0 }}'},
          {'name': 'default', 'template': MISTRAL},
        ],
      },
      'special_tokens_map.json': {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'},
      'generation_config.json': {'eos_token_id': 2},
    },
  ),
}  # fmt: skip


def byte_level(controls, special, nfc):
  """A byte-level BPE; `controls` get the first ids."""
  tok = tokenizers.Tokenizer(models.BPE())
  tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tok.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=320, special_tokens=list(controls), show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  tok.train_from_iterator(TEXT * 9, trainer)
  if nfc:
    tok.normalizer = normalizers.NFC()
  spec = json.loads(tok.to_str())
  for token in spec['added_tokens']:
    token['special'] = token['id'] < special
  return tokenizers.Tokenizer.from_str(json.dumps(spec))


def metaspace(controls, prepends):
  """A BPE of sentencepiece's kind: Metaspace as in Mistral v0.3, or a normalizer as in v0.1."""
  letters = [
    *controls,
    *(f'<0x{i:02X}>' for i in range(256)),
    *'▁abcdehinorstuw',
    'th',
    'the',
    '▁the',
  ]
  vocab = {piece: i for i, piece in enumerate(letters)}
  merges = [('t', 'h'), ('th', 'e'), ('▁', 'the')]
  tok = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token='<unk>', byte_fallback=True))
  if prepends == 'metaspace':
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
  else:
    tok.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  tok.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  tok.add_special_tokens(list(controls))
  return tok


def build(family, folder, prepends='metaspace'):
  """Writes the files of a family."""
  controls, special, files = FAMILIES[family]
  if family == 'mistral':
    tok = metaspace(controls, prepends)
  else:
    tok = byte_level(controls, special, nfc=family == 'qwen')
  if family in ('llama3', 'mistral'):
    bos = controls[0] if family == 'llama3' else '<s>'
    tok.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, tok.token_to_id(bos))]
    )
  folder.mkdir(parents=True, exist_ok=True)
  tok.save(str(folder / 'tokenizer.json'))
  for name, value in files.items():
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), 'utf-8')
  return folder


@pytest.fixture(scope='session')
def public(tmp_path_factory):
  """The folder of a family, made once."""
  root, made = tmp_path_factory.mktemp('public'), {}

  def folder(family):
    if family not in made:
      made[family] = build(family, root / family)
    return made[family]

  return folder


@pytest.fixture
def make_public():
  """Writes a family's files into a folder of the test's own."""
  return build
