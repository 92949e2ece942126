"""The law of the house, by syntax tree: import ladder, sizes, banned patterns, docs, tests.

A check takes (path, source) and returns complaints; CHECKS holds each with a snippet that it must
catch and one that it must let pass, so that no check can fail to bite unnoticed.
"""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LADDER = (
  ('core',),
  ('sharding', 'tokenizers', 'records', 'rewards'),
  ('kernels', 'tasks'),
  ('model',),
  ('algos', 'optim', 'data', 'checkpoint', 'compress', 'interp'),
  ('engine',),
  ('rollout', 'server'),
  ('eval', 'curate'),
  ('train',),
  ('bin',),
)
RUNG = {package: rung for rung, packages in enumerate(LADDER) for package in packages}
NEWCOMER = (
  *(f'r1jax/model/{name}.py' for name in
    ('config', 'primitives', 'mla', 'router', 'moe', 'block', 'stack', 'transformer')),
  'r1jax/algos/grpo.py',
  'r1jax/train/step.py',
)  # fmt: skip
NEWCOMER_LINES = 1500
JAX_FREE = ('tokenizers', 'records', 'rewards', 'tasks')
JAX_FREE_FILES = (
  'r1jax/core/text.py',
  *(f'r1jax/engine/{n}.py' for n in ['scheduler', 'pages', 'budget', 'watch', 'stopping', 'ngram']),
)
JAX = ('jax', 'jaxlib', 'flax', 'optax', 'chex', 'orbax')
BANNED_IMPORTS = ('flax.nnx', 'tensorflow', 'torch')
MAY_PRINT = ('r1jax/bin/', 'r1jax/eval/', 'r1jax/train/progress.py')
MUTATORS = ('append', 'extend', 'insert', 'add', 'update', 'setdefault', 'register')
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

Check = Callable[[str, str], list[str]]


# Reading a file.


def package_of(path: str) -> str:
  """'r1jax/core/config.py' -> 'core'; '' for r1jax/__init__.py."""
  parts = path.split('/')
  return parts[1] if len(parts) > 2 else ''


def imported(path: str, source: str) -> Iterator[str]:
  """Dotted names of all imports, wherever they stand; `from a import b` gives 'a.b'."""
  folder = path.split('/')[:-1]
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = folder[: len(folder) - node.level + 1] if node.level else []
      base += node.module.split('.') if node.module else []
      yield from ('.'.join([*base, alias.name]) for alias in node.names)


def under(name: str, *roots: str) -> bool:
  """Whether the dotted name is one of the roots or inside one."""
  return any(name == root or name.startswith(root + '.') for root in roots)


def module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
  """Statements that run on import: those of if, for, with and try too, not those of functions."""
  for node in body:
    yield node
    if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
      for block in ('body', 'orelse', 'finalbody'):
        yield from module_level(getattr(node, block, []))
      for handler in getattr(node, 'handlers', []):
        yield from module_level(handler.body)


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
  """Every call with the text of what is called."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      yield node, ast.unparse(node.func)


# The checks.


def ladder(path: str, source: str) -> list[str]:
  """A package imports itself and lower rungs; never a sibling on its rung, never a higher one."""
  here, bad = package_of(path), []
  if here and here not in RUNG:
    return [f'{here} has no rung in the ladder']
  for name in imported(path, source):
    if not under(name, 'r1jax') or name == 'r1jax':
      continue
    there = name.split('.')[1]
    if there not in RUNG:
      bad.append(f'{name}: no such package in the ladder')
    elif there != here and (not here or RUNG[there] >= RUNG[here]):
      bad.append(f'{here or "r1jax"} may not import {name}')
  return bad


def file_size(path: str, source: str) -> list[str]:
  """500 lines; a kernel's tpu.py or gpu.py 600."""
  kernel = path.startswith('r1jax/kernels/') and path.endswith(('/tpu.py', '/gpu.py'))
  limit, lines = 600 if kernel else 500, len(source.splitlines())
  return [f'{lines} lines, {limit} at most'] if lines > limit else []


def function_size(path: str, source: str) -> list[str]:
  """60 lines, decorators not counted."""
  found = ((n, n.end_lineno - n.lineno + 1) for n in functions(source))
  return [f'{node.name}: {lines} lines, 60 at most' for node, lines in found if lines > 60]


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
  """All functions and methods, nested ones too."""
  return (n for n in ast.walk(ast.parse(source)) if isinstance(n, FUNCTIONS))


def jax_free(path: str, source: str) -> list[str]:
  """tokenizers, records, rewards, tasks, core.text and the scheduler import no jax."""
  if package_of(path) not in JAX_FREE and path not in JAX_FREE_FILES:
    return []
  return [f'imports {name}' for name in imported(path, source) if under(name, *JAX)]


def banned_imports(path: str, source: str) -> list[str]:
  """No second module system, no second framework."""
  return [f'imports {name}' for name in imported(path, source) if under(name, *BANNED_IMPORTS)]


def linen_dialect(path: str, source: str) -> list[str]:
  """No self.variable, no sow, no setup(); parameters are born in weight() alone."""
  tree = ast.parse(source)
  bad = [f'{name}()' for _, name in calls(tree) if name.endswith(('self.variable', '.sow'))]
  for node in ast.walk(tree):
    if isinstance(node, ast.ClassDef):
      module = any(ast.unparse(base).split('.')[-1] == 'Module' for base in node.bases)
      names = [n.name for n in node.body if isinstance(n, FUNCTIONS)]
      bad += [f'{node.name}.setup'] if module and 'setup' in names else []
  home = path == 'r1jax/model/primitives.py'
  weights = [n for n in tree.body if home and isinstance(n, FUNCTIONS) and n.name == 'weight']
  allowed = {id(inner) for node in weights for inner in ast.walk(node)}
  for node, name in calls(tree):
    if name.endswith('.param') and id(node) not in allowed:
      bad.append(f'{name}() outside weight() of model/primitives.py')
  return bad


def flag_fields(path: str, source: str) -> list[str]:
  """Alternatives of a model are types, not use_* or enable_* fields."""
  if package_of(path) != 'model':
    return []
  classes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef))
  fields = (f for c in classes for f in c.body if isinstance(f, ast.AnnAssign))
  names = (ast.unparse(field.target) for field in fields)
  return [f'field {name}' for name in names if name.startswith(('use_', 'enable_'))]


def leftovers(path: str, source: str) -> list[str]:
  """No notes to self."""
  words = '|'.join(('TO' + 'DO', 'FIX' + 'ME', 'X' * 3))
  return re.findall(rf'\b(?:{words})\b', source)


def config_get(path: str, source: str) -> list[str]:
  """Configs are attributes; only core/config.py reads dicts."""
  if path == 'r1jax/core/config.py':
    return []
  names = (name for _, name in calls(ast.parse(source)))
  return [f'{name}()' for name in names if re.search(r'\b(config|cfg)\.get$', name)]


def mutable_defaults(path: str, source: str) -> list[str]:
  """No list, dict or set as a default."""
  bad = []
  for node in functions(source):
    for default in [*node.args.defaults, *(d for d in node.args.kw_defaults if d)]:
      made = isinstance(default, ast.Call) and ast.unparse(default.func) in ('list', 'dict', 'set')
      if made or isinstance(default, (ast.List, ast.Dict, ast.Set)):
        bad.append(f'{node.name}: default {ast.unparse(default)}')
  return bad


def registries(path: str, source: str) -> list[str]:
  """Nothing that a module assigns is filled by later statements of the module."""
  held, bad = set(), []
  for node in module_level(ast.parse(source).body):
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
      for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(target, ast.Name):
          held.add(target.id)
        elif isinstance(target, ast.Subscript) and ast.unparse(target.value) in held:
          bad.append(ast.unparse(target))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
      name, _, method = ast.unparse(node.value.func).rpartition('.')
      if name in held and method in MUTATORS:
        bad.append(f'{name}.{method}()')
  return bad


def prints(path: str, source: str) -> list[str]:
  """Only binaries, reports and the progress line speak."""
  if path.startswith(MAY_PRINT):
    return []
  return ['print()' for _, name in calls(ast.parse(source)) if name == 'print']


def docs(path: str, source: str) -> list[str]:
  """A docstring for every module; a docstring and a return type for every public function."""
  tree = ast.parse(source)
  bad = [] if ast.get_docstring(tree) else ['module without docstring']
  for node in tree.body:
    if isinstance(node, FUNCTIONS) and not node.name.startswith('_'):
      bad += [] if ast.get_docstring(node) else [f'{node.name}: no docstring']
      bad += [] if node.returns else [f'{node.name}: no return type']
  return bad


CHECKS: dict[str, tuple[Check, str, str, str]] = {
  'ladder': (ladder, 'r1jax/tasks/a.py', 'import r1jax.model.config', 'import r1jax.rewards.maths'),
  'ladder: sibling': (
    ladder, 'r1jax/algos/a.py', 'from r1jax.optim import b', 'from r1jax import core'),
  'ladder: relative': (ladder, 'r1jax/core/a.py', 'from ..eval import b', 'from . import b'),
  'ladder: inside': (
    ladder, 'r1jax/core/a.py', 'def f():\n  from r1jax.bin import b', 'from r1jax.core import b'),
  'ladder: unknown': (ladder, 'r1jax/bin/a.py', 'import r1jax.misc', 'import r1jax.train.loop'),
  'ladder: top': (ladder, 'r1jax/__init__.py', 'from r1jax import core', 'import os'),
  'file_size': (file_size, 'r1jax/core/a.py', 'x = 1\n' * 501, 'x = 1\n' * 500),
  'file_size: kernel': (file_size, 'r1jax/kernels/a/tpu.py', 'x = 1\n' * 601, 'x = 1\n' * 600),
  'function_size': (
    function_size, 'r1jax/core/a.py', 'class A:\n  def f():\n' + '    x\n' * 60,
    '@f\ndef f():\n' + '  x\n' * 59),
  'jax_free': (jax_free, 'r1jax/rewards/a.py', 'import jax.numpy as jnp', 'import numpy'),
  'jax_free: text': (jax_free, 'r1jax/core/text.py', 'from jax import numpy', 'import jaxtyping'),
  'banned_imports': (
    banned_imports, 'r1jax/a.py', 'from flax import nnx', 'from flax import linen'),
  'banned_imports: torch': (banned_imports, 'r1jax/a.py', 'import torch.nn', 'import torchlike'),
  'banned_imports: tf': (
    banned_imports, 'r1jax/a.py', 'from tensorflow import io', 'import tensorflow_datasets'),
  'linen: variable': (linen_dialect, 'r1jax/a.py', 'self.variable("a", "b")', 'self.weight("a")'),
  'linen: sow': (linen_dialect, 'r1jax/a.py', 'module.sow("a", x)', 'sow(x)'),
  'linen: setup': (
    linen_dialect, 'r1jax/a.py', 'class A(nn.Module):\n  def setup(self): pass',
    'class A:\n  def setup(self): pass'),
  'linen: param': (
    linen_dialect, 'r1jax/model/primitives.py', 'def other(m):\n  m.param("a")',
    'def weight(m):\n  return m.param("a")'),
  'linen: param elsewhere': (
    linen_dialect, 'r1jax/model/moe.py', 'def weight(m):\n  self.param("a")', 'x.parameter("a")'),
  'flag_fields': (
    flag_fields, 'r1jax/model/a.py', 'class A:\n  use_x: bool', 'class A:\n  user: int'),
  'flag_fields: enable': (
    flag_fields, 'r1jax/model/a.py', 'class A:\n  enable_x: bool = 1', 'use_x: bool'),
  'leftovers': (leftovers, 'r1jax/a.py', '# TO' + 'DO: later', '# to do'),
  'leftovers: fix': (leftovers, 'r1jax/a.py', '# FIX' + 'ME', 'x = "PREFIXMEMO"'),
  'config_get': (config_get, 'r1jax/a.py', 'self.config.get("a")', 'row.get("a")'),
  'config_get: cfg': (config_get, 'r1jax/a.py', 'cfg.get("a", 3)', 'cfg.getter()'),
  'mutable_defaults': (mutable_defaults, 'r1jax/a.py', 'def f(a=[]): pass', 'def f(a=()): pass'),
  'mutable_defaults: call': (
    mutable_defaults, 'r1jax/a.py', 'def f(*, a=dict()): pass', 'def f(*, a=None): pass'),
  'registries': (
    registries, 'r1jax/a.py', 'A = []\nif True:\n  A.append(1)',
    'def f():\n  A = []\n  A.append(1)'),
  'registries: item': (registries, 'r1jax/a.py', 'A: dict = {}\nA["x"] = 1', 'A = {"x": 1}'),
  'prints': (prints, 'r1jax/train/loop.py', 'print(1)', 'x.print(1)'),
  'prints: allowed': (prints, 'r1jax/core/a.py', 'def f():\n  print(1)', 'pprint(1)'),
  'docs: module': (docs, 'r1jax/a.py', 'x = 1', '"""Doc."""'),
  'docs: function': (
    docs, 'r1jax/a.py', '"""Doc."""\ndef f() -> int: return 1', '"""Doc."""\ndef _f(): pass'),
  'docs: return': (
    docs, 'r1jax/a.py', '"""D."""\ndef f():\n  """D."""', '"""D."""\ndef f() -> None:\n  """D."""'),
}  # fmt: skip

EVERYWHERE = (file_size, function_size, leftovers, mutable_defaults)


@pytest.mark.parametrize('name', CHECKS)
def test_every_check_catches_its_bad_snippet_and_passes_the_good_one(name):
  check, path, bad, good = CHECKS[name]
  assert check(path, bad)
  assert not check(path, good)


def test_a_package_without_a_rung_is_caught():
  assert ladder('r1jax/extra/a.py', 'x = 1')


def test_those_who_may_print_may():
  for path in ('r1jax/bin/a.py', 'r1jax/eval/report.py', 'r1jax/train/progress.py'):
    assert not prints(path, 'print(1)')


def sources(*folders: str) -> dict[str, str]:
  """Path -> text of all Python files below the folders."""
  files = (f for folder in folders for f in sorted((ROOT / folder).rglob('*.py')))
  return {f.relative_to(ROOT).as_posix(): f.read_text() for f in files}


@pytest.mark.parametrize('check', {c: None for c, *_ in CHECKS.values()}, ids=lambda c: c.__name__)
def test_house(check):
  folders = ('r1jax', 'tests', 'configs') if check in EVERYWHERE else ('r1jax',)
  files = sources(*folders)
  assert len(files) > 5
  bad = [f'{path}: {complaint}' for path, text in files.items() for complaint in check(path, text)]
  assert not bad, '\n' + '\n'.join(bad)


# Laws over several files.


def newcomer_path(files: Mapping[str, str]) -> list[str]:
  """What a newcomer reads stays under NEWCOMER_LINES in all."""
  lines = {path: len(files[path].splitlines()) for path in NEWCOMER if path in files}
  total = sum(lines.values())
  return [f'{total} lines, {NEWCOMER_LINES} at most: {lines}'] if total > NEWCOMER_LINES else []


def unmirrored(files: Mapping[str, str]) -> list[str]:
  """Modules with code that neither a mirrored test nor another test of their package imports."""
  tests = {p: set(imported(p, text)) for p, text in files.items() if p.endswith('_test.py')}
  bad = []
  for path, source in files.items():
    if not path.startswith('r1jax/') or len(ast.parse(source).body) <= 1:
      continue
    inner = path.removeprefix('r1jax/').removesuffix('.py').removesuffix('/__init__')
    module, folder = 'r1jax.' + inner.replace('/', '.'), f'tests/{package_of(path)}/'
    names = {name for p in tests if p.startswith(folder) for name in tests[p]}
    if f'tests/{inner}_test.py' not in tests and not any(under(name, module) for name in names):
      bad.append(f'{path}: no tests/{inner}_test.py, and no test in {folder} imports {module}')
  return bad


def test_newcomers_path():
  assert newcomer_path({'r1jax/model/mla.py': 'x\n' * 1000, 'r1jax/train/step.py': 'x\n' * 501})
  assert not newcomer_path({'r1jax/model/mla.py': 'x\n' * 1000, 'r1jax/model/gqa.py': 'x\n' * 999})
  assert not newcomer_path(sources('r1jax'))


def test_every_module_is_tested():
  code = '"""Doc."""\nx = 1\n'
  assert unmirrored({'r1jax/core/a.py': code, 'tests/core/b_test.py': 'from r1jax.core import b'})
  assert unmirrored({'r1jax/core/a.py': code, 'tests/eval/a_test.py': 'from r1jax.core import a'})
  assert not unmirrored({'r1jax/core/a.py': code, 'tests/core/a_test.py': ''})
  assert not unmirrored({'r1jax/core/a.py': code, 'tests/core/b_test.py': 'import r1jax.core.a'})
  assert not unmirrored({'r1jax/core/__init__.py': '"""Doc."""'})
  assert unmirrored({'r1jax/kernels/a/__init__.py': code})
  assert not unmirrored({'r1jax/kernels/a/__init__.py': code, 'tests/kernels/a_test.py': ''})
  bad = unmirrored(sources('r1jax', 'tests'))
  assert not bad, '\n' + '\n'.join(bad)


def run(code: str) -> None:
  """Runs the code in a fresh interpreter at the root of the repository, where there is jax."""
  pytest.importorskip('jax')
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert out.returncode == 0, out.stderr


def modules(keep: Callable[[str], bool]) -> list[str]:
  """Import names of the modules of r1jax whose path is kept."""
  kept = (p for p in sources('r1jax') if keep(p))
  return [p.removesuffix('.py').removesuffix('/__init__').replace('/', '.') for p in kept]


def test_importing_the_jax_free_packages_brings_no_jax():
  names = modules(lambda path: package_of(path) in JAX_FREE or path in JAX_FREE_FILES)
  assert 'r1jax.core.text' in names
  run(f'import sys, importlib\nfor m in {names}: importlib.import_module(m)\n'
      'assert "jax" not in sys.modules')  # fmt: skip


def test_importing_r1jax_touches_no_device():
  names = modules(lambda path: package_of(path) != 'bin')
  run(f'import importlib\nfor m in {names}: importlib.import_module(m)\n'
      'from jax._src import xla_bridge\n'
      'assert not xla_bridge.backends_are_initialized()')  # fmt: skip
