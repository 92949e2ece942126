"""What is given out is the decoded whole up to the first stop string, however tokens are fed."""

import itertools

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies as st

from r1jax.engine.stopping import HELD, Watch, first, overhang
from r1jax.tokenizers.byte import ByteTokenizer

TOK = ByteTokenizer()
PIECES = ('a', 'ab', 'aab', 'é', '€', '😀', '�', ' ', 'b', 'STOP')


def said(watch, feeds):
  """All text of the feeds and the flush, and the last answer."""
  out = [*map(watch.feed, feeds), watch.flush()]
  return ''.join(s.text for s in out), out[-1]


def up_to(text, stops):
  """By definition: characters come singly; the stop that is complete first, then the longest."""
  for end in range(1, len(text) + 1):
    for start in range(end):
      if text[start:end] in stops:
        return start, text[start:end]
  return None


def split(ids, cuts):
  cuts = [0, *sorted(c % (len(ids) + 1) for c in cuts), len(ids)]
  return [ids[a:b] for a, b in itertools.pairwise(cuts)]


@hypothesis.settings(max_examples=300)
@hypothesis.given(
  st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=12),
  st.lists(st.text('abé€😀 ', min_size=1, max_size=5), max_size=3),
  st.lists(st.integers(0, 60), max_size=8),
  st.booleans(),
)
def test_any_split_gives_the_decoded_whole_up_to_the_first_stop(pieces, stops, cuts, include):
  """Bytes as tokens, some of them not UTF-8, in any feeds."""
  ids = [b for p in pieces for b in (p if isinstance(p, bytes) else p.encode())]
  whole = TOK.decode(ids)
  found = up_to(whole, stops)
  text, last = said(Watch(stops, TOK.decode, include), split(ids, cuts))
  if found is None:
    assert (text, last.stop, last.tokens) == (whole, None, len(ids))
  else:
    start, stop = found
    assert text == whole[: start + len(stop) * include]
    assert last.ended and last.stop == stop
    assert stop in TOK.decode(ids[: last.tokens]) and last.tokens <= len(ids)


@hypothesis.given(st.text('ab', max_size=12), st.lists(st.text('ab', min_size=1, max_size=4)))
def test_the_first_stop_and_the_overhang_are_as_defined(text, stops):
  assert first(text, stops) == up_to(text, stops)
  ends = {text[-n:] for n in range(1, len(text) + 1)}
  begins = {stop[:n] for stop in stops for n in range(1, len(stop))}
  assert overhang(text, stops) == max(map(len, ends & begins), default=0)


@hypothesis.given(st.lists(st.sampled_from([0, 128, 255, 97, 0xF0, 0x9F, 0xE2]), max_size=90))
def test_bytes_that_are_no_text_come_out_as_decoding_has_them(ids):
  """Runs far beyond what is held; single tokens."""
  assert said(Watch((), TOK.decode), [[i] for i in ids])[0] == TOK.decode(ids)


@pytest.mark.parametrize('garbage', range(2 * HELD))
def test_a_character_behind_bytes_that_are_no_text_is_whole(garbage):
  """Wherever in it the patience with the bytes before it ends."""
  ids = [255] * garbage + list('😀é'.encode())
  assert said(Watch((), TOK.decode), [[i] for i in ids])[0] == TOK.decode(ids)


def vocabulary(pieces):
  """A decoder over whole pieces as tokens."""
  return lambda ids: ''.join(pieces[i] for i in ids)


@pytest.mark.parametrize(
  'pieces, given, tokens',
  [
    (['so', ' S', 'TO', 'P on'], ['so', ' ', '', ''], 4),  # over three tokens
    (['so STOP on', ' and'], ['so ', ''], 1),  # inside one
    (['STO', 'ST', 'OP'], ['', 'STO', ''], 3),  # a beginning that another one follows
    (['ENDE', 'x STOP'], ['', ''], 1),  # the other stop
  ],
)
def test_text_is_held_only_while_it_may_be_a_stop(pieces, given, tokens):
  watch = Watch(('STOP', 'END'), vocabulary(pieces))
  out = [watch.feed([i]) for i in range(len(pieces))]
  assert [s.text for s in out] == given
  assert out[-1].ended and out[-1].tokens == tokens
  assert watch.flush().text == ''


def test_what_is_held_comes_with_the_flush():
  watch = Watch(('STOP',), TOK.decode)
  assert watch.feed(b'on ST').text == 'on '
  assert watch.flush() == ('ST', None, 5)
  watch = Watch((), TOK.decode)
  assert watch.feed('x😀'.encode()[:-1]).text == 'x'
  assert watch.flush().text == '�'


def test_a_stop_in_the_text_of_an_unfinished_token_is_found_at_the_flush():
  watch = Watch(('STOP',), vocabulary(['a STOP�']))
  assert watch.feed([0]) == ('', None, 1)
  assert watch.flush() == ('a ', 'STOP', 1)


def blank_stripping():
  """Llama's decoder: ▁ for a blank, the first one dropped, bytes where the vocabulary ends."""
  pieces = ['▁the', '▁', 'cat', '▁sat', '.', *(f'<0x{b:02X}>' for b in '€😀'.encode())]
  tok = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token='.')
  )
  d = tokenizers.decoders
  tok.decoder = d.Sequence([d.Replace('▁', ' '), d.ByteFallback(), d.Fuse(), d.Strip(' ', 1, 0)])
  return tok.decode


@hypothesis.given(
  st.lists(st.sampled_from([(0,), (1,), (2,), (3,), (4,), (5, 6, 7), (8, 9, 10, 11)]), max_size=20)
)
def test_blanks_that_a_decoder_strips_at_the_start_are_kept_inside(words):
  decode, ids = blank_stripping(), [i for w in words for i in w]
  watch = Watch(('cat sat',), decode)
  text, last = said(watch, [[i] for i in ids])
  whole = decode(ids)
  assert text == whole.partition('cat sat')[0] and last.ended == ('cat sat' in whole)


@pytest.mark.parametrize('of', ['word ', '€', b'\xff', b'\x80\xf0'])
def test_the_tokens_decoded_grow_with_the_length_alone(of):
  ids = list(of if isinstance(of, bytes) else of.encode()) * 400
  decoded = 0

  def decode(some):
    nonlocal decoded
    decoded += len(some)
    return TOK.decode(some)

  assert said(Watch(('never',), decode), [[i] for i in ids])[0] == TOK.decode(ids)
  assert decoded < 2 * HELD * len(ids)


@pytest.mark.parametrize('stops', ['STOP', ('', 'a')])
def test_stops_that_are_no_sequence_or_empty_are_refused(stops):
  with pytest.raises(ValueError, match='stop strings'):
    Watch(stops, TOK.decode)
