"""Every test runs on 8 virtual CPU devices unless JAX_PLATFORMS says otherwise, and repeatably.

The variables must stand before jax is first imported, hence here and not in a fixture.
"""

import gc
import importlib.metadata
import os
import pathlib
import signal
import sys

_CACHE = pathlib.Path(__file__).parents[1] / '.cache' / 'jax'
MAPPINGS = 10_000
_DEVICES = '--xla_force_host_platform_device_count=8'
# A third less time to compile, to a jaxlib that knows this flag: others end the process.
_QUICK = '--xla_cpu_use_fusion_emitters=false'
_KNOWN = any(d.version[:5] == '0.10.' for d in importlib.metadata.distributions(name='jaxlib'))

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if '--xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
  _flags = os.environ.get('XLA_FLAGS', ''), _DEVICES, _QUICK if _KNOWN else ''
  os.environ['XLA_FLAGS'] = ' '.join(_flags).strip()
# Programs half as fast are made in half the time.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')

# Tracing makes garbage by the million, and what jax keeps of it is looked through each time.
gc.set_threshold(100_000, 20, 100)

# Workers of xdist ignore it, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile('r1jax', deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile('r1jax')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  """All of XLA's optimizations for tests marked `optimized`, which look into what they make."""
  if item.get_closest_marker('optimized') is None:
    return (yield)
  jax = sys.modules['jax']
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', False)
  try:
    return (yield)
  finally:
    jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='module', autouse=True)
def few_programs():
  """Drops what earlier modules compiled before Linux refuses more mappings: each program has some.

  At vm.max_map_count, 65,530 by default, the process ends by a segmentation fault.
  """
  yield
  maps, jax = pathlib.Path('/proc/self/maps'), sys.modules.get('jax')
  if jax and maps.exists() and maps.read_bytes().count(b'\n') > MAPPINGS:
    jax.clear_caches()
    gc.collect()
