#!/usr/bin/env bash
# Train stage 1. Environment: CONFIG, and what scripts/launch.sh reads; the rest is key=value settings.
set -euo pipefail
cd "$(dirname "$0")"
exec bash scripts/launch.sh scripts/train.py "${CONFIG:-configs/stage1/ucf101.yaml}" "$@"
