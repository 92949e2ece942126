"""Sizes that beat the rules, by device and shape class (sizes.py): written by a program.

python -m tests.benchmarks.tune_attention --write=r1jax/kernels/measured.py
"""

MEASURED: dict[str, dict[str, tuple[int, ...]]] = {
  'cpu': {
    'attention/xla, band window 64, group 4, width 64, length short': (64, 64, 64, 64, 128, 128)
  }
}
