"""The format reward."""

import pytest

from r1jax.rewards.format import well_formed


@pytest.mark.parametrize(
  ('text', 'reward'),
  [
    ('<think>a</think><answer>b</answer>', 1.0),
    ('<think></think>\n<answer></answer><|eos|>', 1.0),
    ('<think>a</think>', 0.0),
    ('a<think></think><answer>b</answer>', 0.0),
    ('<think><think></think><answer>b</answer>', 0.0),
    ('<think>a</think><answer>b</answer> and more', 0.0),
    ('<think>a</think><answer>b</answer><answer>c</answer>', 0.0),
    ('<answer>b</answer><think>a</think>', 0.0),
    ('', 0.0),
  ],
)
def test_one_only_for_the_exact_shape(text, reward):
  assert well_formed(text) == reward
