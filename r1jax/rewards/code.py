"""Does a program pass its tests? Python, C and C++ in a sandbox; compared outside of it.

    CORRECT      every test passed
    WRONG        another output or value, a status other than 0, a crash, too much memory or output
    UNPARSEABLE  no code, or code that does not compile
    TIMEOUT      over the limit of time, at the first test that did not pass

The program is the last fenced block of the answer, or all of it. All its tests run in one start of
the sandbox, in order, up to the first that ends badly: each stdin test in a process of its own
(`limits.cpu` binds each, `limits.wall` all together with the compiler), the calls together in one
more. The sandbox gets inputs and expressions and gives back texts; the expected ones stay here. So
an early exit, a patched checker or a forged marker is a wrong text. One thing does give answers
away: a call that holds its own expected value, such as `f(2) == 4`; write `f(2)` and '4'.

Values are compared as Python reprs, of C and C++ values too: True, 'text', [1, 2], (1, 'a'),
{1: 2}. Where an expected number is written as a decimal, 1e-6 is close enough, absolute or
relative. Cost, measured: 50 ms for a trivial Python program, 70 ms for C, 0.5 s for C++ (1 s with
calls), nearly all of it starts and compilers.
"""

import dataclasses
import inspect
import math
import re
import signal
from collections.abc import Iterator, Sequence
from typing import Literal

from r1jax.core.errors import UserError
from r1jax.rewards import inside
from r1jax.rewards.outcome import Outcome
from r1jax.rewards.sandbox import Limits, Result, Sandbox
from r1jax.rewards.show import main_file

Language = Literal['python', 'c', 'cpp']
# Longer texts are no answers.
MAX_CHARS = 200_000
TOLERANCE = 1e-6

_PYTHON = ('/usr/bin/python3', '-I', '-S', '-E', '-X', 'utf8', '-W', 'ignore', 'inside.py')
_BUILD = {
  'c': ('/usr/bin/gcc', '-O2', '-std=gnu17', '-w', 'main.c', '-o', 'program', '-lm'),
  'cpp': ('/usr/bin/g++', '-O2', '-std=gnu++20', '-w', 'main.cpp', '-o', 'program'),
}
_HELLO = {
  'python': 'print(input())',
  'c': '#include <stdio.h>\nint main() { puts("1"); }',
  'cpp': '#include <iostream>\nint main() { std::cout << 1; }',
}
# A quote that nothing closes reaches to the end, so that no text is scanned twice.
_TOKEN = re.compile(
  r"""'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?|(?:(?<!\w)-)?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"""
  r'|\w+|\S',
  re.DOTALL,
)
_DECIMAL = re.compile(r'[+-]?(?=\.?[0-9])[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]{1,4})?')
_HEADER = re.compile(rb'(-?[0-9]{1,4}) ([0-9]{1,10})\n')
_FRAME = 32  # at most the bytes of a header
_OVER = -signal.SIGXCPU.value
_MISSING = 127  # the status of a command that is not there


@dataclasses.dataclass(frozen=True)
class Tests:
  """Either `stdin`: (input, expected output), or `calls`: (expression, repr of expected value)."""

  stdin: tuple[tuple[str, str], ...] = ()
  calls: tuple[tuple[str, str], ...] = ()

  def __post_init__(self) -> None:
    if bool(self.stdin) == bool(self.calls):
      raise UserError(
        f'Tests with {len(self.stdin)} in stdin and {len(self.calls)} in calls; expected tests in '
        'one of the two'
      )


def check(language: Language, sandbox: Sandbox) -> None:
  """Raises a UserError where programs of the language cannot be run; call it before long work."""
  outcome = verify(_HELLO[language], Tests(stdin=(('1', '1'),)), language, Limits(), sandbox)
  if outcome is not Outcome.CORRECT:
    raise UserError(
      f'a program in {language} that is correct was found {outcome.value} by {sandbox}'
    )


def verify(
  answer: str, tests: Tests, language: Language, limits: Limits, sandbox: Sandbox
) -> Outcome:
  """Outcome of the program in the answer; raises only where no program can be run."""
  code = extract(answer)
  if not code.strip() or len(code) > MAX_CHARS:
    return Outcome.UNPARSEABLE
  request = {
    'build': _BUILD.get(language),
    'run': ('./program',) if language in _BUILD else None,
    'stdin': [text for text, _ in tests.stdin],
    'calls': [call for call, _ in tests.calls],
    'cpu': max(1, math.ceil(limits.cpu)),
    'output': limits.output,
  }
  files = _files(code, language, request['calls'])
  room = _FRAME * (2 + len(tests.stdin) + len(tests.calls))
  # The harness bounds each run's processor time; the compiler has all the wall time.
  limits = dataclasses.replace(limits, cpu=limits.wall, output=limits.output + room)
  return _judge(sandbox.run(_PYTHON, files, repr(request).encode(), limits), tests)


def _files(code: str, language: Language, calls: Sequence[str]) -> dict[str, bytes]:
  """What the sandbox's folder holds at the start."""
  extension = 'py' if language == 'python' else language
  files = {'inside.py': inspect.getsource(inside), f'answer.{extension}': code}
  if language != 'python':
    files[f'main.{extension}'] = main_file(calls, language)
  return {name: text.encode(errors='replace') for name, text in files.items()}


def _judge(result: Result, tests: Tests) -> Outcome:
  """Outcome by what came out of the sandbox, which is whatever the program wished to write."""
  frames = list(_frames(result.stdout))
  late = result.end in ('wall', 'cpu')
  if (frames[0][0] if frames else result.status) == _MISSING:
    raise UserError('the sandbox lacks /usr/bin/python3 or the compiler (gcc, g++) that was asked')
  if not frames:
    return Outcome.TIMEOUT if late else Outcome.UNPARSEABLE
  (built, _), *runs = frames
  if built:
    return Outcome.TIMEOUT if built == _OVER else Outcome.UNPARSEABLE
  last = runs[-1][0] if runs else 0
  if tests.calls:
    same, expected = same_value, [value for _, value in tests.calls]
    given = [value for _, value in _frames(runs[0][1])] if runs else []
  else:
    same, expected = same_output, [output for _, output in tests.stdin]
    given = [output for status, output in runs if not status]
  if not all(same(e, g.decode(errors='replace')) for e, g in zip(expected, given)):
    return Outcome.WRONG
  if len(given) == len(expected) and not last:
    return Outcome.CORRECT
  return Outcome.TIMEOUT if late or last == _OVER else Outcome.WRONG


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
  """(status, bytes) of each whole frame, up to the first that is not one."""
  at = 0
  while header := _HEADER.match(data, at):
    status, size = map(int, header.groups())
    at = header.end() + size
    if at > len(data):
      return
    yield status, data[header.end() : at]


def same_output(expected: str, given: str) -> bool:
  """Whether two outputs agree line by line and word by word; blank lines at the end are ignored."""
  want, have = (text.rstrip().split('\n') for text in (expected, given))
  return len(want) == len(have) and all(
    _same_words(a.split(), b.split()) for a, b in zip(want, have)
  )


def same_value(expected: str, given: str) -> bool:
  """Whether two reprs agree but for white space outside quotes and the last digits of decimals."""
  return expected == given or _same_words(_TOKEN.findall(expected), _TOKEN.findall(given))


def _same_words(expected: Sequence[str], given: Sequence[str]) -> bool:
  return len(expected) == len(given) and all(
    a == b or _close(a, b) for a, b in zip(expected, given)
  )


def _close(expected: str, given: str) -> bool:
  """Near a number that is written as a decimal; whole numbers are exact."""
  if expected.lstrip('+-').isdigit() or not all(map(_DECIMAL.fullmatch, (expected, given))):
    return False
  return math.isclose(float(expected), float(given), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def extract(answer: str) -> str:
  """The last fenced block that is closed; the whole text where there is none."""
  found, block = answer, None
  for line in answer.splitlines(keepends=True):
    bare = line.strip()
    if block is None and bare.startswith('```'):
      block = []
    elif block is not None and bare == '```':
      found, block = ''.join(block), None
    elif block is not None:
      block.append(line)
  return found
