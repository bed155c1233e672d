#!/usr/bin/env bash
# Run a command on every device: scripts/launch.sh -m sweettok train CONFIG [key=value ...]
# NUM_PROCESSES counts over all machines; by default one for each GPU, or one on a machine without GPUs.
# ACCELERATE_CONFIG=configs/accelerate/fsdp.yaml shards the weights over the processes.
# Several machines: run the same line on each, with NUM_MACHINES=2 MACHINE_RANK=0 (then 1) MAIN_PROCESS_IP=<of rank 0>.
# SIGTERM and SIGINT reach the processes, which save and stop. The exit status and the last line on stderr are those of
# the command, as with one process.
set -euo pipefail
cd "$(dirname "$0")/.."

python=python3
if [ -n "${VIRTUAL_ENV:-}" ]; then python=$VIRTUAL_ENV/bin/python; elif [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)}
gpus=$(tr ', ' '\n' <<<"$gpus" | grep -c '^[^-]' || true)
machines=${NUM_MACHINES:-1}
processes=${NUM_PROCESSES:-$(((gpus > 0 ? gpus : 1) * machines))}
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)  # that this process may use
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

# Processes that are asked to stop get time to save.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
exec "$python" -m sweettok.cli.launcher "${options[@]}" "$@"
