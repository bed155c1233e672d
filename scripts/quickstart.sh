#!/usr/bin/env bash
# From a fresh clone to reconstructed and generated videos, on a CPU, without a download:
# bash scripts/quickstart.sh [VIDEO...]
# Trains every stage on synthetic clips. It can be run again: finished steps are reused, interrupted ones continue.
set -euo pipefail
videos=()
for video in "$@"; do videos+=("$(realpath "$video")"); done
cd "$(dirname "$0")/.."
start=$SECONDS
out=outputs/tiny
# At this size two processes with one thread each are faster than one with two.
trained=$(($(nproc 2>/dev/null || echo 1) > 1 ? 2 : 1))
step() { printf '\n== %s (%d:%02d)\n' "$1" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)); }

step "environment"
bash scripts/setup.sh core
sweettok=(.venv/bin/python -m sweettok)

step "synthetic clips"
"${sweettok[@]}" data synthetic "$out/clips" --num-train 1600 --num-val 64 --frames 17 --size 64 --seed 1 --plain

step "codebook prior from their captions"
"${sweettok[@]}" priors build --captions "$out/clips/captions.jsonl" --out "$out/prior" --dim 32 --neighbors 2

step "proxy tokenizer"
NUM_PROCESSES=$trained CONFIG=configs/tiny/proxy.yaml bash run_train_proxy.sh
step "stage 1: predict the codes of the proxy"
NUM_PROCESSES=$trained CONFIG=configs/tiny/stage1.yaml bash run_train_stage1.sh
step "stage 2: pixels"
NUM_PROCESSES=$trained CONFIG=configs/tiny/stage2.yaml STAGE1=$out/stage1/final bash run_train_stage2.sh

step "evaluation on held-out clips"
evaluate() { CHECKPOINT=$out/$1/final DATA=$out/clips/val.txt OUT=$out/$1.json bash run_eval.sh > "$out/$1.txt"; }
export OMP_NUM_THREADS=1  # for two commands side by side
evaluate proxy &
other=$!
evaluate stage1
evaluate stage2
wait "$other"
cat "$out/stage2.txt"
"${sweettok[@]}" eval motion --checkpoint "$out/stage2/final" --data "$out/clips/val.txt" --out "$out/motion.json"
.venv/bin/python scripts/quickstart_table.py tokenizer "$out"

step "reconstructions, and tokens of all clips"
if [ ${#videos[@]} -eq 0 ]; then
  mapfile -t videos < <(cut -f1 "$out/clips/val.txt" | head -n 4 | sed "s#^#$out/clips/#")
fi
"${sweettok[@]}" eval reconstruct "${videos[@]}" --checkpoint "$out/stage2/final" --out "$out/reconstructions" &
other=$!
for part in train val; do
  "${sweettok[@]}" tokenize --checkpoint "$out/stage2/final" --data "$out/clips/$part.txt" \
    --classes "$out/clips/classes.txt" --out "$out/tokens/$part"
done
wait "$other"
unset OMP_NUM_THREADS

step "generator"
NUM_PROCESSES=$trained CONFIG=configs/tiny/generator.yaml bash run_train_generator.sh
.venv/bin/python scripts/quickstart_table.py generator "$out"

step "generated clips of every class"
GENERATOR=$out/generator/final CHECKPOINT=$out/stage2/final REAL=$out/clips/val.txt OUT=$out/generated PER_CLASS=8 \
  bash run_eval_gen.sh --cfg-scale 2 --temperature 0.5 --top-p 0.9
"${sweettok[@]}" eval motion --checkpoint "$out/stage2/final" --data "$out/clips/val.txt" --train "$out/clips/train.txt" \
  --fake "$out/generated/samples" --out "$out/generated/motion.json"
.venv/bin/python scripts/quickstart_table.py generated "$out"

step "done"
cat <<EOF
next: source .venv/bin/activate
tokenizer          $out/stage2/final      SweetTok.from_pretrained("$out/stage2/final")
reconstructions    $out/reconstructions   (original | reconstruction | difference)
generator          $out/generator/final   Generator.from_pretrained("$out/generator/final")
generated clips    $out/generated/samples/contact_sheet.png  contact_sheet.mp4  videos/
evaluation         $out/proxy.json  $out/stage1.json  $out/stage2.json  $out/motion.json  $out/generated/motion.json
training logs      $out/{proxy,stage1,stage2,generator}/log.jsonl
EOF
