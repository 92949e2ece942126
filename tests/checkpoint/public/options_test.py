"""A config.json that cannot be used says why in one line."""

import pytest

from r1jax.checkpoint.public.options import HARMLESS, Options, choose, load
from r1jax.core.errors import UserError


def options(**data):
  return Options(data, 'config.json')


def refusal(call, *args, **kwargs):
  """The one line that the call raises."""
  with pytest.raises(UserError) as caught:
    call(*args, **kwargs)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_a_key_is_taken_with_its_type():
  given = options(a=3, b=2, c=0.5, d=True, e=[1], f='x', g=None)
  assert given.take('a') == 3
  assert (given.take('b', float), type(given.take('b', float))) == (2.0, float)
  assert given.take('c', float) == 0.5
  assert given.take('d', bool) is True
  assert given.take('e', list) == [1]
  assert given.take('f', str) == 'x'
  given.take('g', int, None)
  given.finish()


@pytest.mark.parametrize('data', [{}, {'a': None}], ids=['absent', 'null'])
def test_absent_and_null_give_the_default_or_are_missing(data):
  assert options(**data).take('a', int, 5) == 5
  assert options(**data).take('a', int, None) is None
  assert refusal(options(**data).take, 'a') == (
    'config.json: a is missing; it is needed to build the model'
  )


@pytest.mark.parametrize(
  'value, kind, shown',
  [
    ('8', int, "'8', expected a value of type int; fetch it again"),
    (8.0, int, '8.0, expected a value of type int; fetch it again'),
    (True, int, 'True, expected a value of type int; fetch it again'),
    (True, float, 'True, expected a value of type float; fetch it again'),
    (1, bool, '1, expected a value of type bool; fetch it again'),
    ({}, list, '{}, expected a value of type list; fetch it again'),
  ],
)
def test_a_wrong_type_is_an_error(value, kind, shown):
  assert refusal(options(a=value).take, 'a', kind) == f'config.json: a is {shown}'


def test_an_integer_is_positive_unless_less_is_said():
  assert options(a=0).take('a', least=0) == 0
  assert options(a=-0.5).take('a', float) == -0.5
  assert refusal(options(a=0).take, 'a') == (
    'config.json: a is 0, expected at least 1; fetch it again'
  )
  assert refusal(options(a=-1).take, 'a', int, None, least=0) == (
    'config.json: a is -1, expected at least 0; fetch it again'
  )


def test_an_option_with_few_values_has_one_of_them():
  for data in ({}, {'a': None}, {'a': 'x'}, {'a': 'y'}):
    given = options(**data)
    given.must('a', 'x', 'y')
    given.finish()
  assert refusal(options(a='z').must, 'a', 'x', 'y') == (
    "config.json: a is 'z'; r1jax supports 'x' or 'y'"
  )


def test_what_nobody_asked_for_is_unknown_unless_it_is_null_or_harmless():
  given = options(a=1, b=2, soft_cap=30.0, alibi=True, c=None, torch_dtype='float32')
  given.take('a')
  given.must('b', 2)
  assert refusal(given.finish) == (
    "config.json: unknown option 'alibi', 'soft_cap'; r1jax does not know whether that changes "
    'the model; take it out of the file if it does not'
  )
  options(**dict.fromkeys(HARMLESS, 1)).finish()


def test_the_architecture_is_the_first_that_is_named():
  assert choose(options(architectures=['A', 'B']), ['A', 'C']) == 'A'
  assert refusal(choose, options(architectures=['AForCausal']), ['AForCausalLM', 'B']) == (
    "config.json: no architecture 'AForCausal'; did you mean 'AForCausalLM'? known: AForCausalLM, B"
  )
  for data in ({}, {'architectures': []}, {'architectures': None}):
    assert refusal(choose, options(**data), ['A', 'B']) == (
      "config.json: no architecture 'none given'; known: A, B"
    )
  assert refusal(choose, options(architectures='A'), ['A']) == (
    "config.json: architectures is 'A', expected a value of type list; fetch it again"
  )


def test_a_folder_has_its_config(tmp_path):
  file = tmp_path / 'config.json'
  assert refusal(load, tmp_path) == (
    f'{file} does not exist; a public checkpoint has one beside its weights'
  )
  file.write_text('{"a": 1, ')
  said = refusal(load, tmp_path)
  assert said.startswith(f'{file} cannot be read as JSON (') and said.endswith('; fetch it again')
  file.write_bytes(b'\xff\xfe')
  assert refusal(load, tmp_path).startswith(f'{file} cannot be read as JSON (')
  file.write_text('[1, 2]')
  assert refusal(load, tmp_path) == f'{file} holds no JSON object; fetch it again'
  file.write_text('{"a": 1}')
  assert load(tmp_path).take('a') == 1
  assert refusal(load(tmp_path).take, 'b').startswith(f'{file}: b is missing')
