#!/usr/bin/env bash
# VTok from a fresh clone, on a CPU, without a download: bash scripts/quickstart_vtok.sh
# Trains a small image encoder, video decoder and language model on drawn scenes, answers questions about held-out clips
# and makes videos of held-out captions. It can be run again: finished steps are reused, interrupted ones continue.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
out=outputs/vtok
# At this size two processes with one thread each are faster than one with two.
trained=$(($(nproc 2>/dev/null || echo 1) > 1 ? 2 : 1))
step() { printf '\n== %s (%d:%02d)\n' "$1" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)); }
train() { NUM_PROCESSES=$trained bash scripts/launch.sh -m sweettok train "$@"; }

step "environment"
bash scripts/setup.sh vtok
sweettok=(.venv/bin/python -m sweettok)

step "scenes with captions and questions"
"${sweettok[@]}" data scenes "$out/scenes" --num-train 2048 --num-val 256 --size 32

step "image encoder"
train configs/tiny/vtok_encoder.yaml
step "video decoder"
train configs/tiny/vtok_decoder.yaml
step "language model"
train configs/tiny/vtok.yaml

step "questions about held-out clips"
"${sweettok[@]}" eval qa --checkpoint "$out/joint/final" --data "$out/scenes/val.txt" --out "$out/qa.json"
"${sweettok[@]}" eval qa --checkpoint "$out/joint/final" --data "$out/scenes/val.txt" --blind --out "$out/qa_blind.json"

step "videos of held-out captions"
"${sweettok[@]}" eval tvalign-prompts "$out/triplets.jsonl" --num 70 --seed 1
"${sweettok[@]}" generate --prompts "$out/triplets.jsonl" --checkpoint "$out/joint/final" --out "$out/predicted"
.venv/bin/python scripts/quickstart_vtok.py oracle "$out"
for kind in predicted oracle true; do
  "${sweettok[@]}" eval tvalign --triplets "$out/triplets.jsonl" --videos "$out/$kind" --out "$out/tvalign_$kind.json"
done

step "results"
.venv/bin/python scripts/quickstart_vtok.py table "$out"

step "done"
cat <<EOF
next: source .venv/bin/activate
tokenizer          $out/encoder/final     VTok.from_pretrained("$out/encoder/final")
language model     $out/joint/final       VideoLanguageModel.from_pretrained("$out/joint/final")
generated videos   $out/predicted/contact_sheet.png   from captions alone
                   $out/oracle/contact_sheet.png      from the true tokens of a clip; $out/true: these clips
reports            $out/qa.json  $out/qa_blind.json  $out/tvalign_{predicted,oracle,true}.json
training logs      $out/{encoder,decoder,joint}/log.jsonl
EOF
