#!/usr/bin/env bash
# Train stage 2 on the output of stage 1. Environment: CONFIG, STAGE1, and what scripts/launch.sh reads; the rest is
# key=value settings. Without STAGE1 the tokenizer is the one that the configuration names.
set -euo pipefail
cd "$(dirname "$0")"
exec bash scripts/launch.sh -m sweettok train "${CONFIG:-configs/stage2/ucf101.yaml}" ${STAGE1:+"tokenizer=$STAGE1"} "$@"
