#!/usr/bin/env bash
# Train the generator on token shards, which `sweettok tokenize` writes.
# Environment: CONFIG, and the variables of scripts/launch.sh. Arguments: key=value settings.
set -euo pipefail
cd "$(dirname "$0")"
exec bash scripts/launch.sh -m sweettok train "${CONFIG:-configs/generator/ucf101.yaml}" "$@"
