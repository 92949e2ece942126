"""The pool: order, limits, deaths, and that nothing is left behind."""

import collections
import contextlib
import functools
import os
import pathlib
import subprocess
import sys
import time

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.outcome import Outcome
from r1jax.rewards.pool import Pool
from r1jax.tasks.file import File
from r1jax.tasks.make import make
from r1jax.tasks.task import Example

TASK = r"""
import ctypes, os, re, subprocess, sys, time
from r1jax.core.errors import UserError
from r1jax.tasks.file import from_functions
from r1jax.tasks.task import Example

def grade(example, answer):
  match answer:
    case 'sleep': time.sleep(1e6)
    case 'regex': re.fullmatch(r'(a+)+b', 'a' * 64)
    case 'spin':
      while True: pass
    case 'exit': os._exit(0)
    case 'segfault': ctypes.string_at(0)
    case 'memory': bytearray(1 << 40)
    case 'raise': raise RuntimeError('no')
    case 'leave': sys.exit(1)
    case 'mistake': raise UserError('the table\nis missing')
    case 'nan': return float('nan')
    case 'wrong type': return 'yes'
    case 'modules': return float('jax' not in sys.modules)
    case 'child':
      subprocess.Popen(['sleep', '1000'])
      time.sleep(1e6)
  return answer == example.answer

def task():
  return from_functions('trouble', lambda seed: Example('', str(seed)), grade)
"""
LIMIT = 0.5


@pytest.fixture(scope='module')
def build(tmp_path_factory):
  path = tmp_path_factory.mktemp('pool') / 'trouble.py'
  path.write_text(TASK)
  return functools.partial(make, File(str(path)))


@pytest.fixture(scope='module')
def pool(build):
  with Pool(build, workers=2, seconds=LIMIT) as pool:
    assert pool.map([call('x')])[0].outcome is Outcome.CORRECT
    yield pool


def call(answer, gold='x'):
  return Example('', '', gold), f'<think></think><answer>{answer}</answer>'


Process = collections.namedtuple('Process', 'pid state parent group')


def processes():
  """All processes, from Linux's /proc."""
  found = []
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):  # it ended while we looked
      fields = stat.read_text().rpartition(')')[2].split()
      found.append(Process(int(stat.parent.name), fields[0], int(fields[1]), int(fields[2])))
  return found


def children():
  """Processes that this one has started and not reaped, zombies too."""
  return {p.pid: p.state for p in processes() if p.parent == os.getpid()}


def assert_only_workers_of(pool):
  """Every child is a living worker of the pool."""
  assert set(children()) == {w.process.pid for w in pool._workers}
  assert 'Z' not in children().values()


def test_grades_come_in_order(pool):
  answers = ['x' if i % 3 else str(i) for i in range(200)]
  grades = pool.map([call(a) for a in answers])
  assert [g.outcome for g in grades] == [
    Outcome.CORRECT if a == 'x' else Outcome.WRONG for a in answers
  ]
  assert pool.map([]) == []


def test_simple_grades_are_fast(pool):
  calls = [call('x')] * 256
  pool.map(calls)

  def seconds():
    start = time.perf_counter()
    pool.map(calls)
    return time.perf_counter() - start

  # About 15 ms where nothing else runs.
  assert min(seconds() for _ in range(5)) < 0.25


@pytest.mark.parametrize('trouble', ['sleep', 'regex', 'spin'])
def test_contract_16_a_hang_costs_its_limit_and_is_a_timeout(pool, trouble):
  calls = [call('x')] * 20 + [call(trouble)] + [call('x')] * 20
  start = time.monotonic()
  grades = pool.map(calls)
  assert time.monotonic() - start < LIMIT + 5
  assert collections.Counter(g.outcome for g in grades) == {Outcome.CORRECT: 40, Outcome.TIMEOUT: 1}
  assert (grades[20].outcome, grades[20].reward, grades[20].parts) == (
    Outcome.TIMEOUT,
    0.0,
    {'timeout': 1.0},
  )
  assert_only_workers_of(pool)


@pytest.mark.parametrize('trouble', ['exit', 'segfault', 'memory', 'raise', 'leave'])
def test_contract_16_a_crash_costs_one_item(pool, trouble):
  grades = pool.map([call('x')] * 20 + [call(trouble)] + [call('x')] * 20)
  assert (grades[20].outcome, grades[20].reward, grades[20].parts) == (
    Outcome.UNPARSEABLE,
    0.0,
    {'crash': 1.0},
  )
  assert all(g.outcome is Outcome.CORRECT for g in grades[:20] + grades[21:])
  assert_only_workers_of(pool)


@pytest.mark.parametrize(
  'trouble, said',
  [
    ('mistake', 'the table is missing'),
    ('nan', 'task trouble: grade gave nan; expected a bool'),
    ('wrong type', "task trouble: grade gave 'yes'; expected a bool"),
  ],
)
def test_a_mistake_of_the_task_is_an_error_of_the_caller_in_one_line(pool, trouble, said):
  """It would make every grade worthless: no crash of one item. The pool goes on."""
  with pytest.raises(UserError, match=said) as caught:
    pool.map([call('x')] * 20 + [call(trouble)] + [call('x')] * 20)
  assert '\n' not in str(caught.value) and 'while grading Example(' in str(caught.value)
  assert [g.outcome for g in pool.map([call('x'), call('y')])] == [Outcome.CORRECT, Outcome.WRONG]
  assert_only_workers_of(pool)


def test_a_binary_ends_with_the_mistake_and_a_bad_exit(build):
  code = (
    'import functools\n'
    'from r1jax.bin import flags\n'
    'from r1jax.rewards.pool import Pool\n'
    'from r1jax.tasks.file import File\n'
    'from r1jax.tasks.make import make\n'
    'from r1jax.tasks.task import Example\n'
    'def main(overrides):\n'
    f'  with Pool(functools.partial(make, {build.args[0]!r}), workers=1) as pool:\n'
    "    pool.map([(Example('', ''), '<think></think><answer>mistake</answer>')])\n"
    "flags.run(main, ['main'])\n"
  )
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert ended.returncode == 2, ended.stderr
  [line] = ended.stderr.splitlines()
  assert line.startswith('error: the table is missing (while grading Example(')


OWN = """
import dataclasses
from r1jax.tasks.task import Example, Grade, Outcome

@dataclasses.dataclass
class Own:
  name: str = 'own'
  def examples(self, split, start, count): return [Example('', '')] * count
  def grade(self, example, completion):
    return completion and Grade(Outcome.WRONG, float(completion))

def task():
  return Own()
"""


@pytest.mark.parametrize(
  'text, said',
  [
    ('nan', 'the reward nan; expected a finite number'),
    ('inf', 'the reward inf; expected a finite number'),
    ('', "gave ''; expected a Grade"),
  ],
)
def test_what_is_no_grade_is_an_error_of_any_task(tmp_path, text, said):
  path = tmp_path / 'own.py'
  path.write_text(OWN)
  with Pool(functools.partial(make, File(str(path))), workers=1) as pool:
    assert pool.map([(Example('', ''), '0.5')])[0].reward == 0.5
    with pytest.raises(UserError, match=said):
      pool.map([(Example('', ''), text)])


def test_contract_16_many_troubles_in_one_batch(pool):
  kinds = ['x', 'exit', 'raise', 'sleep', 'x', 'regex', 'exit', 'x']
  outcomes = {
    'x': Outcome.CORRECT,
    'exit': Outcome.UNPARSEABLE,
    'raise': Outcome.UNPARSEABLE,
    'sleep': Outcome.TIMEOUT,
    'regex': Outcome.TIMEOUT,
  }
  assert [g.outcome for g in pool.map([call(k) for k in kinds])] == [outcomes[k] for k in kinds]


def test_contract_16_nothing_is_left_behind(build):
  before = set(children())
  with Pool(build, workers=2, seconds=LIMIT) as pool:
    assert pool.map([call('x')])[0].outcome is Outcome.CORRECT
    groups = {w.process.pid for w in pool._workers}
    assert pool.map([call('child')])[0].outcome is Outcome.TIMEOUT
    groups |= {w.process.pid for w in pool._workers}
  assert len(groups) == 3
  assert set(children()) == before
  # A worker's own child is reaped by init, some time later.
  assert not [p for p in processes() if p.group in groups and p.state != 'Z']
  with pytest.raises(RuntimeError, match='closed'):
    pool.map([call('x')])


def test_a_worker_that_died_while_idle_is_replaced(pool):
  pool.map([call('x')])
  for worker in pool._workers:
    worker.process.kill()
    worker.process.wait()
  assert {g.outcome for g in pool.map([call('x')] * 9)} == {Outcome.CORRECT}


def test_texts_larger_than_a_pipe(pool):
  big = 'y' * 10**6
  assert {g.outcome for g in pool.map([call(big, gold=big)] * 8)} == {Outcome.CORRECT}


def test_workers_hold_no_jax_whatever_the_main_module_imports(build, tmp_path):
  script = tmp_path / 'main.py'
  script.write_text(
    'import jax, functools\n'
    'from r1jax.rewards.pool import Pool\n'
    'from r1jax.tasks.file import File\n'
    'from r1jax.tasks.make import make\n'
    'from r1jax.tasks.task import Example\n'
    f'with Pool(functools.partial(make, {build.args[0]!r}), workers=1) as pool:\n'
    "  [grade] = pool.map([(Example('', ''), '<think></think><answer>modules</answer>')])\n"
    'print(grade.outcome.value)\n'
  )
  done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
  assert done.stdout == 'correct\n', done.stderr


def test_what_cannot_start_is_one_clear_error(tmp_path):
  with (
    Pool(functools.partial(make, File(str(tmp_path / 'none.py'))), workers=1) as pool,
    pytest.raises(UserError, match='no Python file at'),
  ):
    pool.map([call('x')])
  with pytest.raises(UserError, match='expected a function of an importable module'):
    Pool(lambda: None)
  with pytest.raises(UserError, match='workers=0'):
    Pool(make, workers=0)
