"""Text out of a stream of tokens, up to a stop string.

Two things are held back: tokens whose text may still change (it ends in U+FFFD, as an unfinished
UTF-8 character does), and text that may turn out to be the beginning of a stop string. Text is a
function of the tokens alone, however they are fed; of several stop strings the one that is complete
first counts, of those the longest, as if characters came one by one.

Tokens are decoded behind the few before them, and the text of those is cut off, so that tokenizers
which strip a leading blank keep it (the two offsets of TGI and vLLM's detokenizers). Cost: two
decodings of mostly two tokens a token, and for the stops their length squared.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

UNFINISHED = '\N{REPLACEMENT CHARACTER}'
HELD = 16  # tokens; a character has at most four bytes, so what is unfinished for longer is none


class Said(NamedTuple):
  """What may be given out now; `stop` is the string that ended it, None while it goes on.

  tokens: how many were fed in all; after a stop, up to and with the one that completed it.
  """

  text: str
  stop: str | None
  tokens: int

  @property
  def ended(self) -> bool:
    """Whether a stop string was met."""
    return self.stop is not None


class Watch:
  """One sequence's text, watched for stop strings; without any it only decodes.

  include: the stop string is part of the text. Text behind it is dropped.
  """

  def __init__(
    self, stops: Sequence[str], decode: Callable[[list[int]], str], include: bool = False
  ):
    if isinstance(stops, str) or not all(stops):
      raise ValueError(f'stop strings are a sequence of strings, none empty; got {stops!r}')
    self.stops, self.include, self._decode = tuple(stops), include, decode
    self._before: list[int] = []  # tokens whose text was taken, the last few
    self._before_text = ''
    self._pending: list[int] = []  # tokens whose text was not taken yet
    self._held = ''  # text that may begin a stop string
    self._stop: str | None = None
    self._tokens = 0

  @property
  def stop(self) -> str | None:
    """The stop string that was met."""
    return self._stop

  @property
  def fed(self) -> int:
    """Tokens that were read."""
    return self._tokens

  def feed(self, ids: Iterable[int]) -> Said:
    """Takes new tokens; those behind a stop are not read."""
    said = ''
    for i in ids:
      if self._stop is not None:
        break
      self._tokens += 1
      self._pending.append(i)
      said += self._scan(self._settled(), last=False)
    return Said(said, self._stop, self._tokens)

  def flush(self) -> Said:
    """What was held back, when no more tokens come; it may end in a stop string yet."""
    said = ''
    if self._stop is None:
      said = self._scan(self._decode(self._before + self._pending)[len(self._before_text) :], True)
      self._before, self._before_text, self._pending = [], '', []
    return Said(said, self._stop, self._tokens)

  def _settled(self) -> str:
    """Text of pending tokens that later ones cannot change."""
    window, known = self._before + self._pending, len(self._before_text)
    text, cut = self._decode(window), len(window)
    unfinished = text.endswith(UNFINISHED)
    if (unfinished or len(text) <= known) and len(self._pending) < HELD:
      return ''
    if unfinished:
      # Bytes that are no text: all but the last character, which may be an unfinished one.
      sure = range(cut - 1, len(self._before), -1)
      cut = next((n for n in sure if text[:-1].startswith(self._decode(window[:n]))), cut)
      text = self._decode(window[:cut])
    self._before, self._pending = window[len(self._before) : cut], window[cut:]
    self._before_text = self._decode(self._before)
    return text[known:]

  def _scan(self, new: str, last: bool) -> str:
    """Text that is neither a stop string nor, unless it is the last, may become one."""
    text = self._held + new
    found = first(text, self.stops)
    if found is not None:
      start, self._stop = found
      self._held = ''
      return text[: start + len(self._stop)] if self.include else text[:start]
    safe = len(text) - (0 if last else overhang(text, self.stops))
    self._held = text[safe:]
    return text[:safe]


def first(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
  """Where the stop string begins that ends first in the text, and which it is."""
  starts = ((text.find(stop), stop) for stop in stops)
  found = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
  return min(found)[1:] if found else None


def overhang(text: str, stops: Sequence[str]) -> int:
  """Characters at the end of the text that begin a stop string, at most."""
  lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
  return max(lengths, default=0)
