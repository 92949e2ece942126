"""Helpers shared by tokenizers."""

from r1jax.tokenizers.tokenizer import MARKERS, trim


def test_trim_drops_the_trailing_run_only():
  assert trim([1, 2, 9, 3, 9, 8, 9], (8, 9)) == [1, 2, 9, 3]
  assert trim([9, 9], (9,)) == []
  assert trim([], (9,)) == []


def test_markers_in_the_order_of_their_byte_ids():
  tags = ('<think>', '</think>', '<answer>', '</answer>')
  assert MARKERS[5:] == tags
  assert MARKERS[:5] == ('<|pad|>', '<|bos|>', '<|eos|>', '<|user|>', '<|assistant|>')
