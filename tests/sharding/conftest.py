"""Two processes of four virtual CPU devices each, spawned once for all tests of this folder."""

import json
import pathlib
import socket
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from tests.processes import environment

WORKERS = pathlib.Path(__file__).parent / 'workers'


class Ended(NamedTuple):
  """A process that has ended, and what it found out."""

  code: int
  stderr: str
  found: dict[str, Any]


@pytest.fixture(scope='session')
def free_port():
  """Gives ports on which nobody listens."""

  def free():
    with socket.socket() as s:
      s.bind(('', 0))
      return s.getsockname()[1]

  return free


@pytest.fixture(scope='session')
def pair(tmp_path_factory, free_port):
  """Both processes of workers/checks.py, ended."""
  folder, address = tmp_path_factory.mktemp('pair'), f'localhost:{free_port()}'
  env = environment() | {'JAX_PLATFORMS': 'cpu'}
  outs = [folder / f'{i}.json' for i in range(2)]
  running = [
    subprocess.Popen(
      [sys.executable, str(WORKERS / 'checks.py'), address, str(i), str(out)],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i, out in enumerate(outs)
  ]
  try:
    said = [process.communicate(timeout=120) for process in running]
  finally:
    for process in running:
      process.kill()
  if not all(out.exists() for out in outs):
    parts = (f'--- process {i}\n{out}{err}' for i, (out, err) in enumerate(said))
    pytest.fail('\n'.join(parts), pytrace=False)
  return [
    Ended(process.returncode, err, json.loads(out.read_text()))
    for process, (_, err), out in zip(running, said, outs)
  ]
