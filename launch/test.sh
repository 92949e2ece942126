#!/usr/bin/env bash
# Installs what the tests need (torch and transformers are oracles) and runs them, two files at a time (8 GiB a
# worker; -n 0 for one after the other). Arguments go to pytest:
#   bash launch/test.sh            bash launch/test.sh -m slow            bash launch/test.sh tests/model
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
setup_venv '.[dev]'
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
