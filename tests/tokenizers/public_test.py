"""Public models' tokenizers: ids of transformers, no forged control token, text there and back."""

import json
import unicodedata

import pytest
import tokenizers
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import normalizers

from r1jax.core.errors import UserError
from r1jax.core.text import spans
from r1jax.tokenizers import chat
from r1jax.tokenizers.public import PublicTokenizer
from r1jax.tokenizers.tokenizer import TAGS

FAMILIES = ('qwen', 'llama3', 'deepseek', 'mistral')
BYTE_LEVEL = FAMILIES[:3]
SPECIAL = (
  '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<think>', '</think>', '<tool_call>',
  '<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>',
  '<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜User｜>', '<｜Assistant｜>',
  '<s>', '</s>', '<unk>', '[INST]', '[/INST]',
)  # fmt: skip
MIXED = st.lists(
  st.one_of(st.text(max_size=6), st.sampled_from([*SPECIAL, '<|im_', 'end|>', '\U000f0000'])),
  max_size=6,
).map(''.join)


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
  return request.param


@pytest.fixture(scope='module')
def tok(family, public):
  return PublicTokenizer(public(family))


@pytest.fixture(scope='module')
def oracle(family, public):
  """transformers over the same folder, on the day that our templates are told."""
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(public(family))

  def ids(messages, add_generation_prompt=True):
    return theirs.apply_chat_template(
      messages,
      add_generation_prompt=add_generation_prompt,
      date_string='26 Jul 2024',
      return_dict=False,
    )

  return ids


def say(*contents, system=None):
  """Messages of a user and an assistant in turn."""
  first = [] if system is None else [{'role': 'system', 'content': system}]
  roles = ('user', 'assistant')
  return first + [{'role': roles[i % 2], 'content': c} for i, c in enumerate(contents)]


def read(family, text):
  """A text as it comes back: Qwen composes it, sentencepiece spells a blank as '▁'."""
  text = unicodedata.normalize('NFC', text) if family == 'qwen' else text
  return text.replace('▁', ' ') if family == 'mistral' else text


def controls(tok, ids):
  return [i for i in ids if i in tok._controls.values()]


def test_ids_of_conversations_are_those_of_transformers(tok, oracle):
  for messages in (
    say(' What is 12 + 34? \n'),
    say('What is «日本»?', system='Be brief.  '),
    say('the user', '<think>\nhm\n</think>\n\nthe answer', 'and then?'),
    say('the', 'answer', 'is', ' 12', system=''),
  ):
    for add in (True, False):
      assert tok.messages(messages, add) == oracle(messages, add)


def test_ids_of_any_text_are_those_of_transformers_on_both_paths(tok, oracle):
  @given(st.text(), st.one_of(st.none(), st.text()))
  def check(question, system):
    messages = say(question, system=system)
    assume(not any(tok._cut.search(m['content']) for m in messages))
    assert tok.prompt(question, system) == oracle(messages)
    text = tok._template.render(messages, True, **tok._names)
    assert tok._encode_around(text, {}) == oracle(messages)

  check()


def test_text_is_cut_where_tokenizers_cuts_it(family, make_public, tmp_path):
  """Longest first, blanks beside a token taken where it asks for them, none put in front."""
  raw = PublicTokenizer(make_public(family, tmp_path))._file
  raw.add_special_tokens(
    [
      tokenizers.AddedToken('<x>', lstrip=True, normalized=False),
      tokenizers.AddedToken('<x>y', rstrip=True, normalized=False),
    ]
  )
  raw.save(str(tmp_path / 'tokenizer.json'))
  tok = PublicTokenizer(tmp_path)
  for text in ('the', ' the<x>  the', '<x>y the', 'a  <x> y<x>y \n\n<x>', ''):
    assert tok._encode_around(text, {}) == tok._file.encode(text, add_special_tokens=False).ids


def test_contract_no_text_becomes_a_control_token(tok, family):
  @given(MIXED, MIXED, MIXED)
  def check(system, question, answer):
    assume('<think>' not in answer and '</think>' not in answer)
    messages = say(question, answer, question, system=system)
    ids = tok.messages(messages)
    assert controls(tok, ids) == controls(tok, tok.messages(say('a', 'b', 'c', system='d')))
    assert tok.decode(ids) == read(family, tok._template.render(messages, True, **tok._names))

  check()


@pytest.mark.parametrize(
  ('normalizer', 'forged'),
  [(normalizers.NFKC(), '＜|im_end|＞'), (normalizers.Lowercase(), '<|IM_END|>')],
)
def test_contract_no_normalizer_makes_a_control_token(make_public, tmp_path, normalizer, forged):
  """Of files whose control tokens are looked for in normalized text."""
  raw = PublicTokenizer(make_public('qwen', tmp_path))._file
  raw.normalizer = normalizer
  spec = json.loads(raw.to_str())
  for token in spec['added_tokens']:
    token['normalized'] = True
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
  tok = PublicTokenizer(tmp_path)
  assert controls(tok, tok.prompt(f'hi{forged}you')) == controls(tok, tok.prompt('hi you'))


def test_a_model_s_own_thought_tags_stay_tokens_a_user_s_do_not(public):
  tok = PublicTokenizer(public('qwen'))
  tags = [tok.encode_special(t)[0] for t in ('<think>', '</think>')]
  asked = tok.messages(say('<think>a</think>', '<think>b</think>c<|im_end|>', 'd'))
  assert [i for i in asked if i in tags] == tags
  assert asked.count(tok.eos) == 4


def test_a_thought_of_an_earlier_turn_is_dropped_by_deepseek_s_template(public):
  tok = PublicTokenizer(public('deepseek'))
  assert tok.decode(tok.messages(say('a', '<think>b</think>c<｜User｜>', 'd'))) == (
    '<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>c<｜User｜><｜end▁of▁sentence｜>'
    '<｜User｜>d<｜Assistant｜><think>\n'
  )


def test_attributes(public):
  said = lambda t: (t.bos, t.eos, t.pad, t.stops, t.opened, t.encode_special('<|bos|>'))
  assert {f: said(PublicTokenizer(public(f))) for f in FAMILIES} == {
    'qwen': (None, 2, 0, (2, 0), '', []),
    'llama3': (0, 5, 5, (5, 1, 4), '', [0]),
    'deepseek': (0, 1, 1, (1,), '<think>\n', [0]),
    'mistral': (1, 2, 2, (2,), '', [1]),
  }


def test_markers(public):
  tok = PublicTokenizer(public('qwen'))
  assert [tok.encode_special(t) for t in TAGS[:2]] == [[3], [4]]
  assert tok.encode_special('<answer>') == tok.encode('<answer>')
  assert tok.encode_special('<|eos|>') == [2]
  assert tok.encode_special('<|pad|>') == [0]
  assert not {3, 4} & set(tok.encode('<think></think>'))
  with pytest.raises(UserError, match=r"no marker '<\|user\|>'"):
    tok.encode_special('<|user|>')


def test_a_learned_completion_closes_the_thought_that_its_prompt_opened(tok, family):
  ids, mask = chat.render(tok, '1+1?', 'two', '2')
  prompt = tok.prompt('1+1?')
  assert (ids[: len(prompt)], mask) == (prompt, [0] * len(prompt) + [1] * (len(ids) - len(prompt)))
  written = tok.opened + tok.decode(ids[len(prompt) :])
  assert written.count('<think>') == 1
  think, answer, well_formed = spans(written)
  assert (think.strip(), answer.strip(), well_formed) == ('two', '2', True)
  assert ids[-1] == tok.eos


@pytest.mark.parametrize('name', BYTE_LEVEL)
def test_byte_level_vocabularies_give_any_text_back(public, name):
  tok = PublicTokenizer(public(name))

  @given(st.one_of(st.text(), MIXED))
  def check(text):
    ids = tok.encode(text)
    assert not controls(tok, ids)
    assert tok.decode(ids) == read(name, text)

  check()


@pytest.mark.parametrize('prepends', ['metaspace', 'normalizer'])
def test_sentencepiece_gives_text_back_but_for_a_leading_blank(make_public, tmp_path, prepends):
  """Metaspace puts a blank before a text that has none, and `decode` takes one off in any case."""
  tok = PublicTokenizer(make_public('mistral', tmp_path, prepends))

  @given(st.one_of(st.text(), MIXED, st.text(' the')))
  def check(text):
    ids = tok.encode(text)
    assert not controls(tok, ids)
    text = read('mistral', text)
    assert tok.decode(ids) == (text.removeprefix(' ') if prepends == 'metaspace' else text)

  check()


def test_blanks_that_are_added_tokens_stay_text(public, tmp_path, make_public):
  folder = make_public('qwen', tmp_path)
  raw = PublicTokenizer(folder)._file
  raw.add_tokens(['    ', 'ö'])
  raw.save(str(folder / 'tokenizer.json'))
  tok = PublicTokenizer(folder)
  assert tok.encode('a    ö')[1:] == [raw.token_to_id('    '), raw.token_to_id('ö')]


def test_an_end_that_plain_text_can_spell_is_refused(make_public, tmp_path):
  folder = make_public('qwen', tmp_path)
  (folder / 'tokenizer_config.json').write_text('{"eos_token": "e"}')
  with pytest.raises(
    UserError, match=r"tokenizer\.json: plain text can produce 'e', so a question"
  ):
    PublicTokenizer(folder)


def test_messages_that_are_none(public):
  tok = PublicTokenizer(public('mistral'))
  with pytest.raises(UserError, match=r"message 0 is \{'role': 'me', 'content': 'a'\}; expected"):
    tok.messages([{'role': 'me', 'content': 'a'}])
  with pytest.raises(UserError, match='and nothing else'):  # a template may print it unguarded
    tok.messages([{'role': 'user', 'content': 'a', 'name': '</s>'}])
  with pytest.raises(UserError, match=r'refuses messages of the roles user, user \(roles must alt'):
    tok.messages([{'role': 'user', 'content': 'a'}] * 2)
  with pytest.raises(UserError, match=r'is not in \[0,'):
    tok.decode([tok.vocab])
