#!/usr/bin/env bash
# Runs a command on a Cloud TPU VM, in an installed copy of this checkout's last commit.
#
# usage: scripts/tpu_vm.sh --name=NAME --zone=ZONE [flags] -- python -m prompt_tuning.train ...
#
#   --name=NAME, --zone=ZONE  name and zone of the TPU
#   --project=PROJECT         project; default: gcloud's
#   --type=TYPE               create the TPU first: v4-8, v5litepod-8, ...
#   --version=VERSION         software version of the new TPU: tpu-ubuntu2204-base, v2-alpha-tpuv5-lite, ...
#   --dry_run                 print the commands, and run none

set -euo pipefail
# shellcheck source=scripts/launching.sh
. "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

on_tpu 0 '' "$@"
