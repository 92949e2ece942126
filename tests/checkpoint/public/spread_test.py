"""Threads that share a feed of chunks, and what is told of them."""

import threading

import pytest

from r1jax.checkpoint.public.chunks import Chunk
from r1jax.checkpoint.public.spread import Progress, Teller, spread

CHUNKS = [Chunk('x', number, (), 0, 10) for number in range(50)]


@pytest.mark.parametrize('workers', [1, 4])
def test_every_chunk_goes_to_one_thread(workers):
  seen, lock = [], threading.Lock()

  def work(thread, feed):
    for chunk in feed:
      with lock:
        seen.append((thread, chunk.number))

  spread(CHUNKS, workers, work)
  assert sorted(number for _, number in seen) == [*range(50)]
  assert {thread for thread, _ in seen} <= {*range(workers)}


def test_an_error_ends_all_and_is_raised_once_they_have_ended():
  begun, ended, done = threading.Event(), [], []

  def work(thread, feed):
    for chunk in feed:
      done.append(chunk)
      if thread == 0:
        begun.wait()
        raise OSError('a bad disk')
      begun.set()
      threading.Event().wait(0.02)
    ended.append(thread)

  with pytest.raises(OSError, match='a bad disk'):
    spread(CHUNKS, 2, work)
  assert ended == [1] and len(done) < 50


def test_progress_begins_with_what_was_done_before():
  said = []
  teller = Teller(said.append, 'written', 30, CHUNKS[:2])
  teller.add(CHUNKS[0])
  teller.add(CHUNKS[1])
  assert said == [Progress('written', done, 50) for done in (30, 40, 50)]
  Teller(None, 'written', 0, CHUNKS).add(CHUNKS[0])
