"""Which tokenizer: a typed union for configs, and the one place that builds from it."""

import dataclasses

from r1jax.core.errors import UserError
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.tokenizers.hf import HfTokenizer
from r1jax.tokenizers.public import PublicTokenizer
from r1jax.tokenizers.tokenizer import ASSISTANT, USER, Tokenizer


@dataclasses.dataclass(frozen=True)
class Byte:
  """UTF-8 bytes and nine markers."""


@dataclasses.dataclass(frozen=True)
class HuggingFace:
  """A tokenizer.json and the texts of its markers; bos='' is none, pad='' the same token as eos."""

  path: str
  bos: str
  eos: str
  pad: str = ''
  user: str = USER
  assistant: str = ASSISTANT
  stops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Public:
  """A folder with a public model's tokenizer.json, tokenizer_config.json and chat template."""

  path: str


TokenizerSpec = Byte | HuggingFace | Public


def make(spec: TokenizerSpec) -> Tokenizer:
  """The tokenizer that `spec` describes."""
  match spec:
    case Byte():
      return ByteTokenizer()
    case HuggingFace(path, bos, eos, pad, user, assistant, stops):
      return HfTokenizer(path, bos, eos, pad, user, assistant, stops)
    case Public(path):
      return PublicTokenizer(path)
    case _:
      raise UserError(
        f'tokenizer is {spec!r}; expected Byte(), HuggingFace(path=…, bos=…, eos=…) or '
        'Public(path=…)'
      )
