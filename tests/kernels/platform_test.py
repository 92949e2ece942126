"""Implementations by name and platform, and the dtype of sums."""

import jax
import jax.numpy as jnp
import pytest

from r1jax.kernels import platform
from r1jax.kernels.platform import chosen, kernels, resolve, sums

KNOWN = ('ragged', 'blocks')


def test_the_platform_decides_where_no_name_is_given():
  assert resolve(None, {'cpu': 'blocks', 'gpu': 'blocks', '*': 'ragged'}, KNOWN) == 'blocks'
  assert resolve(None, {'*': 'ragged'}, KNOWN) == 'ragged'


def test_a_known_name_wins_over_the_platform():
  assert resolve('ragged', {'*': 'blocks'}, KNOWN) == 'ragged'


def test_an_unknown_name_is_refused_with_the_known_ones():
  with pytest.raises(NotImplementedError, match=r"'mosaic'; known: ragged, blocks"):
    resolve('mosaic', {'*': 'blocks'}, KNOWN)


def test_unasked_kernels_serve_the_ops_that_they_are_proven_for(monkeypatch):
  monkeypatch.setattr(platform, 'kernels', lambda: 'tpu')
  assert chosen('paged', None, ('tpu', 'xla')) == 'xla'
  assert chosen('paged', 'tpu', ('tpu', 'xla')) == 'tpu'
  monkeypatch.setattr(platform, 'PROVEN', {('paged', 'tpu')})
  assert chosen('paged', None, ('tpu', 'xla')) == 'tpu'
  assert chosen('paged', 'xla', ('tpu', 'xla')) == 'xla'
  assert chosen('selected', None, ('tpu', 'xla')) == 'xla'


@pytest.mark.parametrize('given, want', [('bfloat16', 'float32'), ('float32', 'float32')])
def test_sums_are_kept_in_fp32_at_least(given, want):
  assert sums(jnp.zeros(1, given)) == want


@pytest.mark.parametrize(
  'kind, want',
  [
    ('cpu', 'xla'),
    ('TPU v2', 'xla'),
    ('TPU v3', 'xla'),
    ('TPU v4', 'tpu'),
    ('TPU v4 lite', 'tpu'),
    ('TPU v5 lite', 'tpu'),
    ('TPU v5', 'tpu'),
    ('TPU v5p', 'tpu'),
    ('TPU v6 lite', 'tpu'),
    ('TPU7x', 'tpu'),
    ('Tesla T4', 'xla'),
    ('NVIDIA A100-SXM4-40GB', 'xla'),
    ('NVIDIA L4', 'xla'),
    ('NVIDIA H100 80GB HBM3', 'gpu'),
    ('NVIDIA H100 PCIe', 'gpu'),
    ('NVIDIA H200', 'gpu'),
    ('NVIDIA GH200 480GB', 'gpu'),
    ('NVIDIA B200', 'xla'),
  ],
)
def test_kernels_go_to_the_devices_they_are_written_for(kind, want):
  assert kernels(kind) == want


def test_without_a_name_the_first_device_counts():
  assert kernels() == kernels(jax.devices()[0].device_kind)
