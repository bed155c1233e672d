"""scripts/slurm.sh with replacements of SLURM's own commands: two nodes, one launcher on each."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "slurm.sh"
CONFIGS = (SCRIPT.parent.parent / "configs").rglob("*.yaml")
SRUN = """#!/usr/bin/env bash
worst=0
for node in 0 1; do SLURM_NODEID=$node "$@" || { code=$?; worst=$((code > worst ? code : worst)); }; done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1 $2" = "show hostnames" ]; then printf '%s-a\\n%s-b\\n' "$3" "$3"; else echo "scontrol $*"; fi
"""
JOB = """address="$MAIN_PROCESS_IP:$MAIN_PROCESS_PORT, $SRUN_CPUS_PER_TASK CPUs"
echo "$MACHINE_RANK of $NUM_MACHINES at $address: $*"; exit "${STATUS[MACHINE_RANK]}"
"""


@pytest.fixture
def submit(tmp_path):
    """Run slurm.sh on a script whose nodes end with these statuses; (status, lines printed)."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*arguments: str, statuses: tuple[int, int] = (0, 0)) -> tuple[int, list[str]]:
        (tmp_path / "job.sh").write_text(f"STATUS=({statuses[0]} {statuses[1]})\n{JOB}")
        slurm = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu", "SLURM_JOB_ID": "40007", "SLURM_CPUS_PER_TASK": "24"}
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **slurm, "PATH": path}
        environment.pop("MAIN_PROCESS_PORT", None)
        done = subprocess.run(
            ["bash", SCRIPT, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        return done.returncode, (done.stdout + done.stderr).splitlines()

    return run


def test_every_node_gets_its_rank_the_first_address_and_the_job_s_cpus(submit):
    status, lines = submit("job.sh", "data.train=a b", "train.seed=1")
    assert status == 0
    assert lines == [f"{rank} of 2 at gpu-a:20007, 24 CPUs: data.train=a b train.seed=1" for rank in (0, 1)]


def test_a_run_that_saved_is_requeued(submit):
    status, lines = submit("job.sh", statuses=(75, 75))
    assert status == 75 and lines[-1] == "scontrol requeue 40007"


@pytest.mark.parametrize("statuses", [(0, 0), (1, 0), (2, 2)])
def test_a_run_that_ended_or_failed_is_not_requeued(submit, statuses):
    status, lines = submit("job.sh", statuses=statuses)
    assert status == max(statuses) and not [line for line in lines if "requeue" in line]


def test_the_job_asks_for_gpus_and_for_cpus_of_their_data_workers():
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\d+)", SCRIPT.read_text(), re.MULTILINE))
    workers = max(int(n) for path in CONFIGS for n in re.findall(r"num_workers: (\d+)", path.read_text()))
    assert int(asked["cpus-per-task"]) >= workers * int(asked["gpus-per-node"]) and asked["ntasks-per-node"] == "1"


def test_a_missing_script_is_an_error(submit):
    status, lines = submit()
    assert status == 2 and len(lines) == 1 and "run_train_stage1.sh" in lines[0]
