"""The exception that a user of the binaries is meant to read, and the wording of "no such name".

Whatever a user can mend (a flag, a config, a path, a damaged checkpoint) is raised as a `UserError`
whose text is one line that says what was given, what was expected and how to mend it; the binaries
print that line and exit with 2. All other exceptions are bugs and keep their traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake that the user can mend; its text is one line."""


def nearest(name: str, known: Iterable[str]) -> str | None:
  """The known name closest in spelling to `name`, or None when none is close."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return close[0] if close else None


def no_such(what: str, name: str, known: Iterable[str]) -> str:
  """ "no field 'hed'; did you mean 'head'? known: depth, head", for a name nobody knows."""
  known = list(known)
  guess = nearest(name, known)
  hint = f"; did you mean '{guess}'?" if guess else ';'
  return f"no {what} '{name}'{hint} known: {', '.join(known) or 'none'}"
