"""What the config of the adapters takes."""

import importlib
import pathlib

import pytest

from r1jax.core.config import ConfigError


def test_a_kind_that_is_none_is_refused(monkeypatch):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2])  # where `python -m` is run
  lora = importlib.import_module('configs.lora')
  with pytest.raises(ConfigError, match=r"^configs/lora.py: no kind 'ful'; did you mean 'full'"):
    lora.get_config('ful')
  assert lora.get_config('full').lora is None and lora.get_config().lora is not None
