"""A small model of several kinds of layers, requests, what the static engine writes for them."""

import jax
import numpy as np

from r1jax.core import prng
from r1jax.engine.generate import generate
from r1jax.engine.requests import Request
from r1jax.engine.sampling import RequestSampling
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place

SPARSE = Layer(MLA(heads=2, nope=4, rope=4, value=4, kv_latent=8, std=0.4), MoE(8, 4, 2, std=0.4))
MIXED = ModelConfig(
  30, 16, (SPARSE, Layer(GQA(2, 2, 8, std=0.4), Dense(16, std=0.4))), mtp=(SPARSE,), std=0.6,
  remat='none',
)  # fmt: skip
STOPS, LIMIT, GROUP, WIDTH = (3, 5), 12, 3, 17
RNG = np.random.default_rng(0)
PROMPTS = [tuple(RNG.integers(6, 29, n).tolist()) for n in (9, 4, WIDTH, 1)]
ROWS = [p for p in PROMPTS for _ in range(GROUP)]
LENGTHS = np.array([len(r) for r in ROWS], np.int32)
SAMPLING = Sampling(0.9, top_k=9, top_p=0.95)


def params():
  """Fresh weights."""
  return place.init(Transformer(MIXED), jax.random.key(0), None, dummy_inputs(MIXED))


def keys(count=len(ROWS)):
  """A key a sample."""
  return prng.fold_rows(jax.random.key(7), np.arange(count))


def requests(sampling=SAMPLING, limit=LIMIT, **fields):
  """Each prompt GROUP times, every sample with its own key."""
  data = np.asarray(jax.random.key_data(keys()))
  asked = RequestSampling(sampling.temperature, sampling.top_k, sampling.top_p)
  return [Request(p, limit, tuple(d.tolist()), asked, **fields) for p, d in zip(ROWS, data)]


def padded():
  """The prompts as the static engine takes them."""
  prompts_BP = np.zeros((len(ROWS), WIDTH), np.int32)
  for to, row in zip(prompts_BP, ROWS):
    to[: len(row)] = row
  return prompts_BP


def static(params, sampling=SAMPLING):
  """What the static engine writes, on the host."""
  f = lambda params: generate(
    params, padded(), LENGTHS, keys(), cfg=MIXED, sampling=sampling, stops=STOPS, limit=LIMIT
  )
  return jax.device_get(jax.jit(f)(params))
