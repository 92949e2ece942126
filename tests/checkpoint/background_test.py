"""Work in the background: one piece at a time, and no error is lost."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading

import pytest

from r1jax.checkpoint.background import Background, quiet


def fail():
  raise OSError('lost')


def test_one_after_another():
  work, done, gate = Background(), [], threading.Event()
  work.start(lambda: (gate.wait(), done.append(1)))
  work.poll()
  assert done == []
  gate.set()
  work.start(lambda: done.append(2))
  work.wait()
  assert done == [1, 2]
  work.wait()
  work.close()
  work.start(lambda: done.append(3))
  work.close()
  assert done == [1, 2, 3]


def test_an_error_is_raised_once_by_whoever_asks_first():
  for ask in ('wait', 'close', 'start', 'poll'):
    work = Background()
    work.start(fail)
    with pytest.raises(OSError, match='lost'):
      if ask == 'poll':
        while True:
          work.poll()
      getattr(work, ask)(*([fail] if ask == 'start' else []))
    work.poll()
    work.wait()
    work.close()


def test_finish_says_what_cannot_be_raised(caplog):
  work = Background()
  work.start(fail)
  work.finish()
  assert caplog.messages == ['lost']


def test_quiet_silences_orbax_alone(caplog, monkeypatch):
  absl, where = logging.getLogger('absl'), {'lno': 1, 'args': (), 'exc_info': None}
  monkeypatch.setattr(absl, 'filters', [])  # another test's failure may have left one for good
  with quiet():
    for path in ('/x/orbax/a.py', '/x/r1jax/a.py'):
      absl.handle(absl.makeRecord('absl', logging.ERROR, path, msg=path, **where))
  absl.handle(absl.makeRecord('absl', logging.ERROR, '/x/orbax/b.py', msg='after', **where))
  assert caplog.messages == ['/x/r1jax/a.py', 'after']


def test_quiet_silences_futures_whose_write_failed_and_no_others(caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('asyncio'), 'filters', [])
  loop = asyncio.new_event_loop()
  with quiet():
    for text in ('RESOURCE_EXHAUSTED: Error writing "a": No space left on device', 'a bug'):
      loop.create_future().set_exception(ValueError(text))
      gc.collect()
  loop.close()
  (told,) = caplog.records
  assert told.exc_info[1].args == ('a bug',)


@pytest.mark.skipif((3, 12) <= sys.version_info[:3] < (3, 12, 2), reason='gh-113964')
@pytest.mark.parametrize('end', ['pass', 'raise SystemExit(3)', 'raise ValueError'])
def test_the_end_of_the_program_waits(end):
  """Also for what the work itself leaves to an executor."""
  code = f"""
import asyncio, time
from r1jax.checkpoint.background import Background
def work():
  time.sleep(0.3)
  asyncio.run(asyncio.to_thread(print, 'written'))
  raise OSError('and this was wrong')
background = Background()
background.start(work)
{end}
"""
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
  assert out.stdout == 'written\n' and out.stderr.splitlines()[-1] == 'and this was wrong'
  assert out.returncode == {'pass': 0, 'raise SystemExit(3)': 3, 'raise ValueError': 1}[end]
