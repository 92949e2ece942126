"""Sizes that beat the rules, by device and shape class (sizes.py): written by a program.

python -m tests.benchmarks.tune_attention --write=r1jax/kernels/measured.py
"""

MEASURED: dict[str, dict[str, tuple[int, ...]]] = {}
