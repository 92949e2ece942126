"""What one annotation admits; the walks over whole configs are tested in config_test.py."""

import dataclasses
import typing
from typing import Literal

import pytest

from r1jax.core import schema


@dataclasses.dataclass(frozen=True)
class A:
  x: int
  y: tuple[int, ...] = ()
  z: list = dataclasses.field(default_factory=list, init=False)


@dataclasses.dataclass(frozen=True)
class B:
  pass


def test_fields_hold_annotation_and_default():
  fields = schema.fields(A)
  assert list(fields) == ['x', 'y']
  assert (fields['x'].kind, fields['x'].required) == (int, True)
  assert not fields['y'].required and fields['y'].default() == ()


@pytest.mark.parametrize(
  'kind, classes, tagged, optional, holds',
  [
    (int, (), False, False, False),
    (int | None, (), False, True, False),
    (A, (A,), False, False, True),
    (A | None, (A,), True, True, True),
    (A | B, (A, B), True, False, True),
    (typing.Union[A, B], (A, B), True, False, True),  # noqa: UP007
    (typing.Optional[A], (A,), True, True, True),  # noqa: UP045
    (tuple[A | B, ...], (), False, False, True),
    (tuple[tuple[int, A], ...] | None, (), False, True, True),
  ],
)
def test_questions_about_an_annotation(kind, classes, tagged, optional, holds):
  assert schema.classes(kind) == classes
  assert schema.tagged(kind) == tagged
  assert schema.optional(kind) == optional
  assert schema.holds_classes(kind) == holds


def test_elements_of_tuples():
  assert schema.elements(tuple[int, ...], 2) == (int, int)
  assert schema.elements(tuple[int, str], 2) == (int, str)
  assert schema.elements(tuple[int, str] | None, 3) is None
  assert schema.elements(tuple[int, str] | tuple[int, int, int], 3) == (int, int, int)
  assert schema.elements(int, 1) is None


@pytest.mark.parametrize(
  'kind, shown',
  [
    (int, 'int'),
    (A | None, 'A | none'),
    (Literal['a', 2], "'a' | 2"),
    (tuple[tuple[str, int], ...], 'tuple[tuple[str, int], ...]'),
  ],
)
def test_show(kind, shown):
  assert schema.show(kind) == shown


@pytest.mark.parametrize(
  'kind, text, value',
  [
    (Literal[0, 1], '0', 0),
    (Literal[False], 'False', False),
    (int | tuple[int, ...], '3', 3),
    (int | tuple[int, ...], '3,4', (3, 4)),
    (bool | int | str, 'true', True),
    (str | tuple[int, ...], '1,x', '1,x'),
    (tuple[int, ...], '(1),(2)', None),
    (tuple[tuple[int, ...], ...], '(1),(2,3)', ((1,), (2, 3))),
    (tuple[int, ...], '1,,2', None),
    (tuple[int, int], '1', None),
    (Literal['a'], 'b', None),
    (dict, 'x', None),
  ],
)
def test_parse(kind, text, value):
  if value is None:
    with pytest.raises(ValueError, match='expected'):
      schema.parse(kind, text)
  else:
    parsed = schema.parse(kind, text)
    assert parsed == value and type(parsed) is type(value)
