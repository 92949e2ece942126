"""Bytes as tokens: round trip, total decoding, and no way for text to become a marker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.tokenizers.tokenizer import MARKERS, TAGS, Tokenizer

TOK: Tokenizer = ByteTokenizer()
MIXED = st.lists(st.one_of(st.text(), st.sampled_from(MARKERS))).map(''.join)


@given(MIXED)
def test_decode_inverts_encode_for_any_text(text):
  assert TOK.decode(TOK.encode(text)) == text


@given(MIXED)
def test_text_never_becomes_a_marker(text):
  assert all(i < 256 for i in TOK.encode(text))


@given(st.lists(st.integers(0, TOK.vocab - 1)))
def test_decode_is_total(ids):
  TOK.decode(ids).encode('utf-8')


def test_ids_are_bytes_then_markers():
  assert TOK.encode('aé') == [97, 0xC3, 0xA9]
  assert [TOK.encode_special(m) for m in MARKERS] == [[i] for i in range(256, 265)]
  assert (TOK.vocab, TOK.pad, TOK.bos, TOK.eos, TOK.stops) == (265, 256, 257, 258, (258,))


def test_decode_shows_markers_and_drops_the_end():
  ids = [i for m in TAGS for i in TOK.encode_special(m)]
  assert TOK.decode([*ids, TOK.eos, TOK.pad, TOK.pad]) == '<think></think><answer></answer>'
  assert TOK.decode([TOK.eos, 65, TOK.pad, 66]) == '<|eos|>A<|pad|>B'


def test_broken_utf8_becomes_replacement():
  assert TOK.decode([0xC3]) == '\ufffd'
  assert TOK.decode([0xC3, *TOK.encode_special('<think>'), 0xA9]) == '\ufffd<think>\ufffd'
  assert TOK.encode('\ud800') == [63]


def test_foreign_ids_and_markers_are_errors():
  with pytest.raises(UserError, match=r'265 is not in \[0, 265\)'):
    TOK.decode([265])
  with pytest.raises(UserError, match="unknown marker '<b>'"):
    TOK.encode_special('<b>')
