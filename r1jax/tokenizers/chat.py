"""One question, one completion, and which tokens of them are learned.

    <|bos|><|user|>question<|assistant|>  <think>thought</think><answer>answer</answer><|eos|>
    prompt, mask 0                        completion, mask 1

The prompt is the tokenizer's: markers, or a public model's own template. The model writes `<think>`
itself, unless its template has opened the thought already (`opened`). Pieces are tokenized apart
and joined as ids: what a rollout saw and what a trainer sees are the same tokens, and no text is
ever re-tokenized across a boundary.
"""

from r1jax.core.text import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from r1jax.tokenizers.tokenizer import EOS, Tokenizer


def open_thought(tok: Tokenizer) -> list[int]:
  """Ids with which a completion opens its thought: none where the prompt has done so."""
  return [] if tok.opened else tok.encode_special(THINK_OPEN)


def render_solution(tok: Tokenizer, thought: str, answer: str) -> list[int]:
  """Ids of a well-formed completion, the end token included."""
  special = tok.encode_special
  return [
    *open_thought(tok),
    *tok.encode(thought),
    *special(THINK_CLOSE),
    *special(ANSWER_OPEN),
    *tok.encode(answer),
    *special(ANSWER_CLOSE),
    *special(EOS),
  ]


def render(
  tok: Tokenizer, question: str, thought: str, answer: str, system: str | None = None
) -> tuple[list[int], list[int]]:
  """(ids, mask): mask is 1 on the completion, end token included, whatever its id."""
  prompt, completion = tok.prompt(question, system), render_solution(tok, thought, answer)
  return prompt + completion, [0] * len(prompt) + [1] * len(completion)
