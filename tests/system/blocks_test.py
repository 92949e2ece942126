"""Natively sparse attention from a config to answers: a tiny model, trained and asked by pages."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.config import from_dict, override_all
from r1jax.data.stream import Stream
from r1jax.engine.continuous import Continuous
from r1jax.engine.plan import Config
from r1jax.engine.requests import Request
from r1jax.engine.sampling import RequestSampling
from r1jax.model import transformer
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.tasks import make as tasks
from r1jax.tokenizers import make as tokenizers
from r1jax.train import state as states
from r1jax.train import step as steps
from r1jax.train import supervised
from r1jax.train.experiment import Experiment
from tests.system import tiny_config

FIELDS = {
  'attention.type': 'GQA',
  'attention.kv_heads': '1',
  'attention.head': '16',
  'attention.pattern.type': 'Blocks',
  'attention.pattern.compress': '4',
  'attention.pattern.stride': '2',
  'attention.pattern.select': '4',
  'attention.pattern.selected': '3',
  'attention.pattern.local': '1',
  'attention.pattern.window': '4',
  'mlp.type': 'Dense',
}
STEPS = 12
GREEDY = RequestSampling(temperature=0.0)


@pytest.fixture(scope='module')
def trained():
  """The model's config, its parameters after some steps of SFT, the loss of each step."""
  flags = [(f'model.layers[*].{name}', text) for name, text in FIELDS.items()]
  exp = override_all(from_dict(Experiment, tiny_config.get_config('sft')), flags)
  cfg = dataclasses.replace(exp.model, mtp=())
  tok, task, (stage,) = tokenizers.make(exp.tokenizer), tasks.make(exp.task), exp.stages
  (part,) = supervised.segments(stage, cfg)
  params = states.init_params(Transformer(cfg), 0, None, dummy_inputs(cfg))
  optimizer = optim.make(stage.optimizer, params)
  loss = functools.partial(supervised.loss, cfg=cfg, auxiliary=part.auxiliary)
  count = functools.partial(supervised.denominators, cfg=cfg)
  update = jax.jit(steps.make(loss, count, optimizer, part.auxiliary.gamma))
  state, losses = states.fresh(params, optimizer, None), []
  sources = supervised.opened(stage.data, part.shape.length, task, tok)
  for batch, _ in itertools.islice(Stream(sources, stage.data, part.shape, 0), STEPS):
    state, metrics = update(state, batch)
    losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
  return cfg, state.params, losses


def test_the_loss_falls_at_once(trained):
  losses = trained[-1]
  assert 5 < losses[0] < 7 and losses[-1] < 0.6 * losses[0]


def test_contract_04_pages_answer_as_whole_sequences_do(trained):
  cfg, params, _ = trained
  engine = Continuous(cfg, (), Config(slots=2, pages=32, page=4, longest=48, chunk=16, burst=4))
  engine.load(params)
  prompts = [tuple(range(40, 40 + n)) for n in (21, 9)]
  done = engine.generate([Request(prompt, 20, (0, 0), GREEDY) for prompt in prompts])

  @jax.jit
  def best(tokens_BL):
    ones_BL = jnp.ones_like(tokens_BL)
    inputs = Inputs(tokens_BL, jnp.cumsum(ones_BL, 1) - 1, ones_BL)
    x_BLD = Transformer(cfg).apply({'params': params}, inputs).x_BLD
    return transformer.logits(params, cfg, x_BLD[0]).argmax(-1)

  for c in done:
    text = [*prompts[c.number], *c.tokens]
    padded = np.array([text + [0] * (41 - len(text))])
    start = len(prompts[c.number])
    assert len(c.tokens) == 20
    np.testing.assert_array_equal(best(padded)[start - 1 : len(text) - 1], c.tokens)
