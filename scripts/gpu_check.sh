#!/usr/bin/env bash
# Check a machine with a GPU in under 10 minutes: tests of training steps, plans of all configurations, benchmarks.
# Prints a JSON object, and writes the output of each part to outputs/gpu_check/. Exit status 1 if a part failed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=python3
if [ -n "${VIRTUAL_ENV:-}" ]; then python=$VIRTUAL_ENV/bin/python; elif [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
if [ -z "$gpu" ]; then echo '{"gpu": null, "message": "no GPU"}'; exit 0; fi

out=outputs/gpu_check
rm -rf "$out" && mkdir -p "$out"
declare -A status
part() {  # name, time limit in seconds, command
  local name=$1 limit=$2 code=0
  shift 2
  timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || code=$?
  status[$name]=$code
}
SECONDS=0
part tests 180 "$python" -m pytest -m cuda tests/test_gpu.py
part plans 90 "$python" -m pytest -m "slow or not slow" tests/test_train_plan.py -k eight_gpus
part train_fp32 80 "$python" scripts/bench/train.py --config-size full --steps 5 train.mixed_precision=no
part train_bf16 80 "$python" scripts/bench/train.py --config-size full --steps 5 train.mixed_precision=bf16
part tokenizer 60 "$python" scripts/bench/tokenizer.py --batch 4
part generator 60 "$python" scripts/bench/generator.py --batches 4 --dtype bfloat16

for name in "${!status[@]}"; do printf '%s\t%s\n' "$name" "${status[$name]}"; done |
  "$python" -c '
import json, sys
from pathlib import Path
gpu, seconds, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
parts = dict(line.rstrip("\n").split("\t") for line in sys.stdin)
found = {name: {"status": int(code), "output": (out / f"{name}.txt").read_text().splitlines()[-12:]}
         for name, code in sorted(parts.items())}
print(json.dumps({"gpu": gpu, "seconds": seconds, **found}, indent=1))
sys.exit(any(part["status"] for part in found.values()))
' "$gpu" "$SECONDS" "$out"
