"""RoPE and its scaling as public configs say it, and back.

`rope_scaling` in files, `rope_parameters` since transformers 5. Scaled cos and sin (the
attention_factor m of YaRN) multiply scores by m² where all of a head is rotated; ours is in the
softmax scale. MLA rotates a part of each head: there DeepSeek's own scaling of the softmax counts
and cos and sin must stay as they are.
"""

import math
from typing import Any

from r1jax.checkpoint.public.options import Options
from r1jax.core.errors import UserError
from r1jax.model.config import Llama3, Rope, Yarn


def read(options: Options, interleaved: bool, latent: bool) -> Rope:
  """The rotary embedding of a config; latent: that of MLA."""
  new = options.take('rope_parameters', dict, {})
  given = dict(options.take('rope_scaling', dict, {}) or new)
  theta = options.take('rope_theta', float, 10_000.0)
  theta = Options(new, f'{options.file}: rope_parameters').take('rope_theta', float, theta)
  given.pop('rope_theta', None)
  kinds = [given.pop(key, None) for key in ('rope_type', 'type')]
  kind = kinds[0] or kinds[1] or 'default'
  length = options.take('max_position_embeddings', int, 4096)
  inner = Options(given, f'{options.file}: rope_scaling')
  inner.must('partial_rotary_factor', 1.0)
  match kind:
    case 'default':
      scaling = None
    case 'yarn':
      scaling = latent_yarn(inner, length) if latent else yarn(inner, length)
    case 'llama3' if not latent:
      scaling = llama3(inner)
    case _:
      known = 'yarn' if latent else 'yarn and llama3'
      raise UserError(f'{options.file}: rope scaling {kind!r} is not supported; r1jax has {known}')
  inner.finish()
  return Rope(theta, interleaved, scaling)


def latent_yarn(given: Options, length: int) -> Yarn:
  """DeepSeek's: inactive where the context is no longer than the original one."""
  mscale, over = given.take('mscale_all_dim', float), given.take('mscale', float)
  given.must('attention_factor', None)
  if over != mscale:
    raise UserError(f'{given.file}: mscale {over} and mscale_all_dim {mscale} differ: unsupported')
  return Yarn(length=length, mscale=mscale, **ramp(given, length))


def yarn(given: Options, length: int) -> Yarn:
  """That of the dense families: always active."""
  common = ramp(given, length)
  log = 0.1 * math.log(common['factor'])
  mscale, of_all = given.take('mscale', float, 0.0), given.take('mscale_all_dim', float, 0.0)
  attention = (mscale * log + 1) / (of_all * log + 1) if mscale and of_all else log + 1
  attention = given.take('attention_factor', float, attention)
  # vLLM's factor beside; transformers ignores it (R1-0528-Qwen3-8B: 0.878, so that nothing scales).
  attention *= given.take('attn_factor', float, 1.0)
  longer = math.ceil(common['original'] * common['factor'])
  return Yarn(length=max(length, longer), mscale=round((attention - 1) / log, 12), **common)


def ramp(given: Options, length: int) -> dict[str, Any]:
  """What both have."""
  given.must('truncate', True)
  factor = given.take('factor', float)
  if factor <= 1:
    raise UserError(f'{given.file}: factor is {factor}, expected more than 1; fetch it again')
  return {
    'factor': factor,
    'original': given.take('original_max_position_embeddings', int, length),
    'beta_fast': given.take('beta_fast', float, 32.0),
    'beta_slow': given.take('beta_slow', float, 1.0),
  }


def llama3(given: Options) -> Llama3:
  """Llama 3.1's."""
  factor, original = given.take('factor', float), given.take('original_max_position_embeddings')
  low, high = given.take('low_freq_factor', float), given.take('high_freq_factor', float)
  if low >= high:
    raise UserError(
      f'{given.file}: low_freq_factor {low} is not below high_freq_factor {high}; fetch it again'
    )
  return Llama3(factor, original, low, high)


def write(rope: Rope, latent: bool) -> dict[str, Any]:
  """The keys of config.json that say this."""
  keys: dict[str, Any] = {'rope_theta': rope.theta}
  match rope.scaling:
    case Yarn() as y:
      m = y.mscale
      said = {'mscale': m, 'mscale_all_dim': m} if latent else {}
      if not latent and m != 1:
        said = {'attention_factor': 0.1 * m * math.log(y.factor) + 1}
      scaling = {'beta_fast': y.beta_fast, 'beta_slow': y.beta_slow, **said}
      keys['rope_scaling'] = {
        **{'type': 'yarn', 'rope_type': 'yarn', 'factor': y.factor},
        'original_max_position_embeddings': y.original,
        **scaling,
      }
    case Llama3() as l:
      keys['rope_scaling'] = {
        **{'rope_type': 'llama3', 'factor': l.factor, 'low_freq_factor': l.low},
        'high_freq_factor': l.high,
        'original_max_position_embeddings': l.original,
      }
  return keys | ({'rope_interleave': rope.interleaved} if latent else {})
