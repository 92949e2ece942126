"""Equal for equal meanings of ids, different for any other."""

import types

import pytest

from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.tokenizers.fingerprint import fingerprint


def changed(**fields):
  """The byte tokenizer with other attributes."""
  own = ByteTokenizer()
  names = ('vocab', 'pad', 'eos', 'stops', 'encode_special', 'decode')
  return types.SimpleNamespace(**{name: getattr(own, name) for name in names} | fields)


def test_it_is_a_function_of_what_ids_mean():
  assert fingerprint(ByteTokenizer()) == fingerprint(changed()) != ''


@pytest.mark.parametrize(
  'fields',
  [
    {'vocab': 264},
    {'pad': 0},
    {'stops': (258, 0)},
    {'decode': lambda ids: ByteTokenizer().decode(ids).replace('a', 'b')},
    {'encode_special': lambda marker: [7]},
  ],
)
def test_any_other_meaning_is_another_tokenizer(fields):
  assert fingerprint(changed(**fields)) != fingerprint(ByteTokenizer())
