#!/usr/bin/env bash
# Train the spatial branch on images, for stage 1 to start from.
# Environment: CONFIG, and the variables of scripts/launch.sh. Arguments: key=value settings.
set -euo pipefail
cd "$(dirname "$0")"
exec bash scripts/launch.sh -m sweettok train "${CONFIG:-configs/spatial/ucf101.yaml}" "$@"
