#!/usr/bin/env bash
# Run a Python script of this repository on every device: scripts/launch.sh scripts/train.py CONFIG [key=value ...]
# NUM_PROCESSES counts over all machines; by default one for each GPU, or one on a machine without.
# ACCELERATE_CONFIG=configs/accelerate/fsdp.yaml shares the weights out over the processes; what is said here stays.
# Many machines: run the same line on each, with NUM_MACHINES=2 MACHINE_RANK=0 (then 1) MAIN_PROCESS_IP=<of rank 0>.
# SIGTERM and SIGINT reach the processes themselves, which save and stop; the exit status is then 75. The others are
# those of the script too, and what it says of an error is the last line.
set -euo pipefail
cd "$(dirname "$0")/.."

python=python3
if [ -n "${VIRTUAL_ENV:-}" ]; then python=$VIRTUAL_ENV/bin/python; elif [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)}
gpus=$(tr ', ' '\n' <<<"$gpus" | grep -c '^[^-]' || true)
machines=${NUM_MACHINES:-1}
processes=${NUM_PROCESSES:-$(((gpus > 0 ? gpus : 1) * machines))}
cores=$(getconf _NPROCESSORS_ONLN)
here=$(((processes + machines - 1) / machines))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > here ? cores / here : 1))}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if [ "$processes" -eq 1 ] && [ -z "${ACCELERATE_CONFIG:-}" ]; then exec "$python" "$@"; fi

options=(--num_processes "$processes" --num_machines "$machines" --machine_rank "${MACHINE_RANK:-0}")
options+=(--mixed_precision no --dynamo_backend no)  # the configuration decides
options+=(--num_cpu_threads_per_process "$OMP_NUM_THREADS")
options+=(--main_process_port "${MAIN_PROCESS_PORT:-$((machines > 1 ? 29500 : 0))}")
if [ -n "${MAIN_PROCESS_IP:-}" ]; then options+=(--main_process_ip "$MAIN_PROCESS_IP"); fi
if [ -n "${ACCELERATE_CONFIG:-}" ]; then options+=(--config_file "$ACCELERATE_CONFIG"); else options+=(--multi_gpu); fi
if [ "$gpus" -eq 0 ] && [ "$processes" -gt 1 ]; then export ACCELERATE_USE_CPU=${ACCELERATE_USE_CPU:-true}; fi

# The launcher passes signals on, but answers 1 however its processes end, and then has much to say, so that theirs
# comes in a file; and it would kill them after 30 seconds, which may be too few to save.
LAUNCH_STATUS=$(mktemp)
export LAUNCH_STATUS TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
trap 'rm -f "$LAUNCH_STATUS"' EXIT
"$python" -m accelerate.commands.launch "${options[@]}" "$@" &
launcher=$!
trap 'kill -TERM "$launcher" 2>/dev/null || true' TERM INT
code=0
while wait "$launcher" && code=0 || code=$?; kill -0 "$launcher" 2>/dev/null; do :; done
if [ -s "$LAUNCH_STATUS" ]; then { read -r code; cat >&2; } <"$LAUNCH_STATUS"; fi
exit "$code"
