"""Batches through continuous batching are those of the static engine."""

import contextlib

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.engine.batch import Batches, Paged
from r1jax.kernels.logprob.truncate import FILLER
from tests.engine import mixed
from tests.engine.mixed import LENGTHS, LIMIT, MIXED, SAMPLING, STOPS, WIDTH

SPEC = Paged(slots=4, page=8, chunk=8, burst=4)


@pytest.fixture(scope='module')
def params():
  return mixed.params()


@pytest.fixture(scope='module')
def engine():
  return Batches(SPEC, MIXED, STOPS)


def test_samples_are_those_of_the_static_engine_row_for_row(params):
  want, said = mixed.static(params), []

  def announce(what):
    said.append(what)
    return contextlib.nullcontext()

  engine = Batches(SPEC, MIXED, STOPS, announce=announce)
  for _ in range(2):
    got = engine(params, mixed.padded(), LENGTHS, mixed.keys(), SAMPLING, LIMIT)
    count = len(said)
  assert count == len(set(said))  # the second time nothing is compiled
  assert got.support_BTK is None
  for name in ('tokens_BT', 'length_B', 'stopped_B'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=2e-5)
  # Behind a row's end the static engine keeps what its padding chose.
  read_BM = np.arange(WIDTH + LIMIT) < (LENGTHS + want.length_B - 1)[:, None]
  theirs = jax.tree.map(lambda r: np.where(read_BM[..., None], r, 0), want.routes)
  jax.tree.map(np.testing.assert_array_equal, got.routes, theirs)


def test_kept_sets_are_asked_for_by_call(params):
  engine = Batches(SPEC, MIXED, STOPS)
  call = params, mixed.padded(), LENGTHS, mixed.keys(), SAMPLING, LIMIT
  got = engine(*call, keep_support=True)
  assert got.support_BTK.shape == (len(LENGTHS), LIMIT, SAMPLING.top_k)
  for b, n in enumerate(got.length_B):
    assert (got.support_BTK[b, :n] == got.tokens_BT[b, :n, None]).any(1).all()
    assert (got.support_BTK[b, n:] == FILLER).all()


def test_a_caller_who_leaves_in_between_leaves_nothing(params, engine):
  good = mixed.padded(), LENGTHS, mixed.keys(), SAMPLING, LIMIT
  with pytest.raises(UserError, match='token 99, the vocabulary has 30'):
    engine(params, np.full_like(good[0], 99), *good[1:])
  again = engine(params, *good)
  np.testing.assert_array_equal(again.tokens_BT, mixed.static(params).tokens_BT)


def test_sizes_depend_on_what_is_asked_and_not_on_what_was_asked_before():
  engine = Batches(SPEC, MIXED, STOPS)
  long, short = engine.engine(40), engine.engine(20)
  assert (long.config.pages, short.config.pages) == (4 * 5, 4 * 3)
  assert engine.engine(40) is long and engine.engine(20) is short
  assert engine.engine(20, support=3) not in (long, short)


def test_slots_and_pages_fit_the_mesh():
  config = Paged(slots=5, page=4).config(longest=10, shards=4)
  assert (config.slots, config.pages) == (8, 24)
  few = Paged(slots=5, page=4, positions=64).config(longest=10, shards=4)
  assert (few.slots, few.pages) == (8, 16)
  least = Paged(slots=5, page=4, positions=1).config(longest=10, shards=4)
  assert least.pages == 12  # a text fits into each part
