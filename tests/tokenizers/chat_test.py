"""The template: exact ids, the loss mask, and what a question cannot do to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.text import spans
from r1jax.tokenizers import chat
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.tokenizers.tokenizer import MARKERS

TOK = ByteTokenizer()
TEXT = st.lists(st.one_of(st.text(max_size=9), st.sampled_from(MARKERS)), max_size=9).map(''.join)


class SameEndAndPadding(ByteTokenizer):
  """The end token is the padding, and there is a second end token."""

  pad = ByteTokenizer.eos
  stops = (ByteTokenizer.eos, 0)


def test_prompt_and_solution_token_by_token():
  assert TOK.prompt('Q') == [257, 259, 81, 260]
  assert TOK.prompt('Q', system='S') == [257, 259, 83, 10, 10, 81, 260]
  assert chat.render_solution(TOK, 'T', 'A') == [261, 84, 262, 263, 65, 264, 258]


def test_a_thought_that_the_prompt_opens_is_not_opened_again():
  class Opened(ByteTokenizer):
    opened = '<think>'

  assert chat.render_solution(Opened(), 'T', 'A') == [84, 262, 263, 65, 264, 258]


def test_render_joins_them_and_masks_the_completion():
  assert chat.render(TOK, 'Q', 'T', 'A') == (
    [257, 259, 81, 260, 261, 84, 262, 263, 65, 264, 258],
    [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
  )


def test_decoded_completion_is_well_formed():
  span = spans(TOK.decode(chat.render_solution(TOK, '1+1=2', '2')))
  assert span == ('1+1=2', '2', True)


@given(TEXT, TEXT, TEXT)
def test_text_cannot_forge_the_template(question, thought, answer):
  ids, mask = chat.render(TOK, question, thought, answer)
  assert [i for i in ids if i >= 256] == [257, 259, 260, 261, 262, 263, 264, 258]
  assert mask.index(1) == ids.index(261)


@pytest.mark.parametrize('tok', [TOK, SameEndAndPadding()])
def test_contract_09_mask_comes_from_lengths_not_from_tokens(tok):
  ids, mask = chat.render(tok, 'Q\0', 'T\0', '')
  completion = chat.render_solution(tok, 'T\0', '')
  assert ids[-1] == tok.eos
  assert mask == [0] * (len(ids) - len(completion)) + [1] * len(completion)
