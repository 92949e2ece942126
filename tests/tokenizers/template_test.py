"""Chat templates: the environment of transformers, the sandbox, and the guard of control tokens."""

import pytest
import transformers.utils.chat_template_utils as theirs
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.tokenizers.template import ChatTemplate, Guard

USER = [{'role': 'user', 'content': ' <b>é</b> '}]


def render(source, messages=USER, add=True, **texts):
  return ChatTemplate(source, 'a/chat_template.jinja').render(messages, add, **texts)


@pytest.mark.parametrize(
  'source',
  [
    '  {% if add_generation_prompt %}\n  a\n  {% endif %}\n{{ bos_token }}\n\n',
    '{{ messages[0].content | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}',
    '{% for m in messages * 3 %}{% if loop.index == 3 %}{% break %}{% endif %}x{% endfor %}',
    '{% for m in messages %}{% generation %}\n{% set x = 1 %}{{ m.role }}\n{% endgeneration %}\n'
    '{% endfor %}{{ x is defined }}',
    '{{ tools is none }} {{ documents is none }} {{ nothing }} {{ namespace(a=1).a }}',
    '{{ raise_exception is defined }} {{ messages[0].content.strip().split("b")[-1] }}',
  ],
)
def test_texts_are_those_of_transformers(source):
  expected, _ = theirs.render_jinja_template(
    [USER], chat_template=source, add_generation_prompt=True, bos_token='<s>'
  )
  assert [render(source, bos_token='<s>')] == expected


def test_every_day_is_the_same_day():
  assert render("{{ strftime_now('%d %b %Y') }}") == '26 Jul 2024'


@pytest.mark.parametrize(
  ('source', 'reason'),
  [
    ("{{ raise_exception('no\\nroles') }}", 'no roles'),
    ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
    ('{{ messages.append(1) }}', "access to attribute 'append' of 'list' object is unsafe."),
    (
      '{{ range(1000000) }}',
      'Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).',
    ),
    ('{{ 1 / 0 }}', 'division by zero'),
    ("{{ 'a' + 1 }}", 'can only concatenate str (not "int") to str'),
    ("{{ 'a' * 10 ** 15 }}", 'MemoryError'),
    (
      '{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}',
      'maximum recursion depth exceeded',
    ),
    ('{{ lipsum() }}', "'lipsum' is undefined"),
  ],
)
def test_what_a_template_may_not_do(source, reason):
  with pytest.raises(UserError) as e:
    render(source)
  assert str(e.value) == (
    f'a/chat_template.jinja: the chat template refuses messages of the roles user ({reason}); '
    'give the roles that it expects, or mend it'
  )


def test_a_template_that_is_no_jinja():
  with pytest.raises(UserError, match=r"a/chat_template.jinja: .* compiled \(.*'endfor'.*\); mend"):
    ChatTemplate('{% for m in messages %}\n', 'a/chat_template.jinja')


CONTROLS = ('<a>', '<a>b', 'b<', '[', '\n\n')


@given(st.lists(st.text('<a>b[\n\U000f0000\U000f0001', max_size=12), min_size=1))
def test_hidden_texts_hold_no_control_token_and_come_back(contents):
  guard = Guard(CONTROLS)
  messages = [{'role': 'user', 'content': c} for c in contents]
  hidden, show = guard.hide(messages, 'a template with \U000f0002')
  for old, new in zip(messages, hidden):
    assert not any(c in new['content'] for c in CONTROLS)
    assert new['content'].translate(show) == old['content']
    if not any(c in old['content'] for c in CONTROLS):
      assert new == old


def test_an_assistant_keeps_its_thought_tags():
  guard = Guard(('<think>', '</think>', '<e>'))
  said = '<think>a</think><e>'
  hidden, show = guard.hide([{'role': r, 'content': said} for r in ('assistant', 'user')], '')
  assert [h['content'] for h in hidden] == [
    '<think>a</think>\U000f0000e>',
    '\U000f0000think>a\U000f0000/think>\U000f0000e>',
  ]
  assert show == {0xF0000: '<'}


def test_no_control_tokens():
  messages = [{'role': 'user', 'content': 'a'}]
  assert Guard(()).hide(messages, '') == (messages, {})
