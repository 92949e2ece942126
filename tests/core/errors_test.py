"""The wording of unknown names."""

from r1jax.core import errors


def test_nearest_is_a_close_spelling_or_none():
  assert errors.nearest('hed', ['depth', 'head']) == 'head'
  assert errors.nearest('zzz', ['depth', 'head']) is None


def test_no_such_names_the_given_the_nearest_and_all_known():
  text = errors.no_such('field', 'hed', ['depth', 'head'])
  assert text == "no field 'hed'; did you mean 'head'? known: depth, head"
  assert errors.no_such('file', 'zzz', []) == "no file 'zzz'; known: none"
