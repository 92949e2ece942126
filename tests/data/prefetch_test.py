"""Reading ahead changes nothing but the time: items, ends and exceptions come as they are."""

import itertools
import threading

import pytest

from r1jax.data.prefetch import Prefetch


def test_items_come_in_order_and_the_end_is_the_end():
  with Prefetch(range(100)) as items:
    assert list(items) == list(range(100))
    for _ in range(2):
      with pytest.raises(StopIteration):
        next(items)


def test_at_most_depth_items_are_made_ahead():
  made, enough = [], threading.Event()

  def numbers():
    for i in itertools.count():
      made.append(i)
      if i in (1, 3):
        enough.set()
      yield i

  with Prefetch(numbers(), depth=2) as items:
    assert enough.wait(10)
    enough.clear()
    assert made == [0, 1]  # the thread waits before it asks for the third
    assert [next(items), next(items)] == [0, 1]
    assert enough.wait(10)
    assert made == [0, 1, 2, 3]


def test_an_exception_comes_after_the_items_before_it_and_comes_again():
  def bad():
    yield 1
    yield 2
    raise KeyError('lost')

  with Prefetch(bad()) as items:
    assert [next(items), next(items)] == [1, 2]
    for _ in range(2):
      with pytest.raises(KeyError, match='lost') as error:
        next(items)
    assert any(entry.name == 'bad' for entry in error.traceback)


def test_what_is_no_iterable_is_said_at_the_consumer():
  with Prefetch(3) as items, pytest.raises(TypeError, match='not iterable'):
    next(items)


@pytest.mark.parametrize('taken', [0, 1, 5])
def test_close_ends_the_thread(taken):
  items = Prefetch(itertools.count(), depth=3)
  assert [next(items) for _ in range(taken)] == list(range(taken))
  items.close()
  assert not any(t is items._thread for t in threading.enumerate())
  items.close()
  with pytest.raises(ValueError, match='closed Prefetch'):
    next(items)


def test_leaving_by_an_exception_ends_the_thread_too():
  with pytest.raises(RuntimeError, match='step'), Prefetch(itertools.count()) as items:
    raise RuntimeError('step')
  assert not items._thread.is_alive()


def test_a_depth_below_one_is_an_error():
  with pytest.raises(ValueError, match='depth=0; expected 1 or more'):
    Prefetch(range(3), depth=0)
