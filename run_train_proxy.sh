#!/usr/bin/env bash
# Train a proxy tokenizer. Environment: CONFIG, and what scripts/launch.sh reads; the rest is key=value settings.
set -euo pipefail
cd "$(dirname "$0")"
exec bash scripts/launch.sh -m sweettok train "${CONFIG:-configs/proxy/ucf101.yaml}" "$@"
