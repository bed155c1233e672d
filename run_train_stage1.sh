#!/usr/bin/env bash
# Train stage 1.
# Environment: CONFIG, SPATIAL, and the variables of scripts/launch.sh. Arguments: key=value settings.
# SPATIAL is the spatial branch to start from. By default that is the output of run_train_spatial.sh if it exists and
# CONFIG is not given, and otherwise the one that the configuration names.
set -euo pipefail
cd "$(dirname "$0")"
if [[ -z "${SPATIAL:-}" && -z "${CONFIG:-}" && -d outputs/spatial-ucf101/final ]]; then
  SPATIAL=outputs/spatial-ucf101/final
fi
exec bash scripts/launch.sh -m sweettok train "${CONFIG:-configs/stage1/ucf101.yaml}" ${SPATIAL:+"init=$SPATIAL"} "$@"
