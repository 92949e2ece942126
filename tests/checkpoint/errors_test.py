"""What an error says, whose fault it is, and what to do."""

import errno

import jax
import pytest

from r1jax.checkpoint.errors import CheckpointError, Damaged, expected, is_damage, reason, remedy

FULL = ValueError(
  'RESOURCE_EXHAUSTED: Error writing "x/0" in OCDBT database at local file "/a/": Failed writing: '
  '"/a/d/c": Failed to write 7 bytes to file 4: No space left on device [os_error_code=\'28\']'
)
LIMIT = ValueError('OUT_OF_RANGE: Error writing "x/0": File too large [os_error_code=\'27\']')
BAD_CRC = ValueError(
  'DATA_LOSS: Error opening "cast" driver: Error reading local file "/a": CRC-32C'
)
BAD_BYTE = ValueError('Error opening "cast" driver: Error reading local file "/a": Expected 0x0cdb')
GONE = ValueError('NOT_FOUND: Error reading local file "/a" [os_error_code=\'2\']')
MANY = ValueError('Error reading local file "/a": Too many open files [os_error_code=\'24\']')
BUSY = ValueError('UNAVAILABLE: Error reading gs://a/b: no answer')
OPTION = ValueError('Error opening "zarr" driver: Error parsing object member "new_option"')
BUG = ValueError('One of the dimensions does not divide')
OOM = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes')
DENIED = PermissionError(errno.EACCES, 'Permission denied')
BAD_DISK = OSError(errno.EIO, 'Input/output error')


@pytest.mark.parametrize(
  ('error', 'text', 'mend'),
  [
    (FULL, 'No space left on device', 'free space'),
    (LIMIT, 'File too large', 'free space'),
    (OSError(errno.EDQUOT, 'x'), 'Disk quota exceeded', 'free space'),
    (DENIED, 'Permission denied', 'mend that'),
    (CheckpointError('process 1: No space left on device'), 'process 1: No space', 'free space'),
  ],
)
def test_failed_writes(error, text, mend):
  assert reason(error).startswith(text) and '\n' not in reason(error)
  assert remedy(reason(error)) == mend
  assert expected(error)


def test_whose_fault():
  assert [is_damage(e) for e in (BAD_CRC, BAD_BYTE, GONE, BAD_DISK)] == [True] * 4
  assert [is_damage(e) for e in (FULL, MANY, BUSY, OPTION, BUG, OOM, DENIED)] == [False] * 7
  assert [expected(e) for e in (MANY, BUSY, DENIED)] == [True] * 3
  assert [expected(e) for e in (BUG, OOM, KeyError('x'), ZeroDivisionError())] == [False] * 4
  assert reason(BUG) == 'ValueError: One of the dimensions does not divide'
  assert issubclass(Damaged, CheckpointError)
