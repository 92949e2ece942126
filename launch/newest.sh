#!/usr/bin/env bash
# Kernels, model, losses, engine and checkpoints once more, under the newest Python (3.12 or later) and the newest jax to be had here: the
# versions that Colab and the accelerators run. Found on the PATH or with pyenv; with none, says so and succeeds. Two files at a time, as in launch/test.sh.
#   bash launch/newest.sh            bash launch/newest.sh tests/kernels            NEWEST_PYTHON=/path/to/python3 bash …
# Installs into .venv-newest once, and again when setup.cfg or this file changes; `rm -r .venv-newest` fetches newer versions.
set -euo pipefail
cd "$(dirname "$0")/.."

# find_python: the newest Python that starts; a pyenv shim may stand for a version that is not selected, and fails.
find_python() {
  local root candidate
  root=$(pyenv root 2>/dev/null || echo ~/.pyenv)
  for candidate in ${NEWEST_PYTHON:-python3.14 python3.13 python3.12 "$root"/versions/3.1[2-4].*/bin/python3}; do
    "$candidate" -c 'import sys; v = sys.version_info; v >= (3, 12) and print(*v[:3], sys.executable)' 2>/dev/null || true
  done | sort -k1,1n -k2,2n -k3,3n | tail -1 | cut -d' ' -f4-
}

python=$(find_python)
if [ -z "$python" ]; then
  echo 'newest: no Python 3.12 or later on the PATH or with pyenv; the second pass is left out'
  exit 0
fi
venv=.venv-newest
if ! cat setup.cfg launch/newest.sh | cmp -s - $venv/installed; then
  echo "newest: installing r1jax and the newest jax for $("$python" --version) into $venv …"
  "$python" -m venv --clear $venv
  $venv/bin/python -m pip install --quiet --upgrade pip
  $venv/bin/python -m pip install --quiet --upgrade -e . pytest pytest-xdist hypothesis
  cat setup.cfg launch/newest.sh >$venv/installed
fi
$venv/bin/python -c 'import flax, jax, numpy, optax, platform; print(
  f"newest: Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}, "
  f"optax {optax.__version__}, numpy {numpy.__version__}")'
# What compares with torch stays out: its versions for the newest Python are not those that the oracles were chosen for.
streaming=(chunks convert layout manifest memory spread target writer)  # of public checkpoints: what drives Orbax and TensorStore
[ $# -gt 0 ] || set -- tests/kernels tests/model tests/algos tests/optim tests/engine tests/checkpoint/*_test.py \
  $(for name in "${streaming[@]}"; do ls "tests/checkpoint/public/${name}_test.py" 2>/dev/null; done)
exec $venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
