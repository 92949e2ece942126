"""Wilson's interval of a proportion: what k of n says about the chance behind it.

  (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),   p = k/n,  z = 1.96 for 95 %

It stays inside [0, 1] and does not shrink to nothing at k = 0 or k = n. Wilson, JASA 22 (1927).
"""

import math

Z = 1.959964  # 97.5 % quantile of the normal distribution


def wilson(k: float, n: float) -> tuple[float, float]:
  """The 95 % interval of a proportion of k in n; everything when n is 0."""
  if not 0 <= k <= n:
    raise ValueError(f'{k} of {n} is no proportion: expected 0 ≤ k ≤ n')
  if n == 0:
    return 0.0, 1.0
  p, w = k / n, Z * Z / n
  half = Z * math.sqrt(p * (1 - p) / n + w / (4 * n))
  low, high = (p + w / 2 - half) / (1 + w), (p + w / 2 + half) / (1 + w)
  return max(low, 0.0), min(high, 1.0)
