#!/usr/bin/env bash
#SBATCH --job-name=sweettok
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --signal=TERM@180
#SBATCH --requeue
# Train on SLURM, from the repository's root: sbatch [--nodes=4 --time=24:00:00] scripts/slurm.sh run_train_stage1.sh ...
# One launcher per node starts a process per GPU. Each process needs data.num_workers CPUs for its data workers, 12 in
# most configurations; on other nodes give --gpus-per-node and --cpus-per-task. At the time limit, and when preempted,
# the run saves a checkpoint and is queued again, until it is done.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "error: nothing to run; give a script of this repository and its arguments, such as run_train_stage1.sh" >&2
  exit 2
fi

NUM_MACHINES=${SLURM_NNODES:?"is not set: submit this file by sbatch, which sets it"}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MAIN_PROCESS_IP=${nodes[0]}
MAIN_PROCESS_PORT=${MAIN_PROCESS_PORT:-$((20000 + SLURM_JOB_ID % 20000))}  # two jobs may share a node
export NUM_MACHINES MAIN_PROCESS_IP MAIN_PROCESS_PORT
# srun does not take over the job's CPUs by itself.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

status=0
srun bash -c 'MACHINE_RANK=$SLURM_NODEID exec bash "$@"' slurm.sh "$@" || status=$?
if [ "$status" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi  # stopped by a signal after saving
exit "$status"
