#!/usr/bin/env bash
# Runs a command on a Cloud TPU VM, in an installed copy of what is committed of this checkout.
#
# usage: scripts/tpu_vm.sh --name=NAME --zone=ZONE [flags] -- python -m prompt_tuning.train ...
#
#   --name=NAME, --zone=ZONE  of the TPU
#   --project=PROJECT         gcloud's own, if not given
#   --type=TYPE               makes the TPU first: v4-8, v5litepod-8, ...
#   --version=VERSION         of its software: tpu-ubuntu2204-base, v2-alpha-tpuv5-lite, ...
#   --dry_run                 prints the commands and runs none

set -euo pipefail
# shellcheck source=scripts/launching.sh
. "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

on_tpu 0 '' "$@"
