#!/usr/bin/env bash
#SBATCH --job-name=sweettok
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@180
#SBATCH --requeue
# Train on SLURM, from the repository's root: sbatch [--nodes=4 --time=24:00:00] scripts/slurm.sh run_train_stage1.sh ...
# One launcher on every node. At the time limit, and when preempted, the run saves and is queued again, until it is done.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "slurm.sh: nothing to run; expected a script of this repository and its arguments, as in run_train_stage1.sh" >&2
  exit 2
fi

NUM_MACHINES=${SLURM_NNODES:?"is not set: submit this file by sbatch, which sets it"}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MAIN_PROCESS_IP=${nodes[0]}
MAIN_PROCESS_PORT=${MAIN_PROCESS_PORT:-$((20000 + SLURM_JOB_ID % 20000))}  # two jobs may share a node
export NUM_MACHINES MAIN_PROCESS_IP MAIN_PROCESS_PORT

status=0
srun bash -c 'MACHINE_RANK=$SLURM_NODEID exec bash "$@"' slurm.sh "$@" || status=$?
if [ "$status" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi  # stopped by a signal, and saved
exit "$status"
