"""What an annotation of a config field admits: its dataclasses, its elements, its scalars.

core/config.py walks dataclasses and tuples; here are the questions it asks of one annotation, and
the two readings of a scalar: `fit` (a Python value) and `parse` (the text of a command line).
Both raise ValueError with what was given and what is expected; the caller adds the path.
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

_SCALARS = (bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of a config: its annotation and, unless it is required, its default."""

  kind: Any
  default: Callable[[], Any] | None

  @property
  def required(self) -> bool:
    """Whether the field has no default."""
    return self.default is None


def fields(cls: type) -> dict[str, Field]:
  """The fields that the dataclass's constructor takes, in order."""
  hints = typing.get_type_hints(cls)
  return {f.name: Field(hints[f.name], _default(f)) for f in dataclasses.fields(cls) if f.init}


def _default(field: dataclasses.Field) -> Callable[[], Any] | None:
  if field.default is not dataclasses.MISSING:
    return lambda: field.default
  return None if field.default_factory is dataclasses.MISSING else field.default_factory


def members(kind: Any) -> tuple[Any, ...]:
  """The alternatives of a union; the annotation alone where it is none."""
  if typing.get_origin(kind) in (typing.Union, types.UnionType):
    return typing.get_args(kind)
  return (kind,)


def optional(kind: Any) -> bool:
  """Whether None is admitted."""
  return types.NoneType in members(kind)


def classes(kind: Any) -> tuple[type, ...]:
  """The dataclasses among the alternatives."""
  return tuple(m for m in members(kind) if isinstance(m, type) and dataclasses.is_dataclass(m))


def tagged(kind: Any) -> bool:
  """Whether the dict form of a dataclass carries its type here: it is one of a union."""
  if len(members(kind)) == 1 or not classes(kind):
    return False
  for cls in classes(kind):
    if any(f.name == 'type' for f in dataclasses.fields(cls)):
      raise TypeError(f"{cls.__name__} is in a union, so no field of it can be called 'type'")
  return True


def elements(kind: Any, size: int) -> tuple[Any, ...] | None:
  """The annotations of a tuple of `size` elements; None where no alternative admits one."""
  for member in members(kind):
    args = typing.get_args(member)
    if typing.get_origin(member) is not tuple:
      continue
    if len(args) == 2 and args[1] is Ellipsis:
      return (args[0],) * size
    if len(args) == size:
      return args
  return None


def holds_classes(kind: Any) -> bool:
  """Whether a dataclass stands in the annotation, itself or as an element."""
  inner = (a for m in members(kind) if typing.get_origin(m) is tuple for a in typing.get_args(m))
  return bool(classes(kind)) or any(holds_classes(a) for a in inner)


def show(kind: Any) -> str:
  """The annotation as a user would write it."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    return ' | '.join(show(a) for a in args)
  if origin is Literal:
    return ' | '.join(repr(a) for a in args)
  if origin is tuple:
    return f'tuple[{", ".join("..." if a is Ellipsis else show(a) for a in args)}]'
  return 'none' if kind is types.NoneType else getattr(kind, '__name__', str(kind))


def fit(kind: Any, value: Any) -> Any:
  """The scalar or None if the annotation admits it; an int becomes a float where one is due."""
  for member in members(kind):
    _check_known(member)
    if typing.get_origin(member) is Literal:
      if any(type(value) is type(a) and value == a for a in typing.get_args(member)):
        return value
    elif type(value) is member:
      return value
  if type(value) is int and float in members(kind):
    return float(value)
  raise ValueError(f'got {_given(value)}, expected {show(kind)}')


def parse(kind: Any, text: str) -> Any:
  """The value that the text of a command line stands for."""
  if optional(kind) and text.strip().lower() == 'none':
    return None
  for member in sorted(members(kind), key=_strictness):
    try:
      return _parse_member(member, text)
    except ValueError:
      continue
  raise ValueError(f"got '{text}', expected {show(kind)}")


def _strictness(kind: Any) -> int:
  """The order in which the alternatives are tried: str last, for it takes any text."""
  order = (Literal, bool, int, float, tuple, str)
  origin = typing.get_origin(kind) or kind
  return order.index(origin) if origin in order else len(order)


def _parse_member(kind: Any, text: str) -> Any:
  """Reads the text as one alternative; ValueError where it is none of that kind."""
  if typing.get_origin(kind) is tuple:
    return _parse_tuple(kind, text)
  if typing.get_origin(kind) is Literal:
    options = {str(option): option for option in typing.get_args(kind)}
  elif kind is bool:
    options = {'true': True, 'True': True, 'false': False, 'False': False}
  elif kind in _SCALARS:
    return kind(text)
  else:
    options = {}
  if text not in options:
    raise ValueError(text)
  return options[text]


def _parse_tuple(kind: Any, text: str) -> tuple[Any, ...]:
  inner = text.strip()
  if inner[:1] + inner[-1:] in ('()', '[]') and _closes_last(inner):
    inner = inner[1:-1]
  parts = _commas(inner)
  kinds = elements(kind, len(parts))
  if kinds is None:
    raise ValueError(text)
  return tuple(parse(k, _unquote(part)) for k, part in zip(kinds, parts))


def _closes_last(text: str) -> bool:
  """Whether the bracket that opens the text closes at its end: so in '(1,2)', not in '(1),(2)'."""
  depth = 0
  for i, char in enumerate(text):
    depth += (char in '([') - (char in ')]')
    if depth == 0:
      return i == len(text) - 1
  return False


def _commas(text: str) -> list[str]:
  """The parts between the commas outside of brackets; a trailing comma adds none."""
  parts, depth = [''], 0
  for char in text:
    depth += (char in '([') - (char in ')]')
    if char == ',' and depth == 0:
      parts.append('')
    else:
      parts[-1] += char
  if not parts[-1].strip():
    parts.pop()
  return [part.strip() for part in parts]


def _unquote(text: str) -> str:
  return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"' else text


def _given(value: Any) -> str:
  text = repr(value)
  kind = 'none' if value is None else type(value).__name__
  return f'{text if len(text) <= 60 else text[:57] + "..."} ({kind})'


def _check_known(kind: Any) -> None:
  known = kind in (*_SCALARS, types.NoneType) or typing.get_origin(kind) in (tuple, Literal)
  if not known and not classes(kind):
    raise TypeError(f'configs cannot hold {show(kind)}; use scalars, Literal, tuples, dataclasses')
