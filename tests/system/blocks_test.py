"""Natively sparse attention from the command line to answers: trained, then asked by pages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import transformer
from r1jax.model.transformer import Inputs, Transformer
from r1jax.train import restored, telemetry

FIELDS = {
  'type': 'GQA',
  'kv_heads': 1,
  'head': 16,
  'qk_norm': True,
  'pattern.type': 'Blocks',
  'pattern.compress': 4,
  'pattern.stride': 2,
  'pattern.select': 4,
  'pattern.selected': 3,
  'pattern.local': 1,
  'pattern.window': 4,
}


@pytest.fixture(scope='module')
def workdir(binary, tmp_path_factory):
  """Of a run whose layers are all of blocks."""
  workdir = tmp_path_factory.mktemp('blocks') / 'run'
  flags = [f'--config.model.layers[*].attention.{name}={x}' for name, x in FIELDS.items()]
  steps = '--config.stages[0].steps=12'
  config = '--config=tests/system/tiny_config.py:sft'
  out = binary('train', config, f'--workdir={workdir}', steps, *flags)
  assert out.returncode == 0, out.stderr
  return workdir


def test_the_loss_falls_at_once(workdir):
  loss = [row['loss'] for row in telemetry.read(workdir) if 'loss' in row]
  assert len(loss) == 12 and loss[0] < 7 and loss[-1] < 0.6 * loss[0]


def test_contract_04_pages_answer_as_whole_sequences_do(workdir):
  model = restored.load(str(workdir))
  asked = restored.requests(model, ['7 - 2, + 9; (4)', '1 + 1'], limit=24)
  texts = [[*r.prompt, *c.tokens] for r, c in zip(asked, restored.stream(model, asked))]

  @jax.jit
  def best(tokens_BL):
    ones_BL = jnp.ones_like(tokens_BL)
    inputs = Inputs(tokens_BL, jnp.cumsum(ones_BL, 1) - 1, ones_BL)
    out = Transformer(model.exp.model).apply({'params': model.params}, inputs)
    return transformer.logits(model.params, model.exp.model, out.x_BLD[0]).argmax(-1)

  for request, text in zip(asked, texts):
    start = len(request.prompt)
    assert len(text) > start > 3 * FIELDS['pattern.select']
    np.testing.assert_array_equal(best(jnp.asarray([text]))[start - 1 : -1], text[start:])
