#!/usr/bin/env bash
# Draw samples from a generator and measure them. Environment: GENERATOR and CHECKPOINT (folders of generator and
# tokenizer), REAL (list or folder of real clips), PER_CLASS (samples of each class; empty where the arguments say how
# many), I3D (weights; without them no gFVD), PROTOCOL, OUT (folder); further arguments as in
# `sweettok sample --help`.
set -euo pipefail
cd "$(dirname "$0")"
GENERATOR=${GENERATOR:-outputs/generator-ucf101/final}
CHECKPOINT=${CHECKPOINT:-outputs/stage2-ucf101/final}
REAL=${REAL:-data/ucf101/train.txt}
I3D=${I3D:-checkpoints/i3d_pretrained_400.pt}
OUT=${OUT:-outputs/gfvd}
PER_CLASS=${PER_CLASS-100}
bash scripts/launch.sh -m sweettok sample --generator "$GENERATOR" --tokenizer "$CHECKPOINT" \
  --out "$OUT/samples" ${PER_CLASS:+--per-class "$PER_CLASS"} "$@"

options=(--fake "$OUT/samples" --checkpoint "$CHECKPOINT" --real "$REAL" --out "$OUT/gfvd.json" --cache outputs/real)
if [ -f "$I3D" ]; then options+=(--i3d "$I3D"); fi
bash scripts/launch.sh -m sweettok eval gfvd --protocol "${PROTOCOL:-exact}" "${options[@]}"
