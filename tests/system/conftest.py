"""The binaries as a user starts them: a new process, one device."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from r1jax.checkpoint.store import FOLDER, TREE, Store
from tests.processes import environment

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / 'tests' / 'system' / 'tiny_config.py'


@pytest.fixture(scope='session')
def binary():
  """binary(name, *flags): the finished process; start(name, *flags) gives one that runs."""

  def call(name, *flags):
    process = call.start(name, *flags)
    out, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

  def start(name, *flags):
    command = [sys.executable, '-m', f'r1jax.bin.{name}', *map(str, flags)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)

  call.start = start
  return call


@pytest.fixture(scope='session')
def arrays():
  """arrays(workdir): (step, whole host arrays) of the newest checkpoint, whatever mesh wrote it."""

  def read(workdir):
    store = Store(workdir / FOLDER)
    folder = workdir / FOLDER / str(store.latest()) / TREE
    with ocp.PyTreeCheckpointer() as orbax:
      wanted = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        orbax.metadata(folder).item_metadata.tree,
      )
      return store.latest(), orbax.restore(folder, restore_args=wanted)

  return read


@pytest.fixture(scope='session')
def trained(binary, tmp_path_factory):
  """The workdir of a tiny run of one stage, and what it printed."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  out = binary('train', f'--config={CONFIG}:sft', f'--workdir={workdir}')
  assert out.returncode == 0, out.stderr
  return workdir, out.stdout, out.stderr
