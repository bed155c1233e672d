#!/usr/bin/env bash
# Train stage 2 on the output of stage 1 (STAGE1). Environment: CONFIG, and what scripts/launch.sh reads; the rest is
# key=value settings.
set -euo pipefail
cd "$(dirname "$0")"
STAGE1=${STAGE1:-outputs/stage1-ucf101/final}
exec bash scripts/launch.sh scripts/train.py "${CONFIG:-configs/stage2/ucf101.yaml}" "tokenizer=$STAGE1" "$@"
