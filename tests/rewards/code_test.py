"""Programs are judged right, cannot forge a verdict, and cost no more than their limit."""

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.rewards import code, inside
from r1jax.rewards.code import same_output, same_value, verify
from r1jax.rewards.outcome import Outcome
from r1jax.rewards.pool import Pool
from r1jax.rewards.sandbox import Bubblewrap, Limits, Result
from r1jax.tasks.file import File
from r1jax.tasks.make import make
from r1jax.tasks.task import Example

Cases = code.Tests  # under its own name pytest would collect it
CORRECT, WRONG, UNPARSEABLE, TIMEOUT = Outcome
LIMITS = Limits(cpu=1, wall=15, memory=512 << 20, processes=16, output=1 << 16, disk=16 << 20)
ADD = Cases(stdin=(('1 2\n', '3\n'), ('40 2\n', '42\n')))
TWICE = Cases(calls=(('f(2)', '4'), ('f("ab")', "'abab'")))


@pytest.fixture
def compilers(box):
  """The sandbox where it has gcc and g++."""
  if not all(map(os.path.exists, ('/usr/bin/gcc', '/usr/bin/g++'))):
    pytest.skip('no gcc or no g++')
  return box


@pytest.mark.parametrize(
  'program, outcome',
  [
    ('a, b = map(int, input().split())\nprint(a + b)', CORRECT),
    ('import sys\ndata = sys.stdin.read().split()\nprint(sum(map(int, data)))\nexit()', CORRECT),
    ('print(sum(map(int, open(0).read().split())), "  \\n\\n")', CORRECT),
    ('if __name__ == "__main__":\n  print(sum(map(int, input().split())))', CORRECT),
    ('import threading\n'
     'def main(): print(sum(map(int, input().split())))\n'
     'threading.Thread(target=main).start()', CORRECT),
    ('import atexit\natexit.register(lambda: print(sum(map(int, input().split()))))', CORRECT),
    ('import dataclasses, math, collections, itertools, heapq, bisect, functools, re, decimal\n'
     '@dataclasses.dataclass\nclass A:\n  x: int\n'
     'print(A(sum(map(int, input().split()))).x)', CORRECT),
    ('print(3)', WRONG),
    ('print(sum(map(int, input().split())), "é")', WRONG),
    ('', WRONG),
    ('a, b = map(int, input().split())\nprint(a + b)\nraise SystemExit(1)', WRONG),
    ('print(1 / 0)', WRONG),
    ('print(', UNPARSEABLE),
    ('   \n', UNPARSEABLE),
    ('x\0', UNPARSEABLE),
    ('(' * 100_000, UNPARSEABLE),
    ('x = 1\n' * 100_000, UNPARSEABLE),
  ],
)  # fmt: skip
def test_python_by_stdin(box, program, outcome):
  program = program or 'pass'
  assert verify(program, ADD, 'python', LIMITS, box) is outcome


@pytest.mark.parametrize(
  'program, outcome',
  [
    ('def f(x): return 2 * x', CORRECT),
    ('def f(x):\n  print("noise")\n  return x * 2\nif False: input()', CORRECT),
    ('def f(x): return x', WRONG),
    ('def f(x): return str(2 * x)', WRONG),
    ('def g(x): return 2 * x', WRONG),
    ('def f(x): raise ValueError', WRONG),
    ('def f(x):\n  while True: 0', TIMEOUT),
    ('def f(x):\n  if x == 2: return 5\n  while True: 0', WRONG),
    ('def f(x) return', UNPARSEABLE),
  ],
)
def test_python_by_calls(box, program, outcome):
  assert verify(program, TWICE, 'python', LIMITS, box) is outcome


SUM = {
  'c': '#include <stdio.h>\nint main(void) {{ int a, b; scanf("%d%d", &a, &b); {} }}',
  'cpp': '#include <iostream>\nint main() {{ int a, b; std::cin >> a >> b; {} }}',
}  # fmt: skip


@pytest.mark.parametrize(
  'language, body, outcome',
  [
    ('c', 'printf("%d\\n", a + b);', CORRECT),
    ('c', 'printf("%d\\n", a - b);', WRONG),
    ('c', 'printf("%d\\n", a + b); return 1;', WRONG),
    ('c', '*(volatile int *)0 = 1;', WRONG),
    ('c', 'for (;;) printf("x");', WRONG),
    ('c', 'for (volatile int i = 0;; i++) {}', TIMEOUT),
    ('c', 'printf("%d\\n", a + ', UNPARSEABLE),
    ('cpp', 'std::cout << a + b;', CORRECT),
    ('cpp', 'std::cout << a - b;', WRONG),
    ('cpp', 'std::cout << a + ;', UNPARSEABLE),
  ],
)
def test_compiled_by_stdin(compilers, language, body, outcome):
  assert verify(SUM[language].format(body), ADD, language, LIMITS, compilers) is outcome


def test_the_check_knows_each_language(compilers):
  for language in ('python', 'c', 'cpp'):
    code.check(language, compilers)


class Broken:
  """A sandbox whose runs all end alike."""

  def __init__(self, result):
    self.run = lambda *_: result


def test_what_cannot_be_run_is_an_error_and_no_verdict():
  missing = Broken(Result('exit', 127, b'', b'prlimit: failed to execute /usr/bin/python3'))
  with pytest.raises(UserError, match='lacks /usr/bin/python3'):
    verify('1', ADD, 'python', LIMITS, missing)
  compiler = Broken(Result('exit', 0, b'127 0\n', b''))
  with pytest.raises(UserError, match='gcc'):
    verify('1', ADD, 'c', LIMITS, compiler)
  with pytest.raises(UserError, match='found wrong by'):
    code.check('c', Broken(Result('exit', 0, b'0 0\n0 1\n7', b'')))
  with pytest.raises(UserError, match='no program'):
    verify('1', ADD, 'python', LIMITS, Bubblewrap(path='no-such-bwrap'))
  for tests in ({}, {'stdin': (('', ''),), 'calls': (('', ''),)}):
    with pytest.raises(UserError, match='expected tests in one of the two'):
      Cases(**tests)


CHEATS = {
  'leave early': 'import sys\nsys.exit(0)',
  'leave at once': 'import os\nos._exit(0)',
  'print the verdict': 'print("correct")\nprint("PASSED")\nprint(True)',
  'be equal to all': """
class Any:
  def __eq__(self, other): return True
  def __repr__(self): return ''
def f(x): return Any()""",
  'patch what checks': """
import builtins, sys
builtins.repr = lambda x: '4'
sys.modules['__main__'].repr = builtins.repr
def f(x): return 5""",
  'write frames': """
import os
for d in (1, 3):
  try: os.write(d, b'0 1\\n4' * 9 + b'0 0\\n' * 9)
  except OSError: 0
os._exit(0)""",
  'write frames to all descriptors and kill the harness': """
import os
for d in range(256):
  try: os.write(d, b'0 0\\n0 2\\n3\\n0 3\\n42\\n')
  except OSError: 0
os.kill(os.getppid(), 9)""",
  'rewrite the harness': """
for name in ('inside.py', 'answer.py'):
  open('/tmp/' + name, 'w').write('print("0 0")')""",
  'search the folder for what is expected': """
import glob
for name in glob.glob('/tmp/*'):
  text = open(name).read()
  if '42' in text.replace("'42'", ''): print(42)
def f(x): return '4'""",
  'search memory for what is expected': """
import gc
held = [o for o in gc.get_objects() if type(o) in (list, tuple)]
found = [o for o in held if {'42\\n', "'abab'"} & {*map(str, o)}]
print(42 if found else 0)""",
  'leave a process that answers': """
import os, time
if os.fork() == 0:
  os.setsid()
  time.sleep(0.1)
  print(42, flush=True)
  os._exit(0)
os._exit(0)""",
}  # fmt: skip


@pytest.mark.parametrize('name', CHEATS)
@pytest.mark.parametrize('tests', [ADD, TWICE], ids=['stdin', 'calls'])
def test_no_verdict_can_be_forged(box, name, tests):
  # Only the second test of each decides: the first might be guessed.
  assert verify(CHEATS[name], tests, 'python', LIMITS, box) is WRONG


def test_expected_values_never_enter_the_sandbox():
  seen = []

  class Spy:
    def run(self, command, files, stdin, limits):
      seen.append(repr((command, files, stdin, limits)))
      return Result('exit', 0, b'0 0\n', b'')

  for tests in (Cases(stdin=(('in', 'hush1'),)), Cases(calls=(('f()', 'hush2'),))):
    for language in ('python', 'c', 'cpp'):
      assert verify('x', tests, language, LIMITS, Spy()) is WRONG
  assert len(seen) == 6 and not any('hush' in text for text in seen)


TROUBLES = {
  'sleep': ('import time\ntime.sleep(1000)', TIMEOUT),
  'spin': ('while True: 0', TIMEOUT),
  'spin and ignore signals': (
    'import signal\nfor s in {*range(1, 32)} - {9, 19}: signal.signal(s, signal.SIG_IGN)\n'
    'while True: 0', (WRONG, TIMEOUT)),
  'stop itself': ('import os\nos.kill(os.getpid(), 19)', TIMEOUT),
  'fork bomb': ('import os\nwhile True:\n  try: os.fork()\n  except OSError: 0', TIMEOUT),
  'crash': ('import os\nos.abort()', WRONG),
  'memory': ('x = [bytearray(10 << 20) for _ in range(1000)]', WRONG),
  'disk': ('f = open("x", "wb")\nwhile True: f.write(bytes(1 << 20))', WRONG),
  'output': ('while True: print("x" * 1000)', WRONG),
  'recursion': ('import sys\nsys.setrecursionlimit(10**9)\nf = lambda x: f(x)\nf(1)', WRONG),
  'a daemon': (
    'import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(1000)\nprint(3)', WRONG),
}  # fmt: skip


def mine():
  """Children of this process, zombies too."""
  return pathlib.Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text().split()


@pytest.mark.parametrize('name', TROUBLES)
def test_contract_16_a_program_that_hangs_or_crashes_costs_its_limit_and_nothing_else(box, name):
  program, outcome = TROUBLES[name]
  # Only what has to run out of time gets little of it: a slow machine judges the rest alike.
  wall = LIMITS.wall if outcome is WRONG else 1.0
  before, limits = mine(), dataclasses.replace(LIMITS, wall=wall, memory=128 << 20)
  begin = time.monotonic()
  got = verify(program, ADD, 'python', limits, box)
  assert time.monotonic() - begin < limits.wall + 1.5
  assert got in (outcome if isinstance(outcome, tuple) else (outcome,))
  assert mine() == before


TASK = """
from r1jax.rewards.code import Tests, verify
from r1jax.rewards.outcome import Outcome
from r1jax.rewards.sandbox import Bubblewrap, Limits
from r1jax.tasks.file import from_functions
from r1jax.tasks.task import Example

BOX = Bubblewrap(uid={uid})
BOX.check()

def grade(example, answer):
  tests = Tests(stdin=(('1', '1'),))
  return verify(answer, tests, 'python', Limits(wall=60.0), BOX) is Outcome.CORRECT

def task():
  return from_functions('code', lambda seed: Example('', str(seed)), grade)
"""


def test_contract_16_a_worker_that_is_killed_takes_its_sandbox_along(box, tmp_path):
  uid = 64_915 if os.geteuid() == 0 else None
  (tmp_path / 'task.py').write_text(TASK.format(uid=uid))
  call = lambda text: (Example('', '', ''), f'<think></think><answer>{text}</answer>')

  def alive():
    found = []
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
      with contextlib.suppress(OSError):  # it ended while we looked
        ours = folder.stat().st_uid == uid or b'bwrap' in (folder / 'cmdline').read_bytes()
        found += [folder.name] if ours and folder.stat().st_uid == (uid or os.getuid()) else []
    return found

  before = mine()
  with Pool(functools.partial(make, File(str(tmp_path / 'task.py'))), 1, seconds=2.0) as pool:
    grades = pool.map([call('print(1)'), call('import time\ntime.sleep(50)'), call('print(2)')])
  assert [g.outcome for g in grades] == [CORRECT, TIMEOUT, WRONG]
  deadline = time.monotonic() + 3
  while alive() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not alive() and mine() == before


@pytest.mark.parametrize(
  'expected, given, same',
  [
    ('1 2\n3\n', '1  2 \n3\n\n', True),
    ('1 2\n3\n', '1 2 3\n', False),
    ('1\n\n2', '1\n2', False),
    ('0.5', '.5', True),
    ('0.5', '0.5000001', True),
    ('0.5', '0.50001', False),
    ('1e9', '1000000001', True),
    ('3', '3.0', False),
    ('1000000', '1000000.4', False),
    ('0.5', 'nan', False),
    ('0.5', '1_0', False),
    ('0.5', '٠.٥', False),
    ('1e999', 'inf', False),
    ('Yes', 'YES', False),
    ('', '\n', True),
    ('', 'x', False),
  ],
)
def test_outputs(expected, given, same):
  assert same_output(expected, given) is same


@pytest.mark.parametrize(
  'expected, given, same',
  [
    ('[1, 2]', '[1,2]', True),
    ('[1, 2]', '[12]', False),
    ("'a b'", "'ab'", False),
    ("'0.5'", "'0.50'", False),
    ("{'x': 0.5}", "{'x': 0.5000000001}", True),
    ('[0.1, -2]', '[0.1, 2]', False),
    ('-0.5', '-.5', False),
    ('(1,)', '1', False),
    ('True', '1', False),
    ('2.0', '2', True),
    ('2', '2.0', False),
    ('[1]', '[1] or 4', False),
  ],
)
def test_values(expected, given, same):
  assert same_value(expected, given) is same


VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
  lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_a_value_is_its_own_repr_however_it_is_spaced(value):
  text = repr(value)
  assert same_value(text, text) and same_value(text, f' {text}\n')
  assert not same_value(text, f'{text} 1') and not same_value(repr([value, 1]), repr([value, 2]))


@given(st.floats(-1e6, 1e6), st.floats(-1e-5, 1e-5))
def test_decimals_are_compared_by_their_distance(x, by):
  near = abs(by) <= 1e-6 * max(1, abs(x), abs(x + by))
  if math.isclose(abs(by), 1e-6 * max(1, abs(x)), rel_tol=1e-3):
    return  # the edge, where rounding decides
  assert same_output(f'{x:.12f}', f'{x + by:.12f}') is near


@pytest.mark.parametrize(
  'text', ["'" + "\\'" * 200_000, '"\'' * 200_000, '-' * 400_000, '9' * 400_000]
)
def test_no_text_takes_long_to_compare(text):
  begin = time.monotonic()
  assert not same_value('[0.5]', text) and not same_output('0.5', text)
  assert time.monotonic() - begin < 2


@given(st.lists(st.tuples(st.integers(-64, 255), st.binary())), st.binary())
def test_frames_come_back_and_noise_is_no_frame(frames, noise):
  data = b''.join(inside.frame(*frame) for frame in frames)
  assert list(code._frames(data)) == frames
  assert list(code._frames(data + b'x' + noise)) == frames
  assert all(len(part) <= len(noise) for _, part in code._frames(noise))


@given(st.binary())
def test_no_output_of_the_sandbox_is_correct_by_chance_or_raises(noise):
  sandbox = Broken(Result('exit', 0, noise, b''))
  assert verify('x', TWICE, 'python', LIMITS, sandbox) in (WRONG, UNPARSEABLE)


@pytest.mark.parametrize(
  'answer, found',
  [
    ('print(1)', 'print(1)'),
    ('Text.\n```python\nprint(1)\n```\nMore.', 'print(1)\n'),
    ('```\na\n```\n\n```c\nb\n```\n', 'b\n'),
    ('```py\na\n```\n```py\nb', 'a\n'),
    ('```py\na', '```py\na'),
    ('  ```py\n  a\n  ```', '  a\n'),
    ('```py\ns = "```"\n```', 's = "```"\n'),
    ('```\n```', ''),
  ],
)
def test_the_last_closed_block_is_the_program(answer, found):
  assert code.extract(answer) == found


def test_the_harness_that_is_sent_needs_no_package():
  assert 'r1jax' not in inspect.getsource(inside).replace('r1jax.rewards', '')
