#!/usr/bin/env bash
# Train stage 1. Environment: CONFIG, SPATIAL, and what scripts/launch.sh reads; the rest is key=value settings.
# It starts from SPATIAL, a spatial pretraining; without SPATIAL and CONFIG from that of run_train_spatial.sh, if there
# is one; else as the configuration says.
set -euo pipefail
cd "$(dirname "$0")"
if [[ -z "${SPATIAL:-}" && -z "${CONFIG:-}" && -d outputs/spatial-ucf101/final ]]; then
  SPATIAL=outputs/spatial-ucf101/final
fi
exec bash scripts/launch.sh -m sweettok train "${CONFIG:-configs/stage1/ucf101.yaml}" ${SPATIAL:+"init=$SPATIAL"} "$@"
