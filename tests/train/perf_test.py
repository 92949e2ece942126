"""Peaks by the names that devices have, utilization only where they are known, memory."""

import pathlib
import resource
import types

import jax
import numpy as np
import pytest

from r1jax.train import perf

KNOWN = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU7x': 1153.5e12,
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA A100-PCIE-40GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835e12,
  'NVIDIA H200': 989e12,
  'NVIDIA B200': 2250e12,
  'NVIDIA L4': 121e12,
  'Tesla T4': 65e12,
  'NVIDIA T4': 65e12,
}
UNKNOWN = ('cpu', 'TPU v4 lite', 'NVIDIA L40S', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'NVIDIA T400')


def device(kind, stats=None):
  return types.SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)


def test_peaks():
  assert {kind: perf.peak(kind) for kind in KNOWN} == KNOWN
  assert [perf.peak(kind) for kind in UNKNOWN] == [None] * len(UNKNOWN)


def test_utilization():
  pod = [device('TPU v4')] * 4
  assert perf.mfu(550e12, pod) == pytest.approx(0.5)
  assert perf.mfu(550e12, [*pod, device('cpu')]) is None
  assert perf.mfu(1e9, jax.devices('cpu')) is None


def test_memory_of_the_process_is_its_peak():
  held = np.ones(25_000_000)
  now = int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
  assert held.nbytes < now
  del held
  told = perf.memory()
  assert set(told) == {'memory/host_gb'}  # a CPU device tells nothing
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  # The kernel's counters lag by some pages.
  assert 0.99 * now / 1e9 <= told['memory/host_gb'] <= 1.01 * peak / 1e9


def test_memory_of_the_fullest_device(monkeypatch):
  stats = [{'bytes_in_use': 1, 'peak_bytes_in_use': n * 10**9} for n in (2, 5, 3)]
  devices = [device('NVIDIA H200', s) for s in stats]
  monkeypatch.setattr(jax, 'local_devices', lambda: [*devices, device('cpu')])
  assert perf.memory()['memory/device_gb'] == 5.0
