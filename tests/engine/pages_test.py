"""Accounts of pages, and prefixes that are found if and only if they are published."""

import hypothesis
import hypothesis.strategies as st
import pytest

from r1jax.engine.pages import Pages


def published(pool: Pages, tokens: list[int]) -> list[int]:
  """Pages for the tokens, published as if they had been computed."""
  pages = pool.allocate(-(-len(tokens) // pool.size))
  pool.publish(tokens, pages)
  return pages


def test_pages_are_given_once_and_come_back():
  pool = Pages(3, 4)
  a, b = pool.allocate(2), pool.allocate(1)
  assert sorted(a + b) == [0, 1, 2]
  assert pool.allocate(1) is None
  assert pool.allocate(0) == []
  pool.check([a, b])
  pool.release(a)
  assert (pool.free, pool.cached, pool.used) == (2, 0, 1)
  assert sorted(pool.allocate(2)) == sorted(a)


def test_no_page_is_taken_where_too_few_are_left():
  pool = Pages(3, 1)
  pool.release(published(pool, [1, 2]))
  assert pool.allocate(4) is None
  assert (pool.free, pool.cached) == (1, 2)


def test_a_page_released_too_often_is_refused():
  pool = Pages(2, 1)
  pages = pool.allocate(1)
  pool.release(pages)
  with pytest.raises(ValueError, match='once more than'):
    pool.release(pages)


def test_whole_pages_are_found_and_the_last_token_is_left_to_compute():
  pool = Pages(4, 2)
  pages = published(pool, [1, 2, 3, 4, 5])
  assert pool.match([1, 2, 3, 4, 5]) == pages[:2]
  assert pool.match([1, 2, 3, 4]) == pages[:1]
  assert pool.match([1, 2, 9, 4, 5]) == pages[:1]
  assert pool.match([1, 2]) == pool.match([3, 4, 5]) == pool.match([]) == []
  pool.check([pages, pages[:2], pages[:1], pages[:1]])


def test_a_found_page_outlives_who_made_it():
  pool = Pages(2, 2)
  pages = published(pool, [1, 2, 3])
  found = pool.match([1, 2, 3])
  pool.release(pages)
  assert found == pages[:1]
  assert (pool.free, pool.cached, pool.used) == (1, 0, 1)
  assert pool.allocate(2) is None
  pool.release(found)
  assert (pool.free, pool.cached, pool.used) == (1, 1, 0)


def test_a_second_page_of_the_same_prefix_stays_private_and_the_next_joins_the_first():
  pool = Pages(4, 2)
  a, b = published(pool, [1, 2]), published(pool, [1, 2, 3, 4])
  assert pool.match([1, 2, 3, 4, 5]) == [a[0], b[1]]
  pool.release([a[0], b[1]])
  pool.release(b)
  pool.release(a)
  assert (pool.free, pool.cached) == (2, 2)
  pool.check([])


def test_the_least_recently_used_prefix_goes_first_from_its_end():
  pool = Pages(4, 1)
  old, new = published(pool, [1, 2]), published(pool, [3, 4])
  pool.release(old)
  pool.release(new)
  pool.release(pool.match([1, 2, 0]))
  assert pool.allocate(1) == [new[1]]
  assert pool.allocate(1) == [new[0]]
  assert pool.allocate(1) == [old[1]]
  assert pool.match([1, 2, 0]) == [old[0]]


def test_what_stood_behind_an_evicted_page_is_not_found_behind_its_successor():
  pool = Pages(3, 1)
  a = published(pool, [1])
  private = published(pool, [1, 2])  # its second page stands behind a, which it does not hold
  pool.release(a)
  assert pool.allocate(1) == a
  pool.publish([7], a)
  assert pool.match([7, 2, 0]) == a
  assert pool.match([1, 2, 0]) == []
  pool.release(private)
  pool.check([a, a])


def test_clear_forgets_prefixes_and_takes_nothing_from_anyone():
  pool = Pages(3, 1)
  held, left = published(pool, [1]), published(pool, [2])
  pool.release(left)
  pool.clear()
  assert pool.match([1, 0]) == pool.match([2, 0]) == []
  assert (pool.free, pool.cached, pool.used) == (2, 0, 1)
  pool.release(held)
  assert pool.free == 3
  pool.check([])


def test_check_notices_wrong_accounts():
  pool = Pages(3, 1)
  pages = published(pool, [1, 2])
  pool.check([pages])
  for owners in ([], [pages, pages], [[*pages, pages[0]]], [pages[:1]]):
    with pytest.raises(AssertionError):
      pool.check(owners)
  pool._free.append(pages[0])
  with pytest.raises(AssertionError, match='exactly one place'):
    pool.check([pages])


def test_sizes_below_one_are_refused():
  for sizes in ((0, 1), (1, 0)):
    with pytest.raises(ValueError, match='1 or more'):
      Pages(*sizes)


TEXTS = st.lists(st.lists(st.integers(0, 1), max_size=7), max_size=8)


@hypothesis.given(TEXTS, st.lists(st.integers(0, 1), max_size=9), st.integers(1, 3))
def test_the_longest_published_prefix_is_found(texts, asked, size):
  pool = Pages(64, size)
  owners = [published(pool, text) for text in texts]
  found = pool.match(asked)
  whole = {tuple(t[:n]) for t in texts for n in range(size, len(t) + 1, size)}
  want = [n for n in range(size, len(asked), size) if tuple(asked[:n]) in whole]
  assert len(found) * size == max(want, default=0)
  for i, page in enumerate(found):
    assert any(page in o[i : i + 1] and t[: (i + 1) * size] == asked[: (i + 1) * size]
               for o, t in zip(owners, texts))  # fmt: skip
  pool.check([*owners, found])
