#!/usr/bin/env bash
# Evaluate reconstructions. Environment: CHECKPOINT (folder), DATA (list or folder), I3D (weights; without them no rFVD),
# PROTOCOL, OUT (report); further arguments as in `sweettok eval rfvd --help`.
set -euo pipefail
cd "$(dirname "$0")"
CHECKPOINT=${CHECKPOINT:-outputs/stage2-ucf101/final}
DATA=${DATA:-data/ucf101/val.txt}
I3D=${I3D:-checkpoints/i3d_pretrained_400.pt}
OUT=${OUT:-outputs/rfvd.json}
options=(--checkpoint "$CHECKPOINT" --data "$DATA" --protocol "${PROTOCOL:-exact}" --out "$OUT")
if [ -f "$I3D" ]; then options+=(--i3d "$I3D"); fi
exec bash scripts/launch.sh -m sweettok eval rfvd "${options[@]}" "$@"
