"""What made a run: versions, devices, the git revision and the configuration.

    workdir/config.json   the whole configuration
    workdir/run.json      `record()` of the latest start

The host's name is left out on purpose: workdirs are shared.
"""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

from r1jax.core import files

PACKAGES = {  # our name for it: the distribution
  'jax': 'jax',
  'jaxlib': 'jaxlib',
  'flax': 'flax',
  'optax': 'optax',
  'orbax': 'orbax-checkpoint',
  'r1jax': 'r1jax',
}
HOME = pathlib.Path(__file__).resolve().parent.parent  # the package r1jax


def record() -> dict[str, Any]:
  """Versions, platform, devices, git revision, start time; raises nothing about what is absent."""
  devices = jax.devices()
  return {
    'versions': {'python': platform.python_version()}
    | {n: version(d) for n, d in PACKAGES.items()},
    'system': f'{platform.system()} {platform.machine()}',
    'platform': jax.default_backend(),
    'devices': {
      'kind': devices[0].device_kind,
      'count': len(devices),
      'processes': jax.process_count(),
    },
    'git': git(),
    'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def version(distribution: str) -> str | None:
  """The version that is installed, None where none is (a source tree on the path)."""
  try:
    return importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return None


def git(folder: pathlib.Path = HOME) -> dict[str, Any] | None:
  """{'revision': …, 'dirty': bool} of the checkout that tracks `folder`; None outside one."""
  # An installed package may lie inside a checkout of something else (a .venv), which ignores it.
  tracked = _git(folder, 'ls-files', '--error-unmatch', '.')
  revision = _git(folder, 'rev-parse', 'HEAD')
  if tracked is None or revision is None:
    return None
  changes = _git(folder, 'status', '--porcelain', '--untracked-files=no')
  return {'revision': revision, 'dirty': None if changes is None else bool(changes)}


def short(git_record: dict[str, Any] | None) -> str:
  """'3f2a91c', '3f2a91c+' when it was dirty, '' outside git: for titles and tables."""
  if not git_record:
    return ''
  return git_record['revision'][:7] + ('+' if git_record['dirty'] else '')


def write(workdir: str | pathlib.Path, config_json: str, made: dict[str, Any]) -> None:
  """Writes config.json and run.json (a `record()`), each whole or not at all."""
  files.write_text(pathlib.Path(workdir) / 'config.json', config_json.rstrip() + '\n')
  files.write_json(pathlib.Path(workdir) / 'run.json', made)


def _git(folder: pathlib.Path, *args: str) -> str | None:
  try:
    command = ['git', '-C', str(folder), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip() if done.returncode == 0 else None
