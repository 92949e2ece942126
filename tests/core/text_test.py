"""Tagged completions: which shapes are well formed, and which answers count."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core import text
from r1jax.core.text import Spans, spans

PIECES = (*text.TAGS, '<|eos|>', ' ', '\n', '5', 'x', '<', '/think>')
TAGGED = st.lists(st.sampled_from(PIECES), max_size=14).map(''.join)
SHAPE = re.compile(r'<think>(.*)</think>\s*<answer>(.*)</answer>\s*(?:<\|eos\|>\s*)*', re.DOTALL)
UNTAGGED = st.text().filter(lambda s: not any(tag in s for tag in text.TAGS))


@pytest.mark.parametrize(
  'completion, expected',
  [
    ('<think>a</think><answer>5</answer>', Spans('a', '5', True)),
    ('<think></think><answer></answer>', Spans('', '', True)),
    ('<think>a</think>\n <answer> 5\n</answer>', Spans('a', ' 5\n', True)),
    ('<think>a</think><answer>5</answer><|eos|>', Spans('a', '5', True)),
    ('<think>a</think><answer>5</answer>\n<|eos|>\n', Spans('a', '5', True)),
    # The answer stands, the form does not.
    ('hm <think>a</think><answer>5</answer>', Spans('a', '5', False)),
    ('<think>a</think> so <answer>5</answer>', Spans('a', '5', False)),
    ('<think>a</think><answer>5</answer> done', Spans('a', '5', False)),
    ('<think>a<think>b</think><answer>5</answer>', Spans('a<think>b', '5', False)),
    ('<think>a</think></think><answer>5</answer>', Spans('a', '5', False)),
    ('<think>is <answer>3</answer>?</think><answer>5</answer>',
     Spans('is <answer>3</answer>?', '5', False)),
    # No answer, or more than one.
    ('', Spans(None, None, False)),
    ('5', Spans(None, None, False)),
    ('<answer>5</answer>', Spans(None, None, False)),
    ('a</think><answer>5</answer>', Spans(None, None, False)),
    ('<think>a<answer>5</answer>', Spans(None, None, False)),
    ('<answer>5</answer><think>a</think>', Spans('a', None, False)),
    ('<think>a</think>', Spans('a', None, False)),
    ('<think>a</think><answer>5', Spans('a', None, False)),
    ('<think>a</think>5</answer>', Spans('a', None, False)),
    ('<think>a</think></answer>5<answer>', Spans('a', None, False)),
    ('<think>a</think><answer>5</answer><answer>6</answer>', Spans('a', None, False)),
    ('<think>a</think><answer><answer>5</answer></answer>', Spans('a', None, False)),
    ('<think>a</think><answer>5</answer></answer>', Spans('a', None, False)),
    ('<THINK>a</THINK><answer>5</answer>', Spans(None, None, False)),
  ],
)  # fmt: skip
def test_spans(completion, expected):
  assert spans(completion) == expected


@given(st.one_of(st.text(), TAGGED))
def test_spans_takes_any_text_and_well_formed_is_the_exact_shape(completion):
  out = spans(completion)
  exact = SHAPE.fullmatch(completion)
  once = all(completion.count(tag) == 1 for tag in text.TAGS)
  assert out.well_formed == bool(exact and once)
  if out.well_formed:
    assert out[:2] == exact.groups()


@given(UNTAGGED, UNTAGGED)
def test_render_then_parse_is_identity(think, answer):
  rendered = text.render(think, answer)
  assert spans(rendered) == spans(rendered + '<|eos|>') == Spans(think, answer, True)


def test_strip_end_removes_every_trailing_end_and_nothing_else():
  assert text.strip_end('a<|eos|>') == 'a'
  assert text.strip_end('a <|eos|>\n<|end|> <|eos|>', ('<|eos|>', '<|end|>')) == 'a '
  assert text.strip_end('a<|eos|>b \n') == 'a<|eos|>b \n'
  assert text.strip_end('<|eos|>') == ''
  assert text.strip_end('a', ('',)) == 'a'


def test_a_megabyte_of_tags_is_read_at_once():
  assert spans('<think>' * 200_000).think is None
  assert text.strip_end('a' + '<|eos|>' * 2_000) == 'a'


@pytest.mark.parametrize(
  'thought, count',
  [
    ('3+4=7', 0),
    ('Wait, 3+4 is 7. WAIT!', 2),
    ('waiting, awaits, rewait', 0),
    ('Let me check. Let me double-check: Hmm, hmmm.', 4),
    ('verify verified verifies verifying verification', 4),
    ('recheck re-check rechecked double check double-checking', 5),
    ('Actually, no. factually', 1),
    ("let's check; let’s check", 2),
  ],
)
def test_self_checks_counts_whole_words_in_any_case(thought, count):
  assert text.self_checks(thought) == count


def test_imports_no_jax():
  code = 'import sys, r1jax.core.text; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
