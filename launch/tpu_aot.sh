#!/usr/bin/env bash
# The TPU kernels through the TPU compiler, for v4, v5p and v6e at real shapes; no TPU is needed. Prints the vector
# memory of each kernel and the memory of each program. Arguments go to pytest:
#   bash launch/tpu_aot.sh            bash launch/tpu_aot.sh -m tpu_aot (the slow ones, too)
# The compiler, libtpu as this jax wants it, goes into .cache/libtpu-site: in .venv jax would find it in every process,
# look for TPUs there, wait and warn.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
setup_venv '.[dev]'
site=.cache/libtpu-site
wanted=$(.venv/bin/python -c 'import importlib.metadata, re
print(next(r.split(";")[0].strip() for r in importlib.metadata.requires("jax") if re.match("libtpu", r)))')
if [ "$(cat $site/installed 2>/dev/null)" != "$wanted" ]; then
  echo "tpu_aot: installing $wanted into $site …"
  rm -rf $site
  .venv/bin/python -m pip install --quiet --no-deps --target $site "$wanted"
  echo "$wanted" >$site/installed
fi
export PYTHONPATH="$PWD/$site${PYTHONPATH:+:$PYTHONPATH}"
exec .venv/bin/python -m pytest -q -n 2 --dist load -rP -m 'tpu_aot and not slow' tests/kernels "$@"
