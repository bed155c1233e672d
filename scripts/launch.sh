#!/usr/bin/env bash
# Run a Python script of this repository on every device: scripts/launch.sh scripts/train.py CONFIG [key=value ...]
# NUM_PROCESSES counts over all machines; by default one for each GPU, or one on a machine without.
# ACCELERATE_CONFIG=configs/accelerate/fsdp.yaml shares the weights out over the processes; what is said here stays.
# Many machines: run the same line on each, with NUM_MACHINES=2 MACHINE_RANK=0 (then 1) MAIN_PROCESS_IP=<of rank 0>.
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

options=(--num_processes "$processes" --num_machines "$machines" --machine_rank "${MACHINE_RANK:-0}")
options+=(--mixed_precision no --dynamo_backend no)  # the configuration decides
options+=(--num_cpu_threads_per_process "${OMP_NUM_THREADS:-$((cores > here ? cores / here : 1))}")
options+=(--main_process_port "${MAIN_PROCESS_PORT:-$((machines > 1 ? 29500 : 0))}")
if [ -n "${MAIN_PROCESS_IP:-}" ]; then options+=(--main_process_ip "$MAIN_PROCESS_IP"); fi
if [ -n "${ACCELERATE_CONFIG:-}" ]; then options+=(--config_file "$ACCELERATE_CONFIG")
elif [ "$processes" -gt 1 ]; then options+=(--multi_gpu); else options+=(--quiet); fi
if [ "$gpus" -eq 0 ] && [ "$processes" -gt 1 ]; then export ACCELERATE_USE_CPU=${ACCELERATE_USE_CPU:-true}; fi

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m accelerate.commands.launch "${options[@]}" "$@"
