"""Attention patterns from the command line to answers: trained, rolled out by pages, asked."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import transformer
from r1jax.model.transformer import Inputs, Transformer
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import restored, telemetry

pytestmark = pytest.mark.whole
CONFIG = '--config=tests/system/tiny_config.py'
HYBRID = {'type': 'Hybrid', 'window': 4, 'keys.type': 'KeyTokens', 'keys.share': 0.25}
TOP_K = {'type': 'TopK', 'keys': 6, 'indexer.heads': 2, 'indexer.head': 8, 'indexer.rope': 4}
PATTERNS = {'layers[0]': HYBRID, 'layers[1]': TOP_K, 'mtp[0]': HYBRID}
FIELDS = [
  (f'model.{at}.attention.pattern.{name}', str(value))
  for at, pattern in PATTERNS.items()
  for name, value in pattern.items()
]


@pytest.fixture(scope='module')
def run(binary, tmp_path_factory):
  """The folder of a run whose layers have a pattern each."""
  workdir = tmp_path_factory.mktemp('pattern') / 'run'
  flags = [f'--config.{name}={value}' for name, value in FIELDS]
  out = binary('train', CONFIG, f'--workdir={workdir}', '--config.engine.type=Paged', *flags)
  assert out.returncode == 0, out.stderr
  return workdir


def test_key_ids_come_from_the_tokenizer_where_they_are_asked_for(run):
  told = json.loads((run / 'config.json').read_text())['model']
  patterns = [layer['attention']['pattern']['type'] for layer in told['layers'] + told['mtp']]
  assert patterns == ['Hybrid', 'TopK', 'Hybrid']
  assert told['key_ids'] == sorted(b'\n\r!"#%&\'()*,-./:;?@[\\]_{}')
  assert ByteTokenizer().decode([10]) == '\n'


def test_indexers_learn_beside_every_stage(run):
  losses = [r['indexer_loss'] for r in telemetry.read(run) if 'indexer_loss' in r]
  assert len(losses) == 8 and all(x > 0 for x in losses)


def test_contract_04_rollouts_have_the_log_probabilities_of_the_trainer(run):
  gaps = [r['logp_difference'] for r in telemetry.read(run) if 'logp_difference' in r]
  assert len(gaps) == 4 and max(gaps) < 1e-5


def test_contract_04_pages_answer_as_whole_sequences_do(run):
  model = restored.load(str(run))
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
    assert len(text) - start > 8
    np.testing.assert_array_equal(best(jnp.asarray([text]))[start - 1 : -1], text[start:])


def test_a_checkpoint_of_full_attention_is_asked_through_another_pattern(trained):
  overrides = [
    (f'model.{at}.attention.pattern.{name}', str(value))
    for at in ('layers[*]', 'mtp[*]')
    for name, value in HYBRID.items()
  ]
  model = restored.load(str(trained[0]), overrides=overrides)
  assert 10 in model.exp.model.key_ids
