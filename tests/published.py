"""Small tokenizers in the form of a download."""

import json
import pathlib
from collections.abc import Sequence

import tokenizers

SPECIAL = ('<s>', '</s>')
CHAT = (
  "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
  '{% if add_generation_prompt %}<s>{% endif %}'
)


def byte_pairs(
  path: pathlib.Path, texts: Sequence[str], vocab: int, special: Sequence[str] = SPECIAL
) -> pathlib.Path:
  """Writes a tokenizer.json: all bytes, the special tokens first, merges that the texts suggest."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab,
    special_tokens=list(special),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(texts, trainer)
  made.save(str(path))
  return path


def chat_folder(folder: pathlib.Path, texts: Sequence[str], vocab: int) -> None:
  """tokenizer.json and tokenizer_config.json with a chat template, beside whatever is there."""
  byte_pairs(folder / 'tokenizer.json', texts, vocab)
  said = {'eos_token': '</s>', 'bos_token': '<s>', 'chat_template': CHAT}
  (folder / 'tokenizer_config.json').write_text(json.dumps(said))
