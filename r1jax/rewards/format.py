"""R1's format reward: 1 for exactly `<think>…</think><answer>…</answer>`, else 0."""

from r1jax.core.text import spans


def well_formed(completion: str) -> float:
  """1.0 for a well-formed completion, 0.0 for any other."""
  return float(spans(completion).well_formed)
