"""Drafts out of the text itself (prompt lookup): what followed the last words the time before.

The longest n-gram at the end of the text, n ≤ `longest`, that occurred earlier is looked up, and
what followed its latest earlier occurrence is proposed. Where that runs into the end of the text it
goes on with itself: after "abcabc" comes "abcabc…". Costs no model; a proposal is a point mass
(speculative.agree). It pays where text repeats: code, quotations, sums carried from line to line.

Cost: `longest` dictionary entries a token, and as many look-ups a proposal, however long the text.
"""

from collections.abc import Iterable, Sequence


class Index:
  """Of one growing text: where each n-gram was last continued."""

  def __init__(self, longest: int = 4):
    if longest < 1:
      raise ValueError(f'n-grams of up to longest={longest} tokens; expected 1 or more')
    self.tokens: list[int] = []
    self._longest = longest
    self._next: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest continuation begins

  def extend(self, tokens: Iterable[int]) -> None:
    """Appends tokens that are there to stay."""
    for token in tokens:
      # Only now has the end of the text a continuation: the end itself is never found.
      self._next.update((gram, len(self.tokens)) for gram in self._ends())
      self.tokens.append(token)

  def propose(self, k: int) -> list[int]:
    """The k tokens that may come next, or none where even the last token is new."""
    for gram in self._ends():
      if gram in self._next:
        at = self._next[gram]
        period = len(self.tokens) - at
        return [self.tokens[at + j % period] for j in range(k)]
    return []

  def _ends(self) -> Iterable[tuple[int, ...]]:
    """The n-grams at the end of the text, the longest first."""
    end = tuple(self.tokens[-self._longest :])
    return (end[i:] for i in range(len(end)))


def propose(tokens: Sequence[int], k: int, longest: int = 4) -> list[int]:
  """The k tokens that may follow a text, by an index of its own."""
  index = Index(longest)
  index.extend(tokens)
  return index.propose(k)
