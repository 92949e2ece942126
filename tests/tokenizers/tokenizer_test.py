"""Helpers shared by tokenizers."""

import pytest

from r1jax.core.errors import UserError
from r1jax.tokenizers.tokenizer import MARKERS, known, trim


def test_trim_drops_the_trailing_run_only():
  assert trim([1, 2, 9, 3, 9, 8, 9], (8, 9)) == [1, 2, 9, 3]
  assert trim([9, 9], (9,)) == []
  assert trim([], (9,)) == []


def test_known_ids_lie_in_the_vocabulary_once_the_end_is_gone():
  assert known([1, 2, 9], (9,), 3) == [1, 2]
  with pytest.raises(UserError, match=r'token 9 is not in \[0, 3\)'):
    known([9, 1], (9,), 3)


def test_markers_in_the_order_of_their_byte_ids():
  tags = ('<think>', '</think>', '<answer>', '</answer>')
  assert MARKERS[5:] == tags
  assert MARKERS[:5] == ('<|pad|>', '<|bos|>', '<|eos|>', '<|user|>', '<|assistant|>')
