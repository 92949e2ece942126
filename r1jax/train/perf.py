"""How well the hardware is used: model flops utilization, and memory.

MFU = model flops a second / Σ peak of the devices (PaLM, arXiv 2204.02311, appendix B), the model
flops being those of model/flops.py. It is told only where every device's peak is known: a guess
would read like a measurement. Peaks are dense bf16 matmuls, the makers' figures without sparsity
(whose tables often double them), for one device as jax counts devices.
"""

import pathlib
import re
import resource
import sys
from collections.abc import Sequence

import jax

TPU = 'TPU '
NVIDIA = '(NVIDIA )?(Tesla )?'
PEAKS = (
  # cloud.google.com/tpu/docs/{v4, v5e, v5p, v6e, tpu7x}, per chip. Of a TPU7x each of the two cores
  # is a device of its own (jax's pallas/mosaic/tpu_info.py): half of the chip's 2307.
  (TPU + 'v4', 275e12),
  (TPU + '(v5 lite|v5e)', 197e12),
  (TPU + 'v5p?', 459e12),
  (TPU + '(v6 lite|v6e)', 918e12),
  ('TPU7x', 2307e12 / 2),
  # NVIDIA's data sheets, halved where they count sparsity. A slice of a card ('… MIG 1g.10gb')
  # matches none of these.
  (NVIDIA + r'A100[- ](SXM4-\d+GB|PCIE-\d+GB|\d+GB PCIe)', 312e12),
  (NVIDIA + 'H100 80GB HBM3', 989e12),  # SXM
  (NVIDIA + 'H100 PCIe', 756e12),
  (NVIDIA + '(H100|H200) NVL', 835e12),
  (NVIDIA + 'H200', 989e12),
  (NVIDIA + 'B200', 2250e12),
  (NVIDIA + 'L4', 121e12),
  (NVIDIA + 'T4', 65e12),  # fp16: it has no bf16 units
)
GB = 1e9


def peak(kind: str) -> float | None:
  """Dense bf16 flops a second of a device of this `device_kind`, None where it is not known."""
  return next((flops for pattern, flops in PEAKS if re.fullmatch(pattern, kind)), None)


def mfu(flops_per_s: float, devices: Sequence[jax.Device]) -> float | None:
  """The share of the devices' peak that these model flops are; None where a peak is not known."""
  peaks = [peak(device.device_kind) for device in devices]
  return None if None in peaks else flops_per_s / sum(peaks)


def memory() -> dict[str, float]:
  """Gigabytes (1e9) at most so far, as metrics: this process, its fullest device if that tells."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  known = [s['peak_bytes_in_use'] for s in stats if 'peak_bytes_in_use' in s]
  device = {'memory/device_gb': max(known) / GB} if known else {}
  return {'memory/host_gb': host_bytes() / GB} | device


def host_bytes() -> int:
  """The most that this process has had in memory."""
  if sys.platform == 'darwin':
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # Linux's ru_maxrss counts a parent's memory as the child's.
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'VmHWM:\s*(\d+) kB', status)[1]) * 1024
