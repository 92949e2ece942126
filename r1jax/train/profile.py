"""A window of steps under jax's profiler: what ran when, on host and devices.

    '100:3'            steps 100, 101 and 102
    workdir/profile/   plugins/profile/<time>/<host>.xplane.pb, for XProf, TensorBoard or Perfetto

A window opens once in a run. One that a resumed run starts inside of begins there; one that an
exception or the end of a stage cuts short is written as far as it got. Cost: nothing outside the
window; inside it the steps are slower, and the trace takes megabytes a step.
"""

import dataclasses
import pathlib
import re
from typing import Self

import jax

from r1jax.core.errors import UserError

FOLDER = 'profile'


@dataclasses.dataclass(frozen=True)
class Window:
  """The steps start … start + steps − 1."""

  start: int
  steps: int

  def __contains__(self, step: int) -> bool:
    return self.start <= step < self.start + self.steps


def window(text: str) -> Window:
  """Reads 'START:STEPS'."""
  match = re.fullmatch(r'(\d+):(\d+)', text.strip())
  if not match or not int(match[2]):
    raise UserError(
      f"profile window: got '{text}', expected START:STEPS, such as 100:3 for steps 100, 101, 102"
    )
  return Window(int(match[1]), int(match[2]))


class Profiler:
  """Traces the window's steps: `before(step)` and `after(step)` around each, in a `with` block.

  A step must have ended when `after` is called (its metrics fetched): jax does not wait. None in
  place of a window traces nothing.
  """

  def __init__(self, window: Window | None, workdir: str | pathlib.Path):
    self._window, self.folder = window, pathlib.Path(workdir) / FOLDER
    self._tracing = False

  def before(self, step: int) -> None:
    """Begins the trace when the step is in the window."""
    if self._window and step in self._window and not self._tracing:
      jax.profiler.start_trace(self.folder)
      self._tracing = True

  def after(self, step: int) -> None:
    """Writes the trace when the step is the window's last."""
    if self._tracing and step + 1 not in self._window:
      self._stop()

  def cut(self) -> None:
    """Writes the trace as far as it got, at the end of a stage."""
    if self._tracing:
      self._stop()

  def _stop(self) -> None:
    """Writes the trace; the window does not open again."""
    self._window, self._tracing = None, False
    jax.profiler.stop_trace()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.cut()
