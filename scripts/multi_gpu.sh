#!/usr/bin/env bash
# Runs a command on the GPUs of this machine: one process for all of them, or one per GPU.
#
# usage: scripts/multi_gpu.sh [flags] -- python -m prompt_tuning.train ...
#
#   --processes=N  start N processes, the first on GPU 0, and so on; default: one process for all
#   --port=PORT    port that process 0 opens for the others (8476)
#   --dry_run      print the commands, and run none
#
# JAX uses 0.95 of each GPU's memory, or the share in XLA_CLIENT_MEM_FRACTION.

set -euo pipefail
# shellcheck source=scripts/launching.sh
. "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

processes='' port=8476
parse "processes port" "$@"
is_count port
memory=XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-0.95}

if [[ ! $processes ]]; then
  execute env "$memory" "${command[@]}"
  exit
fi

is_count processes
pids=()
trap 'signalled=yes; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < processes; i++)); do
  one=(env "$memory" JAX_LOCAL_DEVICE_IDS="$i" "${command[@]}"
    --coordinator_address="127.0.0.1:$port" --process_count="$processes" --process_index="$i")
  if [[ $dry_run ]]; then
    execute "${one[@]}"
  else
    "${one[@]}" &
    pids+=($!)
  fi
done
[[ ! $dry_run ]] || exit 0

status=0
for pid in "${pids[@]}"; do
  signalled=yes
  while [[ $signalled ]]; do # a signal ends `wait` before the process; the next one has its status
    signalled='' ended=0
    wait "$pid" || ended=$?
  done
  # 75 is the status of those that another one's end has stopped; its own says more.
  if ((status == 0 || (status == 75 && ended != 0))); then status=$ended; fi
done
exit "$status"
