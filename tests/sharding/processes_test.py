"""What two processes tell each other (workers/checks.py), how they start, and their launcher."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.sharding import processes

ROOT = pathlib.Path(__file__).parents[2]
WORKERS = pathlib.Path(__file__).parent / 'workers'
MEND = 'start all processes with the same flags, config, code, packages and data'


@pytest.fixture
def talk(pair):
  """What each process got from the calls of `talk` in workers/checks.py."""
  return [p.found['talk'] for p in pair]


def test_two_processes_share_the_devices(pair, talk):
  assert [p.found['devices'] for p in pair] == [[8, 4], [8, 4]]
  assert [t['leader'] for t in talk] == [True, False]
  assert [t['count'] for t in talk] == [2, 2]
  assert [p.found['psum'] for p in pair] == [[28], [28]]


def test_exchange_gives_values_of_unequal_size_to_all(pair, talk):
  values = [{'process': i, 'text': 'é' * (500 * i), 'list': [1.5, None]} for i in range(2)]
  assert [t['exchange'] for t in talk] == [values, values]
  assert [p.found['split']['exchange'] for p in pair] == [[0, 1], [0, 1]]


def test_agree(talk):
  """Nothing where the facts are equal; the same line on both where they are not."""
  assert [t['agree'] for t in talk] == [None, None]
  differ = f'UserError: process 1 has another data (11, process 0 has 00): {MEND}'
  lacks = f'UserError: process 1 has another git (f, process 0 has None): {MEND}'
  assert [t['differ'] for t in talk] == [differ, differ]
  assert [t['lacks'] for t in talk] == [lacks, lacks]


def test_what_fails_on_one_fails_on_both(talk):
  assert [t['fine'] for t in talk] == [0, 1]
  assert [t['user'] for t in talk] == ['UserError: process 1: no file x', 'UserError: no file x']
  assert [t['leaders'] for t in talk] == ['UserError: disk full', 'UserError: process 0: disk full']
  other = 'UserError: process 1 failed: ValueError: bad value'
  assert [t['bug'] for t in talk] == [other, 'ValueError: bad\nvalue']


def test_sigterm_to_one_stops_both_at_the_same_number(pair):
  first, second = (p.found['stopped'] for p in pair)
  assert first == second >= 10


def test_processes_that_disagree_end_with_the_same_line(pair):
  line = f'error: process 1 has another data (of 1, process 0 has of 0): {MEND}'
  assert [(p.code, p.stderr.splitlines()[-1]) for p in pair] == [(2, line), (2, line)]


def test_one_process_has_nobody_to_talk_to():
  assert (processes.index(), processes.count(), processes.leader()) == (0, 1, True)
  assert processes.exchange({'a': (1,)}) == [{'a': (1,)}]
  processes.barrier('here')
  processes.agree({'config': 'aa'})
  assert processes.together(lambda: 5) == 5
  with pytest.raises(ValueError, match='own'):
    processes.together(lambda: (_ for _ in ()).throw(ValueError('own')))
  assert not processes.stopping(1)
  got = processes.fetch({'a': jax.numpy.arange(3), 'b': np.arange(2)})
  assert type(got['a']) is type(got['b']) is np.ndarray
  assert got['a'].tolist() == [0, 1, 2] and got['b'].tolist() == [0, 1]


def test_start_with_nothing_does_nothing():
  assert processes.start(None, None, None) is None


ALL = 'give all three, or coordinator=auto alone on a cluster, or none for one process'
HOST = 'the coordinator is HOST:PORT of process 0, such as 10.0.0.1:1234'


@pytest.mark.parametrize(
  'given, said',
  [
    ((None, 2, 0), f'coordinator=None, processes=2, process=0: {ALL}'),
    ((None, None, 1), f'coordinator=None, processes=None, process=1: {ALL}'),
    (('a:1', 2, None), f'coordinator=a:1, processes=2, process=None: {ALL}'),
    (('a:1', None, None), f'coordinator=a:1, processes=None, process=None: {ALL}'),
    (('auto', 2, 0), f'coordinator=auto, processes=2, process=0: {ALL}'),
    (('host', 2, 0), f'coordinator=host, processes=2, process=0: {HOST}'),
    (('host:x', 2, 0), f'coordinator=host:x, processes=2, process=0: {HOST}'),
    ((':12', 2, 0), f'coordinator=:12, processes=2, process=0: {HOST}'),
    (('a:70000', 2, 0), f'coordinator=a:70000, processes=2, process=0: {HOST}'),
    (('a:1', 2, 2), 'coordinator=a:1, processes=2, process=2: '
     'processes are numbered from 0 to processes - 1'),
    (('a:1', 2, -1), 'coordinator=a:1, processes=2, process=-1: '
     'processes are numbered from 0 to processes - 1'),
    ((None, None, None, 0), '0 devices a process: at least 1 is needed'),
  ],
)  # fmt: skip
def test_starts_that_make_no_sense(given, said):
  with pytest.raises(UserError) as raised:
    processes.start(*given)
  assert str(raised.value) == said


def test_a_coordinator_that_cannot_be_reached(free_port):
  begin = time.monotonic()
  with pytest.raises(
    UserError, match=r'process 1 cannot reach the coordinator localhost:\d+ within'
  ):
    processes.start(f'localhost:{free_port()}', 2, 1, timeout=0.3)
  assert time.monotonic() - begin < 10


def test_auto_where_there_is_no_cluster():
  """In a fresh process without the variables by which jax finds one."""
  code = (
    'from r1jax.core.errors import UserError\n'
    'from r1jax.sharding import processes\n'
    'try:\n  processes.start("auto", None, None)\n'
    'except UserError as error:\n  print(error)'
  )
  env = {'PATH': os.environ['PATH'], 'JAX_PLATFORMS': 'cpu'}
  out = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
  )
  said = (
    r'coordinator=auto, but jax detects no cluster here \(.*\): give coordinator=HOST:PORT, .*\n'
  )
  assert re.fullmatch(said, out.stdout), out.stdout + out.stderr


# The launcher, with workers/launched.py as the binary.


@pytest.fixture
def launch(tmp_path):
  """Starts launch/processes.sh; its logs are in tmp_path/r1jax.*."""
  env = os.environ | {
    'BINARY': 'launched', 'PYTHONPATH': str(WORKERS), 'TMPDIR': str(tmp_path), 'GRACE': '1'
  }  # fmt: skip
  started = []

  def go(*flags):
    process = subprocess.Popen(
      ['bash', 'launch/processes.sh', *flags],
      cwd=ROOT,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield go
  for process in started:
    process.poll() is None and process.terminate()


def logs(folder):
  """The lines of the log of each process but the first."""
  return {f.name: f.read_text().splitlines()[1:] for f in folder.glob('r1jax.*/process-*.log')}


def test_launcher_gives_each_process_its_number(launch, tmp_path):
  process = launch('2', '--a=b')
  out, err = process.communicate(timeout=60)
  assert (process.returncode, err) == (0, '')
  head, flags, ready = out.splitlines()
  port = re.fullmatch(rf'2 processes, coordinator 127.0.0.1:(\d+); logs .* {tmp_path}/.*', head)[1]
  expected = f'--coordinator=127.0.0.1:{port} --processes=2 --process=%d --a=b'
  assert (flags, ready) == (expected % 0, 'ready')
  [log] = tmp_path.glob('r1jax.*/process-1.log')
  assert log.read_text().splitlines() == [expected % 1, 'ready']


def test_launcher_ends_all_when_one_fails(launch, tmp_path):
  """By SIGTERM, and by SIGKILL the one that does not heed it."""
  process = launch('3', '--fail=2', '--deaf=0')
  out, err = process.communicate(timeout=60)
  assert process.returncode == 3
  assert re.match(rf'process 2 ended with exit code 3, see {tmp_path}/.*process-2.log\n', err)
  assert out.splitlines()[2:] == ['ready']
  assert logs(tmp_path) == {'process-1.log': ['ready', 'got SIGTERM'], 'process-2.log': ['ready']}


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_launcher_passes_signals_on(launch, tmp_path, name):
  process = launch('2', '--wait')
  lines = threading.Thread(target=lambda: [process.stdout.readline() for _ in range(3)])
  lines.start()
  lines.join(60)  # process 0 is ready
  until = time.monotonic() + 60
  while logs(tmp_path) != {'process-1.log': ['ready']} and time.monotonic() < until:
    time.sleep(0.05)
  process.send_signal(signal.Signals[name])
  out, _ = process.communicate(timeout=60)
  assert (process.returncode, out) == (0, f'got {name}\n')
  assert logs(tmp_path) == {'process-1.log': ['ready', f'got {name}']}


def test_launcher_wants_a_number(launch):
  process = launch('--config=x.py')
  _, err = process.communicate(timeout=60)
  assert process.returncode == 2
  assert "error: the first argument is the number of processes, not '--config=x.py'" in err
