"""The test cluster itself: it comes up, runs jobs and arrays, requeues through submitit, works without accounting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import submitit

from tests.cluster.cluster import HERE, Cluster, up


class Turn:
    """Waits for ever in its first turn; a checkpoint makes the second one return at once."""

    def __init__(self, first: bool = True) -> None:
        self.first = first

    def __call__(self, begun: Path) -> str | None:
        begun.touch()
        while self.first:
            time.sleep(1)
        return os.environ.get("SLURM_RESTART_COUNT")

    def checkpoint(self, begun: Path) -> submitit.helpers.DelayedSubmission:
        return submitit.helpers.DelayedSubmission(Turn(first=False), begun)


def test_four_idle_nodes_with_four_gpus(slurm: Cluster):
    assert slurm.nodes() == dict.fromkeys(["n1", "n2", "n3", "n4"], "idle")
    assert slurm.do("sinfo", "-h", "-p", "main", "-o", "%P|%l|%G|%D|%a|%c") == "main*|infinite|gpu:4|4|up|8"


def test_starting_it_again_finds_it_and_an_unknown_option_is_refused(slurm: Cluster):
    controller = (slurm.folder / "run/slurmctld.pid").read_text()
    assert up(slurm.folder) == slurm
    assert (slurm.folder / "run/slurmctld.pid").read_text() == controller
    done = subprocess.run(["bash", HERE / "slurm-up", slurm.folder, "--nods=2"], capture_output=True, text=True)
    assert done.returncode == 1 and "unknown option --nods" in done.stderr


def test_a_plain_job_on_its_node_with_its_gpu(slurm: Cluster, tmp_path: Path):
    words = ["--nodelist=n2", "--gres=gpu:1", "--mem=100", f"--output={tmp_path}/out"]
    job = slurm.do("sbatch", "--parsable", *words, "--wrap", "echo $(hostname) $CUDA_VISIBLE_DEVICES")
    slurm.wait(lambda: slurm.squeue()[job].state == "COMPLETED", 20, "the job's end")
    assert (tmp_path / "out").read_text() == "n2 0\n"
    slurm.wait(lambda: [row[1:] for row in slurm.sacct(job)] == [("COMPLETED", "0:0")], 10, "its row in sacct")


def test_an_array_of_three_whose_second_fails(slurm: Cluster):
    words = ["--array=0-2", "--mem=100", "--output=/dev/null", "--comment=three"]
    job = slurm.do("sbatch", "--parsable", *words, "--wrap", "exit $((SLURM_ARRAY_TASK_ID == 1 ? 3 : 0))")
    ids = [f"{job}_{i}" for i in range(3)]
    slurm.wait(lambda: all(slurm.squeue()[i].state in ("COMPLETED", "FAILED") for i in ids), 20, "three ends")
    queue = slurm.squeue()
    assert [queue[i].state for i in ids] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert {queue[i].comment for i in ids} == {"three"}
    slurm.wait(lambda: {row.exit for row in slurm.sacct(ids[1])} == {"3:0"}, 10, "the exit status in sacct")


def test_a_signal_requeues_through_submitits_checkpoint(slurm: Cluster, tmp_path: Path):
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(timeout_min=5, slurm_mem="500", cpus_per_task=1)
    job = executor.submit(Turn(), tmp_path / "begun")
    slurm.wait((tmp_path / "begun").exists, 30, "the first turn")
    slurm.do("scancel", "--signal=USR2", job.job_id)
    slurm.wait(job.paths.result_pickle.exists, 60, "the second turn's result")
    assert job.result() == "1"
    assert slurm.sacct(job.job_id)[0].state == "REQUEUED"


def test_without_accounting_jobs_run_and_sacct_fails(slurm_no_accounting: Cluster):
    job = slurm_no_accounting.do("sbatch", "--parsable", "--mem=100", "--output=/dev/null", "--wrap", "true")
    slurm_no_accounting.wait(lambda: slurm_no_accounting.squeue()[job].state == "COMPLETED", 20, "the job's end")
    done = slurm_no_accounting.ask("sacct", "-j", job)
    assert done.returncode == 1 and "accounting storage is disabled" in done.stderr


def test_no_other_test_sees_the_cluster_in_which_pytest_runs():
    code = "import tests.conftest, os; print(sorted(n for n in os.environ if n.startswith(('SLURM', 'SBATCH'))))"
    outside = os.environ | {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "real"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=outside, check=True)
    assert done.stdout.strip() == "['SLURM_CONF']" and os.environ["SLURM_CONF"] == os.devnull
