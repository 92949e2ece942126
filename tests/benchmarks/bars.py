"""How a benchmark ends: one line a bar, `bar: NAME VALUE TARGET pass|fail|not-run`."""

import operator
import platform
import subprocess

COMPARE = {'≥': operator.ge, '≤': operator.le, '<': operator.lt, '>': operator.gt}


def bar(name: str, value: float | None, sign: str, target: float, unit: str = '') -> bool:
  """Prints one bar; True unless it failed. A value of None was not measured."""
  verdict = 'not-run' if value is None else 'pass' if COMPARE[sign](value, target) else 'fail'
  shown = '–' if value is None else f'{value:.4g}{unit}'
  print(f'bar: {name} {shown} {sign}{target:g}{unit} {verdict}', flush=True)
  return verdict != 'fail'


def machine() -> str:
  """One line that says where the figures come from."""
  import jax

  revision = subprocess.run(
    ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, check=False
  ).stdout.strip()
  device = jax.devices()[0]
  return (
    f'{platform.machine()}, {jax.device_count()} × {device.platform} {device.device_kind}, '
    f'Python {platform.python_version()}, jax {jax.__version__}, r1jax {revision}'
  )
