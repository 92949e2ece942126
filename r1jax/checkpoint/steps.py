"""A directory of step folders: which are complete, what is wrong with them, which may go.

A step folder without `checkpoint.json` is an interrupted save: it is named in messages, removed
when it stands in the way, and never taken for a checkpoint. Removal begins with the marker. A step
that was set aside is `40.damaged`: no step, and only another of that name removes it.
"""

import contextlib
import time

from etils import epath

from r1jax.checkpoint import marker
from r1jax.checkpoint.errors import CheckpointError, Damaged, reason
from r1jax.checkpoint.marker import MARKER


class Steps:
  """The step folders below one directory."""

  def __init__(self, directory: epath.PathLike):
    self.directory = epath.Path(directory).expanduser().resolve()

  def folder(self, step: int) -> epath.Path:
    """Where a step is, or would be."""
    return self.directory / str(step)

  def complete(self) -> list[int]:
    """The steps with a marker, ascending."""
    return [step for step in self._all() if (self.folder(step) / MARKER).exists()]

  def record(self, step: int | None) -> dict:
    """checkpoint.json of a complete step, the newest for None; raises when there is none."""
    steps = self.complete()
    if step is None and not steps:
      raise CheckpointError(f'no complete checkpoint in {self.directory}: {self._what_is_there()}')
    step = steps[-1] if step is None else step
    if step not in steps:
      raise CheckpointError(f'no complete step {step} in {self.directory}: {self._what_is_there()}')
    try:
      return marker.read(self.folder(step), step)
    except ValueError as error:
      raise self.damaged(step, f'{MARKER}: {reason(error)}') from error
    except OSError as error:
      raise self.unreadable(step, error) from error

  def remove(self, step: int) -> None:
    """Removes a step, complete or not."""
    (self.folder(step) / MARKER).unlink(missing_ok=True)
    if self.folder(step).exists():
      self.folder(step).rmtree()

  def set_aside(self, step: int) -> None:
    """Renames a step to '<step>.damaged', in place of an older one of that name."""
    folder = self.folder(step)
    aside = folder.parent / f'{folder.name}.damaged'
    try:
      if folder.exists():
        if aside.exists():
          aside.rmtree()
        folder.rename(aside)
    except OSError as error:
      raise CheckpointError(
        f'damaged checkpoint {folder} cannot be set aside ({reason(error)}); mend that and start '
        'the same command again'
      ) from error

  def remove_unfinished(self, step: int) -> None:
    """As far as the disk lets; what stays is no checkpoint, and the next save removes it."""
    for _ in range(10):
      if (self.folder(step) / MARKER).exists() or not self.folder(step).exists():
        return
      with contextlib.suppress(OSError):
        self.folder(step).rmtree()
      time.sleep(0.05)  # writes that were under way when another failed may still make files

  def drop_old(self, keep: int, keep_every: int | None) -> None:
    """Removes complete steps that need not be kept, and older interrupted ones."""
    steps = self.complete()
    kept = {step for step in steps if keep_every and step % keep_every == 0}
    kept |= set(steps[-keep:])
    for step in self._all():
      if step not in kept and step < steps[-1]:
        try:
          self.remove(step)
        except OSError as error:
          raise CheckpointError(
            f'old checkpoint {self.folder(step)} cannot be removed ({reason(error)}); mend that '
            f'and start the same command again; {self.newest()}'
          ) from error

  def newest(self) -> str:
    """Half a sentence for messages."""
    steps = self.complete()
    return (
      f'the newest complete checkpoint is step {steps[-1]}' if steps else 'none is complete yet'
    )

  def damaged(self, step: int, why: str) -> Damaged:
    """The error of a complete step whose bytes are wrong; true for who stops and who goes on."""
    others = [other for other in self.complete() if other != step]
    mend = (
      f'step {others[-1]} can be used instead'
      if others
      else 'no other is complete: train again in another workdir'
    )
    return Damaged(f'checkpoint step {step} in {self.directory} is damaged ({why}); {mend}')

  def unreadable(self, step: int, error: Exception) -> CheckpointError:
    """The error of a step that the system does not let be read."""
    return CheckpointError(
      f'checkpoint step {step} in {self.directory} cannot be read ({reason(error)}); mend that '
      'and start the same command again'
    )

  def _all(self) -> list[int]:
    if not self.directory.exists():
      return []
    return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

  def _what_is_there(self) -> str:
    if not self.directory.exists():
      return 'the folder does not exist; check the path'
    whole, partial = self.complete(), sorted({*self._all()} - {*self.complete()})
    said = f'it holds {_listed(whole)}' if whole else 'it holds none'
    if partial:
      said += f' and interrupted saves of {_listed(partial)} (no {MARKER})'
    return said + ('; ask for one of the complete ones' if whole else '; train first')


def _listed(steps: list[int]) -> str:
  return 'step ' + ', '.join(map(str, steps))
