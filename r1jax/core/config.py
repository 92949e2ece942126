"""Strict configs: frozen dataclasses are the truth, ml_collections.ConfigDict is their file form.

A dataclass is read by its annotations: int, float (an int is accepted), bool, str, Literal,
X | None, tuple[T, ...], tuple[A, B], nested dataclasses, and unions of dataclasses. In dict form a
member of a union (also of `A | None`) carries `type: 'ClassName'`; a tuple is a list. Whatever does
not fit raises ConfigError with the path, what was given and what is expected: nothing is ignored
and nothing is guessed. from_dict(type(c), to_dict(c)) == c.

Overrides are pairs (path, text), as on the command line: ('model.layers[*].ffw.width', '64'). Paths
are names, [i], [-1] and [*]; core/schema.py parses the text by the annotation. `x.type` replaces
the member of a union: fields of the same name whose values fit carry over, the others take their
defaults. Pairs apply in order and the whole is validated once, after the last one.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections

from r1jax.core import schema
from r1jax.core.errors import UserError, no_such

T = TypeVar('T')
_STEP = re.compile(r'([A-Za-z_]\w*)|\[(-?\d+|\*)\]')
_PATH = re.compile(r'[A-Za-z_]\w*(\[(-?\d+|\*)\])*(\.[A-Za-z_]\w*(\[(-?\d+|\*)\])*)*')


class ConfigError(UserError, ValueError):
  """A config that does not fit its dataclass; one line with path, given and expected."""


def to_dict(cfg: Any) -> ml_collections.ConfigDict:
  """The config as nested ConfigDicts and lists."""
  return _file_form(_plain(type(cfg), cfg, 'config'))


def from_dict(cls: type[T], mapping: Mapping[str, Any] | ml_collections.ConfigDict) -> T:
  """The dataclass that the mapping describes; ConfigError for whatever does not fit."""
  return _build(cls, mapping, 'config')


def to_json(cfg: Any) -> str:
  """The dict form as indented JSON."""
  return json.dumps(_plain(type(cfg), cfg, 'config'), indent=2)


def from_json(cls: type[T], text: str) -> T:
  """The inverse of to_json, as strict as from_dict."""
  try:
    data = json.loads(text)
  except json.JSONDecodeError as error:
    raise ConfigError(f'config: not JSON ({error}); expected what to_json writes') from error
  return _build(cls, data, 'config')


def override(cfg: T, path: str, text: str) -> T:
  """A copy in which the field at `path` holds `text` read by the field's annotation."""
  return override_all(cfg, [(path, text)])


def override_all(cfg: T, pairs: Iterable[tuple[str, str]]) -> T:
  """Applies the overrides in order, then validates the whole."""
  kind = type(cfg)
  data = _plain(kind, cfg, 'config')
  for path, text in pairs:
    data = _edit(kind, data, _steps(path), text, 'config')
  return _build(kind, data, 'config')


def first_difference(a: Any, b: Any, path: str = 'config') -> str:
  """The first field in which two configs differ, with both values."""
  if dataclasses.is_dataclass(a) and type(a) is type(b):
    for f in dataclasses.fields(a):
      if getattr(a, f.name) != getattr(b, f.name):
        return first_difference(getattr(a, f.name), getattr(b, f.name), f'{path}.{f.name}')
  if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
    i = next((i for i in range(len(a)) if a[i] != b[i]), None)
    if i is not None:
      return first_difference(a[i], b[i], f'{path}[{i}]')
  return f'{path}: {a} there, {b} here'


def _plain(kind: Any, value: Any, path: str) -> Any:
  """Dict form of a typed value; a union's member is tagged with its type."""
  if dataclasses.is_dataclass(value):
    cls = type(value)
    if cls not in schema.classes(kind):
      raise ConfigError(f'{path}: got a {cls.__name__}, expected {schema.show(kind)}')
    fields = schema.fields(cls)
    data = {n: _plain(f.kind, getattr(value, n), f'{path}.{n}') for n, f in fields.items()}
    return {'type': cls.__name__, **data} if schema.tagged(kind) else data
  if isinstance(value, (list, tuple)):
    kinds = schema.elements(kind, len(value)) or (None,) * len(value)
    return [_plain(k, v, f'{path}[{i}]') for i, (k, v) in enumerate(zip(kinds, value))]
  return value


def _file_form(data: Any) -> Any:
  if isinstance(data, dict):
    return ml_collections.ConfigDict({key: _file_form(value) for key, value in data.items()})
  return [_file_form(value) for value in data] if isinstance(data, list) else data


def _build(kind: Any, value: Any, path: str) -> Any:
  """The typed value of annotation `kind` that `value` (dict form, or typed already) describes."""
  if isinstance(value, ml_collections.ConfigDict):
    value = dict(value.items())
  if dataclasses.is_dataclass(value) and type(value) in schema.classes(kind):
    value = _plain(kind, value, path)
  if isinstance(value, Mapping) and schema.classes(kind):
    return _build_class(kind, dict(value), path)
  if isinstance(value, (list, tuple)):
    kinds = schema.elements(kind, len(value))
    if kinds is not None:
      return tuple(_build(k, v, f'{path}[{i}]') for i, (k, v) in enumerate(zip(kinds, value)))
  try:
    return schema.fit(kind, value)
  except ValueError as error:
    raise ConfigError(f'{path}: {error}') from None


def _build_class(kind: Any, data: dict[str, Any], path: str) -> Any:
  cls = _member(kind, data, path)
  if schema.tagged(kind):
    data.pop('type', None)
  fields = schema.fields(cls)
  for name in data:
    if name not in fields:
      raise ConfigError(f'{path}: {cls.__name__} has {no_such("field", str(name), fields)}')
  missing = [
    f'{n}: {schema.show(f.kind)}' for n, f in fields.items() if f.required and n not in data
  ]
  if missing:
    raise ConfigError(f'{path}: {cls.__name__} needs a value for {", ".join(missing)}')
  values = {n: _build(fields[n].kind, v, f'{path}.{n}') for n, v in data.items()}
  try:
    return cls(**values)
  except ValueError as error:
    raise ConfigError(f'{path}: {error}') from error


def _member(kind: Any, data: Mapping[str, Any], path: str) -> type:
  """The dataclass that `data` stands for: the only one possible, or the one its type names."""
  members = {c.__name__: c for c in schema.classes(kind)}
  if len(members) == 1 and not (schema.tagged(kind) and 'type' in data):
    return next(iter(members.values()))
  if 'type' not in data:
    raise ConfigError(f"{path}: needs a 'type', one of {', '.join(members)}")
  return _named(members, data['type'], path)


def _named(members: Mapping[str, type], name: Any, path: str) -> type:
  if not isinstance(name, str) or name not in members:
    raise ConfigError(f'{path}.type: {no_such("type", str(name), members)}')
  return members[name]


def _steps(path: str) -> list[str | int]:
  """'a.b[0].c[*]' -> ['a', 'b', 0, 'c', '*']"""
  if not _PATH.fullmatch(path):
    raise ConfigError(
      f"'{path}' is not a path; expected names, [i] and [*], as in model.layers[0].x"
    )
  steps = [name or index for name, index in _STEP.findall(path)]
  return [int(s) if s.lstrip('-').isdigit() else s for s in steps]


def _edit(kind: Any, data: Any, steps: Sequence[str | int], text: str, path: str) -> Any:
  """Dict form `data` with the field at `steps` replaced; unfinished members are allowed."""
  if not steps:
    return _read(kind, text, path)
  step, rest = steps[0], steps[1:]
  if step == '*' or isinstance(step, int):
    return _edit_elements(kind, data, step, rest, text, path)
  if not schema.classes(kind):
    index = '; name elements by [0] or [*]' if schema.holds_classes(kind) else ''
    raise ConfigError(f"{path}: is {schema.show(kind)} and has no field '{step}'{index}")
  if step == 'type' and schema.tagged(kind) and not rest:
    return _switch(kind, data, text, path)
  if data is None:
    names = ', '.join(c.__name__ for c in schema.classes(kind))
    raise ConfigError(f'{path}: is none; first set {path}.type to one of {names}')
  cls = _member(kind, data, path)
  fields = schema.fields(cls)
  if step not in fields:
    others = [c.__name__ for c in schema.classes(kind) if step in schema.fields(c)]
    hint = f'; {others[0]} has it: first set {path}.type={others[0]}' if others else ''
    raise ConfigError(f'{path}: {cls.__name__} has {no_such("field", step, fields)}{hint}')
  inner = fields[step].kind
  # A required field that a switch of type left open starts empty; _build names what stays so.
  held = data[step] if step in data else None if schema.tagged(inner) else {}
  return {**data, step: _edit(inner, held, rest, text, f'{path}.{step}')}


def _edit_elements(
  kind: Any, data: Any, index: str | int, rest: Sequence[str | int], text: str, path: str
) -> list[Any]:
  kinds = schema.elements(kind, len(data)) if isinstance(data, (list, tuple)) else None
  if kinds is None:
    raise ConfigError(f'{path}: is not a tuple with elements; [{index}] names nothing')
  size = len(data)
  if index == '*':
    chosen = range(size)
  else:
    chosen = [index % size] if -size <= index < size else []
  if not chosen:
    raise ConfigError(f'{path}: has {size} elements; [{index}] names none of them')
  return [
    _edit(k, v, rest, text, f'{path}[{i}]') if i in chosen else v
    for i, (k, v) in enumerate(zip(kinds, data))
  ]


def _read(kind: Any, text: str, path: str) -> Any:
  if schema.holds_classes(kind) and not (schema.optional(kind) and text.lower() == 'none'):
    cls = next(iter(schema.classes(kind)), None)
    field = f'{path}.{next(iter(schema.fields(cls)), "")}' if cls else f'{path}[0].…'
    if schema.tagged(kind) and len(schema.classes(kind)) > 1:
      field = f'{path}.type'
    raise ConfigError(
      f"{path}: got '{text}' for a whole {schema.show(kind)}; name one field: {field}"
    )
  try:
    return schema.parse(kind, text)
  except ValueError as error:
    raise ConfigError(f'{path}: {error}') from None


def _switch(kind: Any, data: Any, name: str, path: str) -> dict[str, Any] | None:
  """The union's member `name`: values that fit its fields carry over, the rest are defaults."""
  cls = _named({c.__name__: c for c in schema.classes(kind)}, name, path)
  old = data or {}
  if old.get('type') == name:
    return old
  new = {'type': name}
  for field, spec in schema.fields(cls).items():
    if field in old and _fits(spec.kind, old[field], f'{path}.{field}'):
      new[field] = old[field]
    elif not spec.required:
      new[field] = _plain(spec.kind, spec.default(), f'{path}.{field}')
  return new


def _fits(kind: Any, value: Any, path: str) -> bool:
  try:
    _build(kind, value, path)
  except ConfigError:
    return False
  return True
