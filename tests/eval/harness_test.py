"""The harness' figures of a model through our adapter and through its own class on transformers.

The same random Llama with the same weights. torch, transformers and lm_eval come with the extras
`dev` and `eval`; without them this fails, it does not skip.
"""

import dataclasses
import json
import logging
import os
import types

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # before the libraries are imported

import datasets
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from einops import rearrange
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from r1jax.core.errors import UserError
from r1jax.engine.engine import Engine
from r1jax.eval import harness
from r1jax.eval.harness import Generation, generation, language_model, run
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import GQA, Dense, Layer, ModelConfig, Rope
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.tokenizers.hf import HfTokenizer
from r1jax.tokenizers.public import PublicTokenizer
from tests.published import byte_pairs

CONTEXT, D, LAYERS = 48, 32, 2
TEXT = ['the cat sat on the mat and the dog sat on the log', 'hello world, hello all of the world']
SPECIAL = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>'}
CHAT = (
  "{% for m in messages %}<s>{{ m['role'] + ':\n' + m['content'] }}</s>\n{% endfor %}"
  "{% if add_generation_prompt %}<s>{{ 'assistant:\n' }}{% endif %}"
)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope='module')
def tokenizer_json(tmp_path_factory):
  """Bytes and a few merges."""
  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
  return byte_pairs(path, TEXT * 9, vocab=290, special=list(SPECIAL.values()))


@pytest.fixture(scope='module')
def tok(tokenizer_json):
  return HfTokenizer(tokenizer_json, bos='<s>', eos='</s>', pad='<pad>')


@pytest.fixture(scope='module')
def llama(tok):
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=tok.vocab, hidden_size=D, intermediate_size=48, num_hidden_layers=LAYERS,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
    rms_norm_eps=1e-6, bos_token_id=tok.bos, eos_token_id=tok.eos, pad_token_id=tok.pad,
  )  # fmt: skip
  model = transformers.LlamaForCausalLM(config)
  with torch.no_grad():
    for p in model.parameters():
      p.normal_(0, 0.25) if p.dim() > 1 else p.uniform_(0.5, 1.5)
  return model.eval()


@pytest.fixture(scope='module')
def theirs(llama, tokenizer_json):
  fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json), **SPECIAL)
  fast.chat_template = CHAT
  return HFLM(pretrained=llama, tokenizer=fast, max_length=CONTEXT, batch_size=4)


@pytest.fixture(scope='module')
def model(llama, tok):
  """(params, cfg) of the same weights."""
  layer = Layer(GQA(4, 2, 8, rotary=Rope(interleaved=False)), Dense(48))
  cfg = ModelConfig(tok.vocab, D, (layer,) * LAYERS, remat='none')
  p = {name: jnp.asarray(x.detach().numpy()) for name, x in llama.state_dict().items()}

  def stacked(name, form='b a -> a b', **sizes):
    layers = [p[f'model.layers.{i}.{name}.weight'] for i in range(LAYERS)]
    return jnp.stack([rearrange(x, form, **sizes) for x in layers])

  block = {
    'attention_scale': stacked('input_layernorm', 'D -> D'),
    'mlp_scale': stacked('post_attention_layernorm', 'D -> D'),
    'mlp': {n: stacked(f'mlp.{n}_proj') for n in ('gate', 'up', 'down')},
    'attention': {n: stacked(f'self_attn.{n}_proj', '(N H) D -> D N H', H=8) for n in 'qkv'}
    | {'out': stacked('self_attn.o_proj', 'D (N H) -> N H D', H=8)},
  }
  params = {
    'run0': {'block0': block},
    'embedding': p['model.embed_tokens.weight'],
    'final_scale': p['model.norm.weight'],
    'head': p['lm_head.weight'].T,
  }
  return params, cfg


@pytest.fixture(scope='module')
def make(model, tok):
  params, cfg = model
  engine = Engine(cfg, tok.stops)

  def lm(tok=tok, **options):
    return language_model(params, cfg, tok, engine, **{'context': CONTEXT, **options})

  return lm


@pytest.fixture(scope='module')
def ours(make):
  return make(slots=256)


@pytest.fixture(scope='module')
def tasks(tmp_path_factory, theirs):
  """A folder with one task of each kind, data and all; half of the completions hit."""
  folder = tmp_path_factory.mktemp('tasks')
  begun = [t[:n] for t in TEXT for n in (3, 8, 20)]
  asked = [(t, {'until': ['e'], 'max_gen_toks': 9}) for t in begun]
  hits = theirs.generate_until(requests('generate_until', *asked))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('cache'))
    rows = {
      'choose': [{'q': f'{t} ', 'o': ['the mat', 'a  dog', 'é', 'hello'], 'a': i % 4}
                 for i, t in enumerate(begun * 2)],
      'roll': [{'t': t} for t in (*TEXT, ' '.join(TEXT * 3), 'ünïcode')],
      'write': [{'q': t, 'a': hit if i % 2 else 'x'}
                for i, (t, hit) in enumerate(zip(begun, hits))],
    }  # fmt: skip
    head = 'task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\n'
    body = {
      'choose': 'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{o}}"\n'
      'doc_to_target: a\nmetric_list:\n  - {metric: acc}\n  - {metric: acc_norm}\n',
      'roll': 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{t}}"\n'
      'metric_list:\n  - {metric: word_perplexity}\n  - {metric: bits_per_byte}\n',
      'write': 'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\n'
      'generation_kwargs: {until: ["e"], max_gen_toks: 9}\n'
      'metric_list:\n  - {metric: exact_match}\n  - {metric: bleu}\n',
    }
    for name, lines in rows.items():
      file = folder / f'{name}.jsonl'
      file.write_text('\n'.join(map(json.dumps, lines)))
      (folder / f'{name}.yaml').write_text(
        f'{head.format(name=name, file=file)}test_split: test\n{body[name]}'
      )
    yield folder


def requests(kind, *args):
  return [Instance(kind, {}, a, i) for i, a in enumerate(args)]


def test_figures_of_local_tasks_are_the_same(ours, theirs, tasks):
  names = ['choose', 'roll', 'write']
  got, want = run(ours, names, tasks), run(theirs, names, tasks)
  assert got == {name: pytest.approx(row, rel=1e-5) for name, row in want.items()}
  assert {'acc,none', 'acc_stderr,none', 'acc_norm,none'} <= set(got['choose'])
  assert 0 < got['choose']['acc,none'] < 1 and got['write']['exact_match,none'] == 0.5
  assert got['roll']['word_perplexity,none'] > 1


def test_likelihoods_of_odd_texts_are_the_same(ours, theirs):
  args = [
    (TEXT[0], ' and so on'),
    ('trailing blanks  ', 'go over'),
    ('', 'no context'),
    ('one', 'x'),
    ('é', ' 語'),
    (' '.join(TEXT * 3), 'too long by far'),
    ('short', ' '.join(TEXT)),
  ]
  args += [(text, made) for text in TEXT for made in greedy(theirs, text)]
  got = ours.loglikelihood(requests('loglikelihood', *args), disable_tqdm=True)
  want = theirs.loglikelihood(requests('loglikelihood', *args), disable_tqdm=True)
  np.testing.assert_allclose([x for x, _ in got], [x for x, _ in want], atol=1e-4)
  assert [exact for _, exact in got] == [exact for _, exact in want]
  assert {exact for _, exact in want} == {True, False}


def greedy(lm, text):
  """The next token, as text."""
  return lm.generate_until(requests('generate_until', (text, {'max_gen_toks': 1})))


def test_rolling_windows_are_the_same(ours, theirs):
  args = [(t,) for t in (TEXT[0], ' '.join(TEXT * 4), 'x', '')]
  got = ours.loglikelihood_rolling(requests('loglikelihood_rolling', *args))
  want = theirs.loglikelihood_rolling(requests('loglikelihood_rolling', *args))
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_completions_are_the_same(ours, theirs):
  asked = [{'until': ['e', 'th'], 'max_gen_toks': 20}, {'until': 'a'}, {'max_new_tokens': 17}]
  asked[1] |= {'max_gen_toks': 24, 'do_sample': False, 'temperature': 0.7}
  texts = [*TEXT, TEXT[0][:9], ' '.join(TEXT * 3), 'y']
  args = [(text, options) for options in asked for text in texts]
  got = ours.generate_until(requests('generate_until', *args))
  want = theirs.generate_until(requests('generate_until', *args))
  assert got == want
  assert len(set(got)) > len(args) / 2


class Says:
  """An engine that answers every prompt by the same ids, and keeps what it was asked."""

  def __init__(self, ids):
    self.ids, self.asked = np.array(ids), []

  def complete(self, params, asked, longest):
    self.asked += [(r.limit, r.stops, longest) for r in asked]
    return [types.SimpleNamespace(tokens=self.ids) for _ in asked]


@pytest.fixture
def saying(model):
  """Makes a language model of the given tokenizer and answer."""
  params, cfg = model

  def make(tok, ids=(0,), **options):
    wide = dataclasses.replace(cfg, vocab=tok.vocab)
    engine = Engine(wide, tok.stops)
    lm = language_model(params, wide, tok, engine, **{'context': CONTEXT, **options})
    lm._engine = Says(ids)
    return lm

  return make


ASKED = ('generate_until', ('x', {'max_gen_toks': 16}))


def test_control_tokens_are_no_text_and_other_added_tokens_are(
  saying, public, tokenizer_json, tmp_path, theirs
):
  public()
  file = tokenizers.Tokenizer.from_file(str(tokenizer_json))
  file.add_special_tokens(['<|im_start|>'])
  file.add_tokens(['<tool_call>'])
  file.save(str(tmp_path / 'tokenizer.json'))
  ids = file.encode('hello<|im_start|>user world<tool_call></s>').ids
  assert file.token_to_id('<|im_start|>') in ids
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tmp_path / 'tokenizer.json'), **SPECIAL
  )
  want = HFLM(pretrained=theirs.model, tokenizer=fast, max_length=CONTEXT).tok_decode(ids)
  assert want == 'hellouser world<tool_call>'
  marked = HfTokenizer(tmp_path / 'tokenizer.json', bos='', eos='</s>', pad='')
  for tok in (PublicTokenizer(tmp_path), marked):
    assert saying(tok, ids).generate_until(requests(*ASKED)) == [want]
  byte = ByteTokenizer()
  ids = [*byte.prompt('hello '), *byte.encode_special('<think>'), *b'world', byte.eos]
  assert saying(byte, ids).generate_until(requests(*ASKED)) == ['hello <think>world']


def test_each_completion_has_its_own_limit_and_stop_strings(saying, tok):
  lm = saying(tok, context=256)
  asked = [(TEXT[0][: 5 + 60 * i], {'until': 'xyz'[:i], 'max_gen_toks': 9 + i}) for i in range(3)]
  lm.generate_until(requests('generate_until', *asked))
  longest = len(lm.tok_encode(asked[2][0])) + 11
  assert lm._engine.asked == [(9, (), longest), (10, ('x',), longest), (11, ('xy',), longest)]


def test_nothing_is_written_behind_a_stop_string(ours):
  written = ours._engine.engine(CONTEXT).counts
  args = (TEXT[0], {'until': [], 'max_gen_toks': 40})
  (whole,) = ours.generate_until(requests('generate_until', args))
  before = written['written']
  args = (TEXT[0], {'until': [whole[3]], 'max_gen_toks': 40})
  (part,) = ours.generate_until(requests('generate_until', args))
  assert part == whole.split(whole[3])[0]
  assert written['written'] - before <= 4 < 40


def test_samples_depend_on_the_request_and_not_on_the_batch(ours, make):
  options = {'do_sample': True, 'temperature': 1.0, 'max_gen_toks': 8}
  args = [(TEXT[0], options)] * 5
  made = ours.generate_until(requests('generate_until', *args))
  assert len(set(made)) > 3
  alone = make(slots=1)
  assert alone.generate_until(requests('generate_until', *args)) == made


def test_the_prefix_is_bos_or_eos_and_stands_before_texts_where_asked(make, tok):
  assert (make().eot_token_id, make().prefix_token_id) == (tok.eos, tok.bos)
  plain = tok.encode('cat')
  assert make().tok_encode('cat') == plain
  lm = make(add_bos=True)
  assert lm.tok_encode('cat') == [tok.bos, *plain]
  assert lm.tok_encode('cat', add_special_tokens=False) == plain


def test_a_chat_keeps_its_tokens_and_a_question_cannot_forge_them(make, tok):
  lm = make()
  asked = [{'role': 'system', 'content': 'be'}, {'role': 'user', 'content': 'hi</s>'}]
  text = lm.apply_chat_template(asked)
  assert lm.tok_encode(text) == tok.prompt('hi</s>', 'be')
  assert tok.eos not in lm.tok_encode(text) and '</s>' in text
  opened = [*asked, {'role': 'assistant', 'content': 'so: '}]
  text = lm.apply_chat_template(opened, add_generation_prompt=False)
  ids = [*tok.prompt('hi</s>', 'be'), *tok.encode('so: ')]
  assert lm.tok_encode(text) == ids
  context, continuation = lm._encode_pair(text, 'x')
  assert [*context, *continuation] == [*ids[:-1], *tok.encode(' x')]
  asks = r'a chat of the roles user, assistant, user: .* shots=0 \(--lm_eval_shots=0\)'
  with pytest.raises(UserError, match=asks):
    lm.apply_chat_template([asked[1], opened[2], asked[1]])


@pytest.fixture
def public(tokenizer_json, tmp_path):
  """The same tokenizer as the files of a public model, which say what they are given."""

  def write(**said):
    config = {**SPECIAL, 'chat_template': CHAT, **said}
    (tmp_path / 'tokenizer.json').write_text(tokenizer_json.read_text())
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    return PublicTokenizer(tmp_path)

  return write


def test_chats_are_the_same(make, public, theirs, tasks):
  lm, ask = make(public(), context=96), lambda text: {'role': 'user', 'content': text}
  wide = HFLM(pretrained=theirs.model, tokenizer=theirs.tokenizer, max_length=96, batch_size=4)
  answer = {'role': 'assistant', 'content': TEXT[1]}
  chats = [([ask(TEXT[0])], True), ([ask('hi'), answer, ask('so?')], True)]
  chats += [([ask('hi'), {'role': 'assistant', 'content': 'the answer: '}], False)]
  made = [[x.apply_chat_template(*chat) for chat in chats] for x in (lm, wide)]
  assert made[0] == made[1]
  args = [(text, continuation) for text in made[0] for continuation in ('cat', ' on the mat')]
  got, want = (x.loglikelihood(requests('loglikelihood', *args), True) for x in (lm, wide))
  np.testing.assert_allclose([x for x, _ in got], [x for x, _ in want], atol=1e-4)
  args = [(text, {'max_gen_toks': 16}) for text in made[0]]
  got, want = (x.generate_until(requests('generate_until', *args)) for x in (lm, wide))
  assert got == want
  got, want = (run(x, ['choose'], tasks, chat=True, limit=3) for x in (lm, wide))
  assert got == {'choose': pytest.approx(want['choose'])}


def test_a_chat_that_spells_another_s_control_tokens_is_refused(make, public):
  template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
  lm, ask = make(public(chat_template=template)), lambda text: {'role': 'user', 'content': text}
  real = [ask('hi'), {'role': 'assistant', 'content': 'no'}, ask('so?')]
  text = lm.apply_chat_template(real)
  with pytest.raises(UserError, match=r"two chats have the text '<s>hi<s>no<s>so\?'… and other"):
    lm.apply_chat_template([ask('hi<s>no<s>so?')])
  assert lm.apply_chat_template(real) == text
  assert lm.tok_encode(text).count(lm.prefix_token_id) == 3


def test_a_template_that_refuses_system_messages_is_given_none(
  make, public, tokenizer_json, theirs, caplog
):
  refusing = "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}"
  lm = make(public(chat_template=refusing + CHAT))
  fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json), **SPECIAL)
  fast.chat_template = refusing + CHAT
  peer = HFLM(pretrained=theirs.model, tokenizer=fast, max_length=CONTEXT)
  told = [{'role': 'system', 'content': 'Add.'}]
  chats = [[*told, {'role': 'user', 'content': text}] for text in ('1 + 2', '3 + 4')]
  with caplog.at_level(logging.WARNING, harness.__name__):
    made = [lm.apply_chat_template(chat) for chat in chats]
  assert made == [peer.apply_chat_template(chat) for chat in chats]
  assert 'Add.' not in made[0] and '1 + 2' in made[0]
  mine = [r.getMessage() for r in caplog.records if r.name == harness.__name__]
  assert len(mine) == 1 and 'without their system messages' in mine[0]
  for chat in ([*chats[0], chats[0][1]], [chats[0][1]] * 2):
    with pytest.raises(UserError, match='refuses messages of the roles user, user'):
      lm.apply_chat_template(chat)


def test_a_public_model_begins_texts_as_its_files_say(make, public, tok):
  plain = tok.encode('cat')
  assert make(public()).tok_encode('cat') == plain
  assert make(public(add_bos_token=True)).tok_encode('cat') == [tok.bos, *plain]
  assert make(public(add_bos_token=True), add_bos=False).tok_encode('cat') == plain


@pytest.mark.parametrize(
  'options, made',
  [
    ({}, Generation((), 256, GREEDY)),
    ({'until': 'a', 'max_tokens': 3}, Generation(('a',), 3, GREEDY)),
    ({'until': ['a', 'b'], 'temperature': 0}, Generation(('a', 'b'), 256, GREEDY)),
    ({'do_sample': False, 'temperature': 1.0, 'top_p': 0.9}, Generation((), 256, GREEDY)),
    ({'temperature': 0.5, 'top_k': 4}, Generation((), 256, Sampling(0.5, 4))),
    (
      {'do_sample': True, 'temperature': 1, 'top_p': 0.9, 'max_gen_toks': 7, 'max_tokens': 9},
      Generation((), 7, Sampling(1.0, 0, 0.9)),
    ),
  ],
)
def test_generation_options(options, made):
  assert generation(options) == made


def test_errors(ours, make, model, tasks, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"no generation option 'num_beams'; .* generation_kwargs"):
    generation({'num_beams': 4})
  for bad in ({'do_sample': True}, {'max_gen_toks': 0}, {'temperature': 1.0, 'top_p': 7}):
    with pytest.raises(UserError, match=r'generation_kwargs are .*: need '):
      generation(bad)
  with pytest.raises(UserError, match=r'max_gen_toks=48 leaves no room .* a context of 48 tokens'):
    ours.generate_until(requests('generate_until', ('x', {'max_gen_toks': CONTEXT})))
  for empty, count in (('', 0), ('y' * 49, 49)):
    with pytest.raises(UserError, match=f'has {count} tokens; expected 1 to 48'):
      ours.loglikelihood(requests('loglikelihood', ('x', empty)), disable_tqdm=True)
  with pytest.raises(UserError, match=r"no task 'chose' in .*, did you mean 'choose'"):
    run(ours, ['chose'], tasks)
  with pytest.raises(UserError, match=r"no task 'xy' in .*; known: choose, roll, write$"):
    run(ours, ['xy'], tasks)
  with pytest.raises(UserError, match=r"no task 'xy' in .*; known: none$"):
    run(ours, ['xy'], tmp_path)
  with pytest.raises(UserError, match=r'nowhere is no folder; give one of YAML tasks'):
    run(ours, ['choose'], tmp_path / 'nowhere')
  params, cfg = model
  small = ModelConfig(264, D, cfg.layers)
  with pytest.raises(UserError, match='the tokenizer has 265 tokens, the model 264: give'):
    language_model(params, small, ByteTokenizer(), Engine(small, (0,)))
  monkeypatch.setitem(harness.__dict__, 'importlib', Missing())
  with pytest.raises(UserError, match=r"does not import .* pip install 'r1jax\[eval\]'"):
    make()


class Missing:
  def import_module(self, name):
    raise ModuleNotFoundError(f'No module named {name!r}')
