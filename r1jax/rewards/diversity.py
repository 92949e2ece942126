"""Diversity in a group: how far each sample is from its siblings.

    diversity_i = 1 − mean_{j≠i} sim(S_i, S_j),  S the set of a thought's token n-grams
    jaccard  |A ∩ B| / |A ∪ B|
    overlap  |A ∩ B| / min(|A|, |B|)

A copy with noise behind it is far by Jaccard and equal by overlap: the default. Noise alone is far
from everything, so that only samples which gave an answer, or a correct one, earn diversity;
the others are no siblings either. R = 0.7 accuracy + 0.3 diversity keeps any correct sample at or
above any wrong one. Cost: linear in a text, G(G−1)/2 intersections of sets for a group.
"""

from collections.abc import Callable, Sequence, Set
from typing import Any

from r1jax.rewards.words import grams

Similarity = Callable[[Set[Any], Set[Any]], float]


def jaccard(a: Set[Any], b: Set[Any]) -> float:
  """Shared items over all items; two empty sets are equal."""
  union = len(a | b)
  return len(a & b) / union if union else 1.0


def overlap(a: Set[Any], b: Set[Any]) -> float:
  """Shared items over those of the smaller set; an empty set equals only another."""
  smaller = min(len(a), len(b))
  return len(a & b) / smaller if smaller else float(not a and not b)


def diversity(
  texts: Sequence[str], earns: Sequence[bool], n: int = 3, similarity: Similarity = overlap
) -> list[float]:
  """1 − mean similarity to the siblings that earn; 0 for who does not earn or has no sibling."""
  sets = [set(grams(t, n)) if e else None for t, e in zip(texts, earns, strict=True)]
  sums = [0.0] * len(sets)
  members = [i for i, s in enumerate(sets) if s is not None]
  for k, i in enumerate(members):
    for j in members[k + 1 :]:
      same = similarity(sets[i], sets[j])
      sums[i] += same
      sums[j] += same
  siblings = len(members) - 1
  earned = set(members) if siblings > 0 else set()
  return [1 - sums[i] / siblings if i in earned else 0.0 for i in range(len(sets))]


def distinct(texts: Sequence[str], n: int = 3) -> float:
  """distinct-n of a group: its different n-grams over all of them; 1 where there is none."""
  found = [g for text in texts for g in grams(text, n)]
  return len(set(found)) / len(found) if found else 1.0
