#!/usr/bin/env bash
# VTok from a fresh clone, on a CPU, without a download: bash scripts/quickstart_vtok.sh
# Trains a small image encoder, video decoder and language model on drawn scenes; answers questions about held-out clips
# and makes videos of held-out captions. It can be run again: finished steps are reused, interrupted ones continue.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
out=outputs/vtok
# At this size two processes with one thread each are faster than one with two.
export NUM_PROCESSES=$(($(nproc 2>/dev/null || echo 1) > 1 ? 2 : 1))
step() { printf '\n== %s (%d:%02d)\n' "$1" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)); }

step "environment"
bash scripts/setup.sh vtok
sweettok=(.venv/bin/python -m sweettok)

step "scenes with captions and questions"
"${sweettok[@]}" data scenes "$out/scenes" --num-train 2048 --num-val 256 --size 32

for stage in encoder decoder; do
  step "$stage"
  bash scripts/launch.sh train.py "configs/tiny/vtok_$stage.yaml"
done
step "language model"

step "answers about held-out clips"

step "videos of held-out captions"

step "done"
