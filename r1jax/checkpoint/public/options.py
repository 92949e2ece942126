"""A public config.json, read strictly: every key is used, known to change nothing, or an error."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from r1jax.core.errors import UserError, no_such

# What a config.json says beside the function that the model computes.
_HARMLESS = """
  architectures model_type torch_dtype dtype transformers_version use_cache auto_map _name_or_path
  bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id
  initializer_range attention_dropout pretraining_tp max_position_embeddings tie_word_embeddings
  _attn_implementation _attn_implementation_autoset attn_implementation cache_implementation
  output_router_logits router_aux_loss_coef aux_loss_alpha seq_aux ep_size router_jitter_noise
  is_llama_config rope_interleaved transformers.js_config unsloth_version unsloth_fixed
  return_dict output_hidden_states output_attentions torchscript id2label label2id problem_type
  chunk_size_feed_forward is_decoder tokenizer_class task_specific_params finetuning_task
  use_bfloat16 keys_to_ignore_at_inference
"""
HARMLESS = frozenset(_HARMLESS.split())


class Options:
  """Takes keys one by one; `finish` complains of what nobody asked for."""

  def __init__(self, data: dict[str, Any], file: str):
    self.data, self.file, self._taken = data, file, set()

  def take(self, key: str, kind: type = int, default: Any = ..., least: int = 1) -> Any:
    """The value of a key; absent or null gives the default, or is an error; least: of an int."""
    self._taken.add(key)
    value = self.data.get(key)
    if value is None:
      if default is ...:
        raise UserError(f'{self.file}: {key} is missing; it is needed to build the model')
      return default
    if kind is float and type(value) is int:
      value = float(value)
    if not isinstance(value, kind) or (type(value) is bool and kind is not bool):
      raise UserError(
        f'{self.file}: {key} is {value!r}, expected a value of type {kind.__name__}; fetch it again'
      )
    if kind is int and value < least:
      raise UserError(f'{self.file}: {key} is {value}, expected at least {least}; fetch it again')
    return value

  def must(self, key: str, *allowed: Any) -> None:
    """The first allowed value is what absence means; any other value is not supported."""
    self._taken.add(key)
    value = self.data.get(key)
    if value is not None and value not in allowed:
      known = ' or '.join(map(repr, allowed))
      raise UserError(f'{self.file}: {key} is {value!r}; r1jax supports {known}')

  def finish(self) -> None:
    """An option that nobody read might change the model: an error, unless it is null."""
    left = sorted({k for k, v in self.data.items() if v is not None} - self._taken - HARMLESS)
    if left:
      raise UserError(
        f'{self.file}: unknown option {", ".join(map(repr, left))}; r1jax does not know whether '
        'that changes the model; take it out of the file if it does not'
      )


def load(folder: pathlib.Path) -> Options:
  """The config.json of a folder."""
  file = folder / 'config.json'
  try:
    data = json.loads(file.read_text('utf-8'))
  except FileNotFoundError:
    raise UserError(
      f'{file} does not exist; a public checkpoint has one beside its weights'
    ) from None
  except (OSError, ValueError) as error:
    raise UserError(f'{file} cannot be read as JSON ({error}); fetch it again') from None
  if not isinstance(data, dict):
    raise UserError(f'{file} holds no JSON object; fetch it again')
  return Options(data, str(file))


def choose(options: Options, known: Iterable[str]) -> str:
  """The architecture, one of those known."""
  name = str((options.take('architectures', list, None) or ['none given'])[0])
  if name not in known:
    raise UserError(f'{options.file}: {no_such("architecture", name, known)}')
  return name
