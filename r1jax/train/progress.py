"""Progress on a terminal: one line that is rewritten, or a plain line now and then in a log.

    grpo  37/90  41%  eta 1m22s  8.1k tok/s  reward 0.62  length 21.3

The time left is the steps left times the mean time of the latest steps, compilation not counted:
the first step of a stage would otherwise promise hours.
"""

import collections
import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self, TextIO

WINDOW = 20  # updates in the mean
ERASE = '\x1b[K'  # to the end of the line


class Progress:
  """The steps of one stage, told to a stream.

  total: the last step; start: the step already reached (a resumed run).
  every_s: a stream that is no terminal gets a line at most this often.
  """

  def __init__(
    self,
    stage: str,
    total: int,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    start: int = 0,
    every_s: float = 10.0,
  ):
    self.stage, self.total, self.every_s = stage, total, every_s
    self._stream, self._clock = stream or sys.stderr, clock
    self._tty = self._stream.isatty()
    self._step, self._last = start, clock()
    self._recent = collections.deque(maxlen=WINDOW)  # (seconds, steps)
    self._excluded = 0.0  # seconds of compilation since the last update
    self._pending = ''  # a line not printed yet, or on a terminal one not ended yet
    self._printed = None  # when the last plain line was printed

  def update(self, step: int, **values: float) -> None:
    """Tells that `step` steps are done; values named tokens_per_s, reward, … follow."""
    now = self._clock()
    if step > self._step:
      self._recent.append((max(now - self._last - self._excluded, 0.0), step - self._step))
      self._step, self._last, self._excluded = step, now, 0.0
    self._pending = line(self.stage, step, self.total, self.eta(), values)
    if self._tty:
      width = shutil.get_terminal_size().columns - 1
      self._write(f'\r{self._pending[:width]}{ERASE}')
    elif self._printed is None or now - self._printed >= self.every_s or step >= self.total:
      self._printed = now
      self._end_line()

  def eta(self) -> float | None:
    """Seconds left, None before the first step is done."""
    steps = sum(n for _, n in self._recent)
    if not steps:
      return None
    return sum(s for s, _ in self._recent) / steps * max(self.total - self._step, 0)

  @contextlib.contextmanager
  def compiling(self, what: str) -> Iterator[None]:
    """Says that `what` compiles and how long it took; that time is left out of the estimate."""
    self._end_line()
    begin = self._clock()
    self._write(f'{self.stage}  compiling {what} …' + ('' if self._tty else '\n'))
    took = None
    try:
      yield
      took = self._clock() - begin
    finally:
      self._excluded += self._clock() - begin
      if took is not None:
        again = f'\r{ERASE}' if self._tty else ''
        self._write(f'{again}{self.stage}  compiled {what} in {duration(took)}\n')
      elif self._tty:
        self._write('\n')

  def note(self, text: str) -> None:
    """Prints a line of its own: 'sft  evaluating after SFT'."""
    self._end_line()
    self._write(f'{self.stage}  {text}\n')

  def close(self) -> None:
    """Ends the line; in a log, prints the last update if it was held back."""
    self._end_line()

  def _end_line(self) -> None:
    if self._pending:
      self._write('\n' if self._tty else self._pending + '\n')
      self._pending = ''

  def _write(self, text: str) -> None:
    self._stream.write(text)
    self._stream.flush()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


class Megabytes:
  """Progress in MB of what is called `what`, with the rate; a new name begins a new line.

  stream: None tells nothing.
  """

  def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic):
    self._stream, self._clock, self._line = stream, clock, None

  def __call__(self, told: tuple[str, int, int]) -> None:
    """Takes (what, bytes done, bytes in all); the first one of a name tells where it begins."""
    what, done, total = told
    if self._stream is None:
      return
    whole = max(total // 10**6, 1)
    step = whole if done == total else done // 10**6
    if self._line is None or self._line.stage != what:
      self.close()
      self._line = Progress(what, whole, self._stream, self._clock, step)
      self._first, self._began = done, self._clock()
    seconds = max(self._clock() - self._began, 1e-9)
    self._line.update(step, mb_per_s=(done - self._first) / seconds / 1e6)

  def close(self) -> None:
    """Ends the line."""
    if self._line is not None:
      self._line.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def line(stage: str, step: int, total: int, eta: float | None, values: Mapping[str, float]) -> str:
  """'grpo  37/90  41%  eta 1m22s  8.1k tok/s  reward 0.62'."""
  percent = 100 * step // total if total else 100
  parts = [stage, f'{step}/{total}', f'{percent}%']
  if eta is not None and step < total:
    parts.append(f'eta {duration(eta)}')
  for name, value in values.items():
    parts.append(f'{number(value)} tok/s' if name == 'tokens_per_s' else f'{name} {number(value)}')
  return '  '.join(parts)


def duration(seconds: float) -> str:
  """'6.2 s', '42s', '1m22s', '2h05m', '3d04h'."""
  if seconds < 9.95:
    return f'{seconds:.1f} s'
  s = round(seconds)
  for big, small, units in ((86400, 3600, 'dh'), (3600, 60, 'hm'), (60, 1, 'ms')):
    if s >= big:
      return f'{s // big}{units[0]}{s % big // small:02d}{units[1]}'
  return f'{s}s'


def number(x: float) -> str:
  """Three digits that matter: '8.1k', '2.4M', '123', '21.3', '0.62', '0.031', '1.5e-04', 'nan'."""
  if not math.isfinite(x):
    return str(float(x))
  size = abs(x)
  for scale, unit in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    # 999.96 is 1.0k: the unit is chosen for the number as it will be shown.
    if size >= scale * 0.9995:
      return f'{x / scale:.1f}{unit}'
  if isinstance(x, int) or size >= 99.95:
    return f'{x:.0f}'
  for least, digits in ((9.995, 1), (0.0995, 2), (0.00995, 3)):
    if size >= least:
      return f'{x:.{digits}f}'
  return f'{x:.1e}' if size else '0.00'
