"""Command lines: --config=FILE, --config.PATH=VALUE, and errors of one line.

`--config` names a Python file with a get_config() that returns a ConfigDict or the dataclass
itself; in FILE:TEXT the text is handed to get_config. `--config.a.b=3` (or `--config.a.b 3`) is
taken out of argv before absl parses the rest, since only core/config.py knows the types that it
must fit. A binary:

  CONFIG = flags.define_config('configs/quickstart.py')

  def main(overrides):
    config = flags.load_config(Experiment, CONFIG.value, overrides)

  if __name__ == '__main__':
    flags.run(main)
"""

import errno
import importlib.util
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections
from absl import app
from absl import flags as absl_flags

from r1jax.core import config as configs
from r1jax.core.errors import UserError, no_such

T = TypeVar('T')
Overrides = list[tuple[str, str]]
USER_ERROR = 2
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130


CONFIG_HELP = (
  'Python file with get_config(); FILE:TEXT hands TEXT to it. Override by --config.NAME=VALUE.'
)


def define_config(
  default: str | None = None, text: str = CONFIG_HELP
) -> absl_flags.FlagHolder[str | None]:
  """Defines --config as a flag of the calling binary, so that its --help lists it."""
  absl_flags.disclaim_key_flags()
  return absl_flags.DEFINE_string('config', default, text)


def define_processes() -> Callable[[], tuple[str | None, int | None, int | None, int | None]]:
  """Defines the flags of a program of several processes; gives what `processes.start` takes."""
  absl_flags.disclaim_key_flags()
  flags = (
    absl_flags.DEFINE_string(
      'coordinator', None,
      "HOST:PORT of process 0 of several; 'auto' where the cluster tells (TPU pod, Slurm, "
      'Kubernetes).',
    ),
    absl_flags.DEFINE_integer('processes', None, 'How many processes there are.'),
    absl_flags.DEFINE_integer('process', None, 'Which of them this is, from 0.'),
    absl_flags.DEFINE_integer(
      'local_devices', None,
      'Virtual CPU devices of this process; for trying a mesh without hardware.',
    ),
  )  # fmt: skip
  return lambda: tuple(flag.value for flag in flags)


def refuse(overrides: Overrides) -> None:
  """For programs without a config: --config.PATH=VALUE is an error there."""
  if overrides:
    raise UserError(f'--config.{overrides[0][0]}: this program takes no config')


def split_overrides(argv: Sequence[str]) -> tuple[list[str], Overrides]:
  """(argv without --config.PATH=VALUE, [(path, value), ...]); what follows a bare -- is left."""
  rest, overrides, words = [], [], iter(argv)
  for word in words:
    flag, equals, value = word.partition('=')
    if word == '--':
      return [*rest, word, *words], overrides
    if not flag.startswith(('--config.', '-config.')):
      rest.append(word)
      continue
    if not equals:
      value = next(words, '--')
    if not equals and value.startswith('--'):
      raise UserError(f'{flag} needs a value: {flag}=VALUE')
    overrides.append((flag.partition('.')[2], value))
  return rest, overrides


def load_config(cls: type[T], file: str | None, overrides: Overrides) -> T:
  """The config that the file describes, overridden; ConfigError or UserError in one line."""
  given = _get_config(file)
  if isinstance(given, (ml_collections.ConfigDict, Mapping)):
    given = configs.from_dict(cls, given)
  if type(given) is not cls:
    name = type(given).__name__
    raise UserError(
      f'{file}: get_config() returned a {name}, expected ConfigDict or {cls.__name__}'
    )
  return configs.override_all(given, overrides)


def run(main: Callable[[Overrides], Any], argv: Sequence[str] | None = None) -> None:
  """Parses the flags, exits with what main(overrides) returns; the user's mistakes exit with 2."""
  cache_compilations()
  try:
    rest, overrides = split_overrides(sys.argv if argv is None else argv)
    app.run(lambda _: main(overrides), argv=rest, flags_parser=_parse)
  except UserError as error:
    # The message may quote a user's file or value; what is printed is one line all the same.
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    sys.exit(USER_ERROR)
  except OSError as error:
    if error.errno not in NO_SPACE:
      raise
    where = f' ({error.filename})' if error.filename else ''
    print(
      f'error: {error.strerror}{where}; free space and start the same command again',
      file=sys.stderr,
    )
    sys.exit(USER_ERROR)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(INTERRUPTED)


def cache_compilations() -> None:
  """Keeps compiled programs under the user's cache folder, unless the environment names another."""
  home = pathlib.Path(os.environ.get('XDG_CACHE_HOME', pathlib.Path.home() / '.cache'))
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(home / 'r1jax' / 'jax'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')


def _parse(argv: Sequence[str]) -> list[str]:
  """absl's parsing, with its mistakes in one line and no stray arguments."""
  try:
    rest = absl_flags.FLAGS(list(argv))
  except absl_flags.UnrecognizedFlagError as error:
    name = '--' + error.flagname.partition('.')[0]
    raise UserError(no_such('flag', name, _own_flags(argv[0]))) from None
  except absl_flags.Error as error:
    raise UserError(f'{error} (--help lists the flags)') from None
  if len(rest) > 1:
    raise UserError(f"'{rest[1]}' is not a flag; flags are written --name=value")
  return rest


def _own_flags(program: str) -> list[str]:
  """Flags of this project; libraries and absl itself define many more."""
  modules = absl_flags.FLAGS.flags_by_module_dict()
  mine = [m for m in modules if m in ('__main__', program) or m.startswith('r1jax')]
  return [f'--{flag.name}' for module in mine for flag in modules[module]]


def _get_config(file: str | None) -> Any:
  if not file:
    raise UserError('no config given; expected --config=FILE, such as configs/quickstart.py')
  name, colon, text = file.partition(':')
  path = pathlib.Path(name)
  if not path.is_file():
    known = sorted(str(p) for p in path.parent.glob('*.py'))
    raise UserError(f'--config: {no_such("file", name, known)}')
  if path.suffix != '.py':
    raise UserError(f'--config: {name} is not a Python file; expected one with get_config()')
  spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  get = getattr(module, 'get_config', None)
  if not callable(get):
    raise UserError(f'{name}: has no get_config(); define one that returns the ConfigDict')
  args = (text,) if colon else ()
  try:
    inspect.signature(get).bind(*args)
  except TypeError as error:
    raise UserError(f"{name}: get_config cannot be called for '{file}': {error}") from None
  return get(*args)
