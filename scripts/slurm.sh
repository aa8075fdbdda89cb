#!/usr/bin/env bash
# Submits a command to Slurm: one run on the GPUs of one or several nodes, or with --array an
# experiment whose cells are divided among the jobs.
#
# usage: scripts/slurm.sh [flags] -- python -m prompt_tuning.train ...
#
#   --nodes=N     number of nodes (1); on several, one process per GPU
#   --gpus=N      GPUs per node (1)
#   --cpus=N      CPU cores per process (8)
#   --time=TIME   time limit, such as 24:00:00; SIGTERM comes five minutes before it
#   --array=JOBS  job numbers, such as 0-35, or 0-35%4 for four at a time
#   --dry_run     print the command, and do not run it
#
# sbatch reads further options from SBATCH_PARTITION, SBATCH_ACCOUNT, ...

set -euo pipefail
# shellcheck source=scripts/launching.sh
. "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

nodes=1 gpus=1 cpus=8 time='' array=''
parse "nodes gpus cpus time array" "$@"
for flag in nodes gpus cpus; do is_count "$flag"; done
[[ ! $array || $array =~ ^[0-9]+(-[0-9]+)?(%[0-9]+)?$ ]] || mistake "--array=$array: give a range, as in 0-35"
[[ ! $array || $nodes == 1 ]] || mistake "--nodes=$nodes: a job of --array is on one node"

step="srun --cpus-per-task=$cpus $(quoted "${command[@]}")"
tasks=1
if ((nodes > 1)); then
  tasks=$gpus # JAX gives a task of Slurm the one GPU of its number on the node
  step+=' --multiprocess'
fi

execute sbatch --nodes="$nodes" --ntasks-per-node="$tasks" --gpus-per-node="$gpus" \
  --cpus-per-task="$cpus" ${time:+--time="$time"} ${array:+--array="$array"} \
  --requeue --signal=TERM@300 --wrap="$step"
