#!/usr/bin/env bash
# Train a proxy tokenizer.
# Environment: CONFIG, and the variables of scripts/launch.sh. Arguments: key=value settings.
set -euo pipefail
cd "$(dirname "$0")"
exec bash scripts/launch.sh -m sweettok train "${CONFIG:-configs/proxy/ucf101.yaml}" "$@"
