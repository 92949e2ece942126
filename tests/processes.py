"""What the processes that tests start are given."""

import os

DEVICES = '--xla_force_host_platform_device_count'


def environment() -> dict[str, str]:
  """This process's but for its virtual devices; what one of them compiles serves all."""
  flags = [f for f in os.environ.get('XLA_FLAGS', '').split() if not f.startswith(DEVICES)]
  return {
    **os.environ,
    'XLA_FLAGS': ' '.join(flags),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
