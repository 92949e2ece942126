#!/usr/bin/env bash
# N processes of one run on this machine: process 0 on the terminal, the others into log files. When one fails all are
# ended, and its exit code is this script's; SIGINT and SIGTERM are passed on. Flags go to each process:
#   bash launch/processes.sh 2 --config=configs/quickstart.py --workdir=runs/two --local_devices=4 [--config.seed=1 …]
# BINARY=r1jax.bin.NAME runs another binary than train; GRACE=SECONDS is the time between asking to end and killing.
set -uo pipefail
cd "$(dirname "$0")/.."
binary=${BINARY:-r1jax.bin.train} grace=${GRACE:-30}
count=${1:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || {
  echo "error: the first argument is the number of processes, not '$count': bash launch/processes.sh 2 --config=FILE …" >&2
  exit 2
}
shift
if [ ! -x .venv/bin/python ]; then
  source launch/setup.sh
  setup_venv . || exit
fi
port=$(.venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') || exit
logs=$(mktemp -d "${TMPDIR:-/tmp}/r1jax.XXXXXX")
echo "$count processes, coordinator 127.0.0.1:$port; logs of all but process 0: $logs/process-*.log"

set -m # each process in a group of its own: it heeds SIGINT, and a signal reaches what it has started
pids=()
for ((i = 0; i < count; i++)); do
  start=(.venv/bin/python -m "$binary" "--coordinator=127.0.0.1:$port" "--processes=$count" "--process=$i" "$@")
  if ((i == 0)); then "${start[@]}" </dev/null & else "${start[@]}" </dev/null >"$logs/process-$i.log" 2>&1 & fi
  pids+=($!)
done

set +m

send() { for pid in "${pids[@]}"; do kill -s "$1" -- "${2:-}$pid" 2>/dev/null; done; }
pass() { signalled=1; send "$1"; }
signalled='' failed=0
trap 'pass INT' INT
trap 'pass TERM' TERM HUP

while ((${#pids[@]})); do
  sleep 0.2
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    wait "${pids[i]}"
    code=$?
    unset "pids[i]"
    ((code == 0 || failed != 0)) && continue
    failed=$code deadline=$((SECONDS + grace))
    log=$( ((i == 0)) || echo ", see $logs/process-$i.log")
    echo "process $i ended with exit code $code$log" >&2
    [ -n "$signalled" ] || send TERM
  done
  ((failed == 0 || SECONDS < deadline)) || send KILL -
done
exit "$failed"
