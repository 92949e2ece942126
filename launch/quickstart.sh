#!/usr/bin/env bash
# A tiny R1 on this machine: installs into .venv, trains (SFT, then GRPO), evaluates the checkpoint in a new process,
# prints a few chains of thought. Run it again: set-up is skipped, a run that was interrupted goes on.
#   bash launch/quickstart.sh [--config.seed=1 …]        WORKDIR=runs/other bash launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
setup_venv .

workdir=${WORKDIR:-runs/quickstart}
.venv/bin/python -m r1jax.bin.train --config=configs/quickstart.py --workdir="$workdir" "$@"
echo
echo "The same checkpoint in a new process:"
.venv/bin/python -m r1jax.bin.evaluate --checkpoint="$workdir" --show=4 --out="$workdir/evaluation.json"
echo
echo "Ask it yourself: .venv/bin/python -m r1jax.bin.generate --checkpoint=$workdir --prompt='7 - 2 + 9 - 5'"
