#!/usr/bin/env bash
# Train stage 2 on the output of stage 1.
# Environment: CONFIG, STAGE1, and the variables of scripts/launch.sh. Arguments: key=value settings.
# STAGE1 is the tokenizer to start from, by default the one that the configuration names.
set -euo pipefail
cd "$(dirname "$0")"
exec bash scripts/launch.sh -m sweettok train "${CONFIG:-configs/stage2/ucf101.yaml}" ${STAGE1:+"tokenizer=$STAGE1"} "$@"
