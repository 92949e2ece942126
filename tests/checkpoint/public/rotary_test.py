"""RoPE's options, old and new, and back."""

import json
import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.checkpoint.public import rotary
from r1jax.checkpoint.public.options import Options
from r1jax.core.errors import UserError
from r1jax.model.config import Llama3, Rope, Yarn

LLAMA = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
}
QWEN = {'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32_768}
MSCALE = {'mscale': 0.707, 'mscale_all_dim': 0.707}


def read(latent=False, **data):
  options = Options(data, 'config.json')
  found = rotary.read(options, interleaved=latent, latent=latent)
  options.finish()
  return found


def refusal(**data):
  with pytest.raises(UserError) as caught:
    read(**data)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_theta_and_its_places():
  assert read() == Rope(10_000.0, False)
  assert read(rope_theta=500_000) == Rope(500_000.0, False)
  assert read(rope_theta=5e5, rope_scaling=None) == Rope(5e5, False)
  assert read(rope_parameters={'rope_type': 'default', 'rope_theta': 1e6}) == Rope(1e6, False)
  assert read(rope_scaling={'type': 'default'}) == Rope(1e4, False)


def test_llama3_in_both_forms():
  want = Rope(5e5, False, Llama3(8.0, 8192, 1.0, 4.0))
  assert read(rope_theta=5e5, rope_scaling=LLAMA) == want
  assert read(rope_parameters=LLAMA | {'rope_theta': 5e5}) == want


def test_yarn_of_the_dense_families_is_active_whatever_the_length():
  """Qwen publishes max_position_embeddings 32,768 or 131,072 with it."""
  for length in (32_768, 131_072):
    made = read(rope_scaling=QWEN, max_position_embeddings=length)
    assert made.scaling == Yarn(4.0, 32_768, 131_072, 32.0, 1.0, mscale=1.0)


def test_the_attention_factor_becomes_mscale():
  """cos and sin times m are scores times m², m = 0.1 · mscale · ln(factor) + 1."""
  for said, m in [
    ({'attention_factor': 1.0}, 1.0),
    ({'attention_factor': 1.25}, 1.25),
    ({}, 0.1 * math.log(4) + 1),
    (MSCALE, 1.0),
    (
      {'mscale': 1.0, 'mscale_all_dim': 0.5},
      (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
    ),
    ({'mscale': 0.5}, 0.1 * math.log(4) + 1),
    ({'attn_factor': 0.8782488562869419}, 1.0),  # R1-0528-Qwen3-8B's
    ({'attn_factor': 0.5, 'attention_factor': 1.25}, 0.625),
  ]:
    scaling = read(rope_scaling=QWEN | said).scaling
    assert 0.1 * scaling.mscale * math.log(4) + 1 == pytest.approx(m, abs=1e-12)


def test_yarn_of_mla_keeps_its_length():
  given = QWEN | MSCALE | {'factor': 40, 'original_max_position_embeddings': 4096}
  made = read(latent=True, rope_scaling=given, max_position_embeddings=4096)
  assert made == Rope(1e4, True, Yarn(40.0, 4096, 4096, 32.0, 1.0, mscale=0.707))


@pytest.mark.parametrize('kind', ['linear', 'dynamic', 'longrope', 'su', 'mrope'])
def test_other_scalings_are_refused(kind):
  assert refusal(rope_scaling={'type': kind, 'factor': 2.0}) == (
    f"config.json: rope scaling '{kind}' is not supported; r1jax has yarn and llama3"
  )
  assert refusal(latent=True, rope_parameters={'rope_type': kind, 'factor': 2.0}) == (
    f"config.json: rope scaling '{kind}' is not supported; r1jax has yarn"
  )


def test_llama3_is_not_for_mla():
  assert refusal(latent=True, rope_scaling=LLAMA) == (
    "config.json: rope scaling 'llama3' is not supported; r1jax has yarn"
  )


@pytest.mark.parametrize(
  'scaling, said',
  [
    ({'factor': ...}, 'factor is missing; it is needed to build the model'),
    ({'factor': '4'}, "factor is '4', expected a value of type float; fetch it again"),
    ({'factor': 1.0}, 'factor is 1.0, expected more than 1; fetch it again'),
    ({'truncate': False}, 'truncate is False; r1jax supports True'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor is 0.5; r1jax supports 1.0'),
    (
      {'attn_scale': 0.8},
      "unknown option 'attn_scale'; r1jax does not know whether that changes the model; take it "
      'out of the file if it does not',
    ),
  ],
)
def test_a_mistake_in_the_scaling_is_one_line(scaling, said):
  given = {k: v for k, v in (QWEN | scaling).items() if v is not ...}
  assert refusal(rope_scaling=given) == f'config.json: rope_scaling: {said}'


@pytest.mark.parametrize('low', [4.0, 5.0])
def test_the_low_factor_of_llama3_is_below_the_high_one(low):
  assert refusal(rope_scaling=LLAMA | {'low_freq_factor': low}) == (
    f'config.json: rope_scaling: low_freq_factor {low} is not below high_freq_factor 4.0; fetch it '
    'again'
  )


def test_mistakes_of_mla_and_of_types():
  given = QWEN | {'mscale': 1.0, 'mscale_all_dim': 0.5}
  assert refusal(latent=True, rope_scaling=given) == (
    'config.json: rope_scaling: mscale 1.0 and mscale_all_dim 0.5 differ: unsupported'
  )
  assert refusal(latent=True, rope_scaling=QWEN) == (
    'config.json: rope_scaling: mscale_all_dim is missing; it is needed to build the model'
  )
  assert refusal(rope_scaling='yarn') == (
    "config.json: rope_scaling is 'yarn', expected a value of type dict; fetch it again"
  )
  assert refusal(rope_parameters={'rope_theta': 'x'}) == (
    "config.json: rope_parameters: rope_theta is 'x', expected a value of type float; fetch it "
    'again'
  )
  assert refusal(latent=True, rope_scaling=QWEN | MSCALE | {'attn_factor': 0.8}).startswith(
    "config.json: rope_scaling: unknown option 'attn_factor'"
  )
  assert refusal(rope_parameters={'full_attention': {}}).startswith(
    "config.json: rope_scaling: unknown option 'full_attention'"
  )


reals = st.floats(0.01, 1e6, allow_nan=False)
llamas = st.builds(Llama3, reals, st.integers(1, 1 << 20), reals, reals).filter(
  lambda scaling: scaling.low < scaling.high
)


@st.composite
def yarns(draw, latent):
  """mscale in thousandths, as published; dense ones are as long as factor and original say."""
  factor, original = draw(st.integers(2, 64)), draw(st.integers(64, 1 << 17))
  length = draw(st.integers(1, 1 << 20)) if latent else factor * original
  mscale = draw(st.integers(0, 2000)) / 1000
  return Yarn(float(factor), original, length, draw(reals), draw(reals), mscale)


@given(data=st.data())
def test_what_is_written_is_read_again(data):
  latent = data.draw(st.booleans())
  scaling = data.draw(st.none() | yarns(latent) | (st.nothing() if latent else llamas))
  rope = Rope(data.draw(reals), data.draw(st.booleans()) if latent else False, scaling)
  keys = json.loads(json.dumps(rotary.write(rope, latent)))
  if isinstance(scaling, Yarn):
    keys['max_position_embeddings'] = scaling.length
  options = Options(keys, 'config.json')
  interleaved = options.take('rope_interleave', bool) if latent else False
  assert rotary.read(options, interleaved, latent) == rope
  options.finish()


def test_published_scalings_are_written_as_they_are():
  """Every key of V3's, V2-Lite's and Llama 3.1's comes back with its value."""
  folder = pathlib.Path(__file__).parent / 'configs'
  for name in ('DeepSeek-V3', 'DeepSeek-V2-Lite', 'Llama-3.1-8B'):
    data = json.loads((folder / f'{name}.json').read_text())
    latent = name.startswith('DeepSeek')
    rope = rotary.read(Options(data, name), latent, latent)
    keys = rotary.write(rope, latent)
    assert keys['rope_theta'] == data['rope_theta']
    assert keys['rope_scaling'] | data['rope_scaling'] == keys['rope_scaling']
