"""Why a text has no value; neither leaves `rewards.maths`."""


class UnreadableError(Exception):
  """The text is outside the grammar."""


class UndefinedError(Exception):
  """The text can be read, but has no value: 5/0, 5 = 6."""
