"""Strict configs: round trips, one clear error for whatever does not fit, and overrides by text."""

import contextlib
import dataclasses
from typing import Literal

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core import config
from r1jax.core.config import ConfigError
from r1jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Full:
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Window:
  window: int
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Hybrid:
  window: int
  every: int = 6
  scale: str = 'auto'


@dataclasses.dataclass(frozen=True)
class Dense:
  width: int = 64


@dataclasses.dataclass(frozen=True)
class MoE:
  experts: int
  active: int = 2
  width: int = 32

  def __post_init__(self):
    if self.active > self.experts:
      raise ValueError(f'active={self.active} is more than experts={self.experts}')


@dataclasses.dataclass(frozen=True)
class Layer:
  pattern: Full | Window | Hybrid = Full()
  ffw: Dense | MoE = Dense()


@dataclasses.dataclass(frozen=True)
class Rope:
  base: float
  factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Model:
  layers: tuple[Layer, ...]
  embed: int = 32
  rope: Rope = Rope(1e4)
  mtp: Layer | None = None
  tied: bool = False


@dataclasses.dataclass(frozen=True)
class Root:
  model: Model
  name: str = 'tiny'
  lr: float = 1e-3
  seed: int | None = None
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  betas: tuple[float, float] = (0.9, 0.95)
  mesh: tuple[tuple[str, int], ...] = (('data', 1),)
  size: int | float | str = 1
  tags: tuple[str, ...] = dataclasses.field(default=())
  half: int = dataclasses.field(init=False, default=2)


floats = st.floats(allow_nan=False)
ints = st.integers(-(2**40), 2**40)
texts = st.text(max_size=5)
patterns = st.one_of(
  st.builds(Full, floats), st.builds(Window, ints, floats), st.builds(Hybrid, ints, ints, texts)
)
ffws = st.one_of(st.builds(Dense, ints), st.builds(MoE, st.integers(4, 9), st.integers(1, 4), ints))
layers = st.builds(Layer, patterns, ffws)
ropes = st.builds(Rope, floats, st.lists(floats, max_size=3).map(tuple))
models = st.builds(
  Model,
  st.lists(layers, max_size=4).map(tuple),
  ints,
  ropes,
  st.one_of(st.none(), layers),
  st.booleans(),
)
roots = st.builds(
  Root,
  models,
  name=texts,
  lr=floats,
  seed=st.one_of(st.none(), ints),
  dtype=st.sampled_from(['float32', 'bfloat16']),
  betas=st.tuples(floats, floats),
  mesh=st.lists(st.tuples(texts, ints), max_size=3).map(tuple),
  size=st.one_of(ints, floats, texts),
  tags=st.lists(texts, max_size=3).map(tuple),
)

ROOT = Root(Model((Layer(), Layer(Window(8), MoE(4)), Layer(ffw=MoE(8)))))


def plain():
  return config.to_dict(ROOT).to_dict()


def fails(call, *words):
  """The call raises a ConfigError of one line that holds all words."""
  with pytest.raises(ConfigError) as caught:
    call()
  message = str(caught.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message


@given(roots)
def test_dict_and_json_round_trips_are_identities(cfg):
  assert config.from_dict(Root, config.to_dict(cfg)) == cfg
  assert config.from_json(Root, config.to_json(cfg)) == cfg
  assert config.override_all(cfg, []) == cfg


def test_dict_form():
  data = config.to_dict(ROOT)
  assert isinstance(data, ml_collections.ConfigDict)
  assert 'type' not in data.model and 'type' not in data.model.rope
  assert data.model.mtp is None
  layer = data.model.layers[1]
  assert layer.to_dict() == {
    'pattern': {'type': 'Window', 'window': 8, 'scale': 1.0},
    'ffw': {'type': 'MoE', 'experts': 4, 'active': 2, 'width': 32},
  }
  with_mtp = dataclasses.replace(ROOT, model=Model((), mtp=Layer()))
  assert config.to_dict(with_mtp).model.mtp.type == 'Layer'


def test_config_dict_of_a_file_may_be_edited_and_may_hold_typed_parts():
  data = config.to_dict(ROOT)
  data.model.layers[0].ffw.width = 7
  data.lr = 1
  data.model.mtp = Layer(Window(3))
  cfg = config.from_dict(Root, data)
  assert cfg.model.layers[0].ffw == Dense(7)
  assert cfg.lr == 1.0 and type(cfg.lr) is float
  assert cfg.model.mtp == Layer(Window(3))


def test_absent_fields_take_defaults():
  assert config.from_dict(Model, {'layers': [{}]}) == Model((Layer(),))
  assert config.from_dict(Model, {'layers': [], 'mtp': {}}).mtp == Layer()


def test_errors_are_user_errors_and_value_errors():
  assert issubclass(ConfigError, UserError) and issubclass(ConfigError, ValueError)


def test_unknown_name_gives_path_name_nearest_and_known():
  data = plain()
  data['model']['layers'][1]['ffw']['widht'] = 3
  fails(
    lambda: config.from_dict(Root, data),
    "config.model.layers[1].ffw: MoE has no field 'widht'",
    "did you mean 'width'?",
    'known: experts, active, width',
  )
  fails(lambda: config.from_dict(Dense, {'type': 'Dense'}), "Dense has no field 'type'")
  fails(lambda: config.from_dict(Root, {**plain(), 'half': 3}), "no field 'half'")


def test_missing_required_field_is_named():
  fails(lambda: config.from_dict(Root, {}), 'config: Root needs a value for model: Model')
  layer = {'pattern': {'type': 'Hybrid'}}
  fails(
    lambda: config.from_dict(Model, {'layers': [layer]}),
    'config.layers[0].pattern: Hybrid needs a value for window: int',
  )


@pytest.mark.parametrize(
  'name, value, words',
  [
    ('seed', 1.5, ('config.seed: got 1.5 (float)', 'expected int | none')),
    ('seed', True, ('got True (bool)', 'expected int | none')),
    ('lr', '1e-3', ("got '1e-3' (str)", 'expected float')),
    ('lr', True, ('got True (bool)', 'expected float')),
    ('lr', None, ('got None (none)', 'expected float')),
    ('name', 3, ('got 3 (int)', 'expected str')),
    ('dtype', 'float16', ("got 'float16' (str)", "expected 'float32' | 'bfloat16'")),
    ('betas', [0.9], ('got [0.9] (list)', 'expected tuple[float, float]')),
    ('betas', [0.9, 'x'], ("config.betas[1]: got 'x' (str)", 'expected float')),
    ('betas', 0.9, ('got 0.9 (float)', 'expected tuple[float, float]')),
    ('tags', 'ab', ("got 'ab' (str)", 'expected tuple[str, ...]')),
    ('model', 3, ('got 3 (int)', 'expected Model')),
    ('model', [], ('got [] (list)', 'expected Model')),
    ('name', {'a': list(range(99))}, ("config.name: got {'a': [0,", '...', 'expected str')),
  ],
)
def test_wrong_type_gives_path_given_and_expected(name, value, words):
  fails(lambda: config.from_dict(Root, {**plain(), name: value}), *words)


def test_type_of_a_union_must_be_given_and_known():
  fails(
    lambda: config.from_dict(Layer, {'ffw': {}}), "config.ffw: needs a 'type', one of Dense, MoE"
  )
  fails(
    lambda: config.from_dict(Layer, {'ffw': {'type': 'Moe'}}),
    "config.ffw.type: no type 'Moe'; did you mean 'MoE'? known: Dense, MoE",
  )
  fails(lambda: config.from_dict(Layer, {'ffw': {'type': ['MoE']}}), 'no type')


def test_post_init_errors_carry_the_path():
  data = plain()
  data['model']['layers'][2]['ffw']['active'] = 9
  fails(
    lambda: config.from_dict(Root, data),
    'config.model.layers[2].ffw: active=9 is more than experts=8',
  )


def test_json_that_is_none_is_refused():
  fails(lambda: config.from_json(Root, '{'), 'config: not JSON')
  fails(lambda: config.from_json(Root, '[]'), 'config: got [] (list), expected Root')


def test_a_typed_value_of_another_class_is_refused():
  wrong = dataclasses.replace(ROOT, model=Model((Layer(ffw=Full()),)))
  fails(lambda: config.to_dict(wrong), 'config.model.layers[0].ffw: got a Full', 'Dense | MoE')


@dataclasses.dataclass(frozen=True)
class Tagged:
  type: str = 'x'


@dataclasses.dataclass(frozen=True)
class Unsupported:
  clash: Tagged | None = None
  table: dict = dataclasses.field(default_factory=dict)


def test_annotations_a_config_cannot_hold_are_bugs():
  with pytest.raises(TypeError, match='configs cannot hold dict'):
    config.from_dict(Unsupported, {'table': {}})
  with pytest.raises(TypeError, match="no field of it can be called 'type'"):
    config.from_dict(Unsupported, {'clash': {}})


@pytest.mark.parametrize(
  'path, text, expected',
  [
    ('lr', '1e-3', 1e-3),
    ('lr', '3', 3.0),
    ('seed', '-7', -7),
    ('seed', 'none', None),
    ('seed', 'None', None),
    ('name', 'a,b = c', 'a,b = c'),
    ('name', '3', '3'),
    ('name', '', ''),
    ('dtype', 'bfloat16', 'bfloat16'),
    ('betas', '(0.8, 0.9)', (0.8, 0.9)),
    ('betas', '0.8,0.9', (0.8, 0.9)),
    ('betas[-1]', '0.5', (0.9, 0.5)),
    ('tags', '(\'a\', "b c")', ('a', 'b c')),
    ('tags', 'a', ('a',)),
    ('tags', '', ()),
    ('tags', '()', ()),
    ('mesh', '(data,2),(fsdp,4)', (('data', 2), ('fsdp', 4))),
    ('mesh', '[(data, 2), (fsdp, 4),]', (('data', 2), ('fsdp', 4))),
    ('mesh[0][1]', '8', (('data', 8),)),
    ('size', '3', 3),
    ('size', '3.5', 3.5),
    ('size', 'big', 'big'),
  ],
)
def test_override_parses_text_by_annotation(path, text, expected):
  value = getattr(config.override(ROOT, path, text), path.partition('[')[0])
  assert value == expected and type(value) is type(expected)


def test_override_of_bools():
  assert config.override(ROOT, 'model.tied', 'true').model.tied is True
  assert config.override(ROOT, 'model.tied', 'False').model.tied is False
  fails(lambda: config.override(ROOT, 'model.tied', '1'), "config.model.tied: got '1'", 'bool')


def test_override_reaches_elements_by_index_and_all():
  assert config.override(ROOT, 'model.layers[-1].ffw.active', '4').model.layers[2].ffw.active == 4
  cfg = config.override(ROOT, 'model.layers[*].ffw.width', '5')
  assert [l.ffw.width for l in cfg.model.layers] == [5, 5, 5]
  assert ROOT.model.layers[0].ffw.width == 64
  assert config.override(ROOT, 'model.rope.factors', '1,2').model.rope.factors == (1.0, 2.0)


def test_type_override_keeps_what_fits_and_defaults_the_rest():
  cfg = config.override_all(
    ROOT, [('model.layers[0].pattern.type', 'Window'), ('model.layers[0].pattern.window', '64')]
  )
  assert cfg.model.layers[0].pattern == Window(64)
  # window carries over; scale is a float there and a str here, so it takes its default.
  cfg = config.override(ROOT, 'model.layers[1].pattern.type', 'Hybrid')
  assert cfg.model.layers[1].pattern == Hybrid(8, 6, 'auto')
  same = config.override(ROOT, 'model.layers[1].pattern.type', 'Window')
  assert same == ROOT


def test_type_override_of_an_optional_field_and_back():
  cfg = config.override_all(
    ROOT,
    [('model.mtp.type', 'Layer'), ('model.mtp.ffw.type', 'MoE'), ('model.mtp.ffw.experts', '3')],
  )
  assert cfg.model.mtp == Layer(ffw=MoE(3, width=64))
  assert config.override(cfg, 'model.mtp', 'none') == ROOT
  fails(
    lambda: config.override(ROOT, 'model.mtp.ffw.width', '3'),
    'config.model.mtp: is none; first set config.model.mtp.type to one of Layer',
  )


def test_required_field_left_open_by_a_switch_is_an_error_only_at_the_end():
  fails(
    lambda: config.override(ROOT, 'model.layers[0].pattern.type', 'Window'),
    'config.model.layers[0].pattern: Window needs a value for window: int',
  )


@dataclasses.dataclass(frozen=True)
class Inner:
  a: int


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner
  either: Full | Window
  more: tuple[Inner, ...]
  n: int = 1


@dataclasses.dataclass(frozen=True)
class Holder:
  part: Full | Outer = Full()


def test_a_switch_may_open_nested_required_parts():
  pairs = [('part.type', 'Outer'), ('part.inner.a', '3'), ('part.either.type', 'Full')]
  fails(lambda: config.override_all(Holder(), pairs), 'Outer needs a value for more: tuple[Inner,')
  fails(
    lambda: config.override_all(Holder(), [*pairs, ('part.more[0].a', '1')]), 'config.part.more: '
  )
  fails(
    lambda: config.override_all(Holder(), [pairs[0], ('part.either.scale', '3')]),
    'config.part.either: is none; first set config.part.either.type to one of Full, Window',
  )


@pytest.mark.parametrize(
  'path, text, words',
  [
    ('model.embedd', '3', ("config.model: Model has no field 'embedd'", "mean 'embed'?", 'known:')),
    ('lr', 'fast', ("config.lr: got 'fast', expected float",)),
    ('seed', '1.5', ("config.seed: got '1.5', expected int | none",)),
    ('betas', '1,2,3', ("got '1,2,3', expected tuple[float, float]",)),
    ('model', '3', ("got '3' for a whole Model; name one field: config.model.layers",)),
    ('model.layers', '3', ('whole tuple[Layer, ...]', 'name one field: config.model.layers[0].')),
    ('model.layers[0]', '3', ('name one field: config.model.layers[0].pattern',)),
    ('model.layers[0].ffw', 'MoE', ('whole Dense | MoE', 'config.model.layers[0].ffw.type')),
    ('model.layers[7].ffw.width', '3', ('has 3 elements; [7] names none of them',)),
    ('model.layers[-4].ffw.width', '3', ('has 3 elements; [-4] names none of them',)),
    ('tags[*]', '3', ('config.tags: has 0 elements; [*] names none of them',)),
    ('model[0]', '3', ('config.model: is not a tuple', '[0] names nothing')),
    ('lr.x', '3', ("config.lr: is float and has no field 'x'",)),
    ('model.layers.ffw', '3', ('config.model.layers: is tuple[Layer, ...]', "'ffw'", '[*]')),
    ('model.layers[0].ffw.experts', '3', ("Dense has no field 'experts'", '.ffw.type=MoE')),
    ('model.layers[*].ffw.active', '1', ('config.model.layers[0].ffw: Dense has no',)),
    ('model.layers[2].ffw.active', '9', ('layers[2].ffw: active=9 is more than experts=8',)),
    ('model.layers[0].ffw.type', 'Moe', ("no type 'Moe'; did you mean 'MoE'?",)),
    ('model.type', 'Model', ("Model has no field 'type'",)),
    ('model..embed', '3', ("'model..embed' is not a path",)),
    ('model.layers[x]', '3', ('is not a path',)),
    ('', '3', ('is not a path',)),
  ],
)
def test_override_errors(path, text, words):
  fails(lambda: config.override(ROOT, path, text), *words)


PIECES = ('model', 'layers', 'ffw', 'type', 'mtp', 'mesh', 'tags', '.', '.', '[0]', '[*]', '[-1]')


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(''.join), st.text('MoE01,() ', max_size=6))
def test_any_path_and_text_is_read_or_refused(path, text):
  with contextlib.suppress(ConfigError):
    config.override(ROOT, path, text)
