#!/usr/bin/env bash
# Runs a command as one run on all workers of a Cloud TPU pod slice, each with an installed copy of
# this checkout's last commit. MODEL_DIR must be in a bucket.
#
# usage: scripts/tpu_pod.sh --name=NAME --zone=ZONE [flags] -- python -m prompt_tuning.train ...
#
#   --name=NAME, --zone=ZONE  name and zone of the TPU
#   --project=PROJECT         project; default: gcloud's
#   --type=TYPE               create the TPU first: v3-32, v5litepod-256, ...
#   --version=VERSION         software version of the new TPU: tpu-ubuntu2204-base, v2-alpha-tpuv5-lite, ...
#   --dry_run                 print the commands, and run none

set -euo pipefail
# shellcheck source=scripts/launching.sh
. "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

on_tpu all --multiprocess "$@"
