#!/usr/bin/env bash
# Runs a command as one run on all workers of a Cloud TPU pod slice, each with an installed copy of
# what is committed of this checkout. MODEL_DIR must be in a bucket.
#
# usage: scripts/tpu_pod.sh --name=NAME --zone=ZONE [flags] -- python -m prompt_tuning.train ...
#
#   --name=NAME, --zone=ZONE  of the TPU
#   --project=PROJECT         gcloud's own, if not given
#   --type=TYPE               makes the TPU first: v3-32, v5litepod-256, ...
#   --version=VERSION         of its software: tpu-ubuntu2204-base, v2-alpha-tpuv5-lite, ...
#   --dry_run                 prints the commands and runs none

set -euo pipefail
# shellcheck source=scripts/launching.sh
. "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

on_tpu all --multiprocess "$@"
