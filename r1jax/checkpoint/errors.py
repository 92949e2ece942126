"""What can be wrong with a checkpoint, in one line, and whether it is the bytes that are at fault.

TensorStore reports what the operating system said inside its own messages:

    RESOURCE_EXHAUSTED: Error writing … No space left on device [os_error_code='28']
    DATA_LOSS: Error reading … CRC-32C checksum verification failed

so the reason of a failed write is the system's words, and a failed read is damage only when neither
the system nor a service had an objection (too many open files, no permission, no answer: the bytes
may be whole). The name of the status is left out for INVALID_ARGUMENT.
"""

import errno
import os
import re

from r1jax.core.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOST = (errno.ENOENT, errno.EIO)  # EIO may pass (NFS): what is damaged is set aside, not deleted
WRONG = (None, 'DATA_LOSS', 'FAILED_PRECONDITION', 'NOT_FOUND', 'OUT_OF_RANGE')
TENSORSTORE = re.compile(r'(?:([A-Z]+(?:_[A-Z]+)*): )?Error (?:opening|reading|writing) ')


class CheckpointError(UserError):
  """A checkpoint is absent, partial, damaged, not the one asked for, or could not be written."""


class Damaged(CheckpointError):  # noqa: N818
  """A complete checkpoint whose bytes are not those that were written; another may be whole."""


def reason(error: BaseException) -> str:
  """The system's own words, or the text of a `UserError`, or else the type and the first line."""
  if isinstance(error, UserError):
    return str(error)
  if code := _code(error):
    return os.strerror(code)
  line = (str(error).splitlines() or [''])[0]
  return f'{type(error).__name__}: {line[:160]}'


def expected(error: BaseException) -> bool:
  """Whether the system, the disk or the bytes are at fault; anything else is a bug."""
  return isinstance(error, (UserError, OSError)) or _tensorstore(error) is not None


def remedy(why: str) -> str:
  """What to do about a write that failed for this reason."""
  full = any(os.strerror(code) in why for code in NO_SPACE)
  return 'free space' if full else 'mend that'


def is_damage(error: BaseException) -> bool:
  """Whether a failed read means that the bytes are wrong or gone, rather than out of reach."""
  if code := _code(error):
    return code in LOST
  found = _tensorstore(error)
  return found is not None and found[1] in WRONG and 'Error reading ' in str(error)


def _code(error: BaseException) -> int | None:
  if isinstance(error, OSError):
    return error.errno
  found = _tensorstore(error) and re.search(r"os_error_code='(\d+)'", str(error))
  return int(found[1]) if found else None


def _tensorstore(error: BaseException) -> re.Match[str] | None:
  """Its errors are of Python's own types; jax's, such as out of device memory, are not."""
  return TENSORSTORE.match(str(error)) if isinstance(error, (ValueError, LookupError)) else None
