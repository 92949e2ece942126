"""Requests that no engine can serve."""

import dataclasses

import pytest

from r1jax.core.errors import UserError
from r1jax.engine.budget import Budget
from r1jax.engine.requests import Request, check
from r1jax.kernels.logprob.truncate import Sampling

GOOD = Request((1, 2), 3, (0, 7))


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'seed': (1,)}, 'seed has 1 words, a key has 2'),
    ({'prompt': (1, 30)}, 'token 30, the vocabulary has 29'),
    ({'stop_tokens': (-1,)}, 'stop token -1, the vocabulary has 29'),
    ({'seed': (0, 1 << 32)}, 'words are of 32 bits'),
    ({'sampling': Sampling()}, 'expected a RequestSampling'),
    ({'stops': 'ab'}, "stops are a tuple of strings, none empty; got 'ab'"),
    ({'stops': ('a', '')}, 'stops are a tuple of strings'),
    ({'stops': ('a',)}, 'stop strings need the text of tokens: give the engine decode'),
    ({'budget': Budget()}, 'a budget needs the tags of a thought: give marks'),
  ],
)
def test_the_error_names_request_and_remedy(fields, said):
  with pytest.raises(UserError, match=f'request 4: .*{said}'):
    check(dataclasses.replace(GOOD, **fields), 4, 2, 29, marks=None, decode=None)


def test_what_can_be_served_passes():
  asked = dataclasses.replace(GOOD, stops=('a',), stop_tokens=(28,), budget=Budget())
  check(asked, 0, 2, 29, marks=object(), decode=str)
