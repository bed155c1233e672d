#!/usr/bin/env bash
# Train the generator on token shards. Environment: CONFIG, and what scripts/launch.sh reads; the rest is key=value
# settings. The shards come from `python -m sweettok.inference tokenize`.
set -euo pipefail
cd "$(dirname "$0")"
exec bash scripts/launch.sh -m sweettok train "${CONFIG:-configs/generator/ucf101.yaml}" "$@"
