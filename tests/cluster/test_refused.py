"""What a user meets whose request the cluster cannot fulfil, or whose jobs fail: told what to change."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from harness.launch.folders import Attempts
from harness.launch.tasks import Task
from tests.cluster.cluster import Cluster
from tests.cluster.studies import SMALL, Toys, pretraining

RUN = ("run", "--methods=held", "--budget=8step", "--name=refused", "--cluster=slurm", *SMALL)
CPU = (*RUN, "--gpus=0")


REFUSED = {
    "partition": (
        ("--partition=mian",),
        "unknown partition 'mian'",
        "did you mean 'main'? known: main, scavenge, short, urgent",
        "sinfo lists them; --partition NAME",
    ),
    "gpus": (
        ("--gpus=9",),
        "--gpus 9 on each node, and the nodes of the partition 'main' have 4",
        "at most 4",
        "--gpus 4, or --nodes for more than one node has",
    ),
    "nodes": (
        ("--nodes=9",),
        "--nodes 9, and the partition 'main' has 4",
        "at most 4",
        "--nodes 4, or another --partition",
    ),
    "gpu time": (
        ("--budget=1gpu-min",),
        "--budget 1gpu-min is counted in GPU time, and the jobs have no GPU",
        "a partition with GPUs, or a budget in wall time or in counts",
        "--gpus 1, or another partition than 'main'",
    ),
    "time limit below a checkpoint": (
        ("--time=4min", "train.checkpoint_s=180"),
        "a time limit of 4:00 is asked to stop 120 s before its end: 120 s of work, "
        "and one checkpoint is made every 180 s",
        "at least 190 s of work in a job",
        "a longer --time, a smaller cluster.signal_s, or a smaller train.checkpoint_s",
    ),
    "time limit of the partition": (
        ("--time=5min", "--partition=short"),
        "--time 5min, and the partition 'short' ends jobs after 1:00",
        "a limit within the partition's: longer runs are chained by themselves",
        "--time 1min, or leave it out",
    ),
    "constraint": (
        ("slurm.constraint=nosuch",),
        "sbatch: error: Batch job submission failed: Invalid feature specification",
        "a request that the cluster accepts",
        "harness run --dry-run shows the script",
    ),
}


def told(toys: Toys, *words: str) -> list[str]:
    """What the command says is wrong, what it expected and what to do; it submits nothing and has exit status 2.

    Before it stands what sbatch itself said, where it was asked.
    """
    done = toys.typed(*words)
    assert done.status == 2, done
    assert not toys.cluster.do("squeue", "-h", "-o", "%i")
    _, error, said = done.err.partition("error: sbatch refused" if "sbatch refused" in done.err else "error: ")
    return [line.strip() for line in (error + said).splitlines()]


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_the_cluster_cannot_fulfil(slurm: Cluster, toys: Toys, case: str):
    words, found, expected, next_step = REFUSED[case]
    lines = told(toys, *(CPU if case != "gpus" else RUN), *words)
    assert found in lines[0] and lines[1:] == [f"expected: {expected}", f"next: {next_step}"]


def test_a_machine_without_slurm(slurm: Cluster, toys: Toys, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as without:
        without.setenv("PATH", str(toys.folder))
        done = toys.typed(*CPU)
    assert done.status == 2
    assert done.err == (
        "error: no sbatch on this machine\n"
        "  expected: SLURM's client commands on the PATH\n"
        "  next: log in to a node of the cluster; or --cluster inline to run on this machine\n"
    )


SAID = {  # SLURM's own words, which this cluster has no occasion for
    "account": (
        "Invalid account or account/partition combination specified",
        "--account NAME: `sacctmgr show associations user=$USER` lists yours",
    ),
    "submit limit": (
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "fewer cells a command: the rest when these are done",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_sbatch_refuses(slurm: Cluster, toys: Toys, case: str, monkeypatch: pytest.MonkeyPatch):
    why, next_step = SAID[case]
    extra = 'echo "sbatch: error: AssocMaxSubmitJobLimit" >&2\n' if case == "submit limit" else ""
    fake = toys.folder / "bin/sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\n{extra}echo "sbatch: error: Batch job submission failed: {why}" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    lines = told(toys, *CPU, "--account=nosuch")
    assert "sbatch refused pretrain-" in lines[0]
    assert any(why in line for line in lines) and lines[-1] == f"next: {next_step}"
    study = toys.study("refused")
    assert study.end(pretraining(study.keys[0])).kind == "void"  # not counted as a failure of the run's


def test_a_disk_that_is_full_before_anything_is_submitted_or_while_a_run_trains(toys_on_a_small_disk: Toys):
    toys, study = toys_on_a_small_disk, toys_on_a_small_disk.study("refused")
    words = ("run", "--methods=held", "--budget=600step", "--name=refused", "--cluster=slurm", "--gpus=0", *SMALL)
    _fill(toys.folder / "others", but=2**18)
    lines = told(toys, *words)
    assert lines[0].startswith("error: no space left to write runs/refused/code/") and lines[1:] == FULL

    (toys.folder / "others").unlink()
    command = toys.begun(*words)
    (key,) = toys.running(study, 1)
    toys.park("evaluate")
    _fill(toys.folder / "others")
    stopped = toys.ended(command)
    assert stopped.status == 2
    assert [line.strip() for line in stopped.out.splitlines()[-2:]] == FULL

    (toys.folder / "others").unlink()
    toys.release()
    toys.begun(*words)
    toys.wait(lambda: study.states() == ["finished"], "the run's end")
    assert study.resumed(key)


FULL = [
    "expected: free space on the disk (or quota) that holds it; what was finished is kept",
    "next: free some space and repeat the command, or choose another folder with --out",
]


def _fill(path: Path, but: int = 0) -> None:
    """Leave `but` bytes free."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(path, path.stat().st_size - but)


def test_python_that_is_not_on_the_nodes(slurm: Cluster, toys: Toys):
    done = toys.typed(*CPU, "cluster.python=/nowhere/python", "cluster.tries=1")
    assert done.status == 1
    assert re.search("/nowhere/python.*: (not found|No such file)", done.out)
    assert toys.study("refused").states() == ["failed"]


def test_a_folder_that_the_nodes_do_not_share(slurm: Cluster, toys: Toys):
    runs = toys.folder / "runs"
    runs.mkdir()
    for n in range(1, 5):
        slurmd = (slurm.folder / f"run/slurmd-n{n}.pid").read_text().strip()
        subprocess.run(["nsenter", "-t", slurmd, "-m", "mount", "-t", "tmpfs", "none", runs], check=True)
    try:
        done = toys.typed(*CPU, "cluster.tries=1")
    finally:
        for n in range(1, 5):
            slurmd = (slurm.folder / f"run/slurmd-n{n}.pid").read_text().strip()
            subprocess.run(["nsenter", "-t", slurmd, "-m", "umount", runs], check=True)
    assert done.status == 1
    assert f"it left no log: is {runs / 'refused'} on a file system that the nodes share?" in done.out


def test_a_run_that_raises_three_times_has_failed_and_the_others_go_on(slurm: Cluster, toys: Toys):
    toys.release()
    words = ("--methods=held,broken,exits,reader", "--budget=8step", "--name=failing", "--cluster=slurm", "--gpus=0")
    done, study = toys.typed("run", *words, *SMALL), toys.study("failing")
    assert done.status == 1
    broken, exits, held, reader = study.keys
    record = study.record(broken)
    assert (record.state, record.message, record.attempts) == ("failed", "RuntimeError: this toy is broken", 3)
    assert len(study.claims(pretraining(broken))) == 3
    assert 'raise RuntimeError("this toy is broken")' in study.place.run(broken).error.read_text()  # the log's end
    assert study.record(held).state == "finished"
    # SLURM takes this one's job for failed, and ends the evaluation that was to come after it: no person did.
    assert study.record(exits).state == "finished"
    attempts = Attempts(study.place, Task("evaluate", exits, 1.0))
    assert [attempts.end(claim.attempt).kind for claim in attempts.all()] == ["dependency", ""]
    assert study.record(reader).state == "failed" and study.record(reader).shared == broken
    assert (
        "failed    pretrain broken digits nano 8step seed 0: RuntimeError: this toy is broken\n"
        f"            see python -m harness logs runs/failing {broken}\n"
    ) in done.out
