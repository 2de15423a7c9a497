"""What a cluster does to running jobs, done to real ones: each run goes on from where it was, to the same bits."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

from harness.launch.folders import Batches
from harness.launch.tasks import Task
from tests.cluster.cluster import Cluster
from tests.cluster.studies import SLURM, SMALL, Study, Toys, pretraining

HELD = ("run", "--methods=held", "--budget=600step")


def undisturbed(toys: Toys, seeds: int) -> list[str]:
    """Final weights of the same runs in this process, by seed."""
    done = toys.typed(*HELD, f"--seeds={seeds}", "--name=calm", "--cluster=inline", *SMALL)
    assert done.status == 0, done.err
    study = toys.study("calm")
    return [study.weights(key) for key in study.keys]


def turns(slurm: Cluster, *jobs: str) -> Counter[str]:
    """How the turns of jobs ended, requeues included."""
    return Counter(row.state.split()[0] for row in slurm.sacct(*jobs) if row.id in jobs)


def test_signal_kill_lost_node_and_preemption_end_in_the_bits_of_an_undisturbed_run(slurm: Cluster, toys: Toys):
    words = (*HELD, "--seeds=3", "--name=struck", "--partition=scavenge", "slurm.exclusive=true", *SLURM, *SMALL)
    command, study = toys.begun(*words), toys.study("struck")
    keys = toys.running(study, 3)
    toys.park("evaluate")
    jobs = [study.job(pretraining(key)) for key in keys]
    nodes = [slurm.squeue()[job].node for job in jobs]
    assert len(set(nodes)) == 3

    slurm.do("scancel", "--signal=USR2", jobs[0])
    slurm.do("scancel", "--signal=KILL", f"{jobs[1]}.0")  # its processes: of a whole job it is a person's cancel
    urgent = ["--partition=urgent", "--exclusive", f"--nodelist={nodes[2]}", "--output=/dev/null"]
    slurm.do("sbatch", *urgent, "--wrap", "sleep 1")
    toys.wait(lambda: all(study.resumed(key) for key in keys), "each run to go on")
    slurm.do("scontrol", "requeue", jobs[0])
    slurm.do("scontrol", "update", f"nodename={slurm.squeue()[jobs[2]].node}", "state=DOWN", "reason=test")
    toys.wait(lambda: [len(study.resumed(key)) for key in keys] == [2, 1, 2], "two of them to go on once more")
    toys.release()
    toys.wait(lambda: study.states() == ["finished"] * 3, "three finished runs")

    assert all(min(study.resumed(key)) > 0 for key in keys)
    assert [len(study.claims(pretraining(key))) for key in keys] == [1, 2, 1]
    toys.wait(lambda: turns(slurm, jobs[0]) == {"REQUEUED": 2, "COMPLETED": 1}, "the rows of sacct", 20)
    assert turns(slurm, jobs[2])["NODE_FAIL"] == 1
    command.send_signal(signal.SIGINT)
    left = toys.ended(command)
    assert left.status == 0 and "left: the jobs go on without this command" in left.out
    assert [study.weights(key) for key in keys] == undisturbed(toys, 3)


def test_a_run_longer_than_the_time_limit_is_chained(slurm: Cluster, toys: Toys):
    words = ("--partition=short", "cluster.signal_s=25", *SLURM, *SMALL)
    toys.begun(*HELD, "--name=chained", *words)
    study = toys.study("chained")
    (key,) = toys.running(study, 1)
    toys.park("evaluate")

    def asked_to_stop() -> bool:  # and not only ended by the limit, as where Python is not up when the signal comes
        jobs = [Batches(study.place).submitted(claim.batch).job for claim in study.claims(pretraining(key))]
        return turns(slurm, *jobs)["REQUEUED"] > 0

    toys.wait(asked_to_stop, "the signal before the limit to put it back into the queue")
    toys.wait(lambda: study.resumed(key), "its next turn")
    toys.release()
    toys.wait(lambda: study.states() == ["finished"], "the run's end")
    assert study.resumed(key)[0] > 0
    assert study.weights(key) == undisturbed(toys, 1)[0]


def test_commands_that_die_or_come_twice_and_a_lost_controller_submit_nothing_twice(slurm: Cluster, toys: Toys):
    words = ("run", "--methods=held,other", "--budget=600step", "--name=twice", *SLURM, *SMALL)
    one, two = toys.begun(*words), toys.begun(*words)
    study = toys.study("twice")
    keys = toys.running(study, 2)
    _saved(slurm, toys)
    slurm.kill_controller()
    one.kill()
    three = toys.begun(*words)
    time.sleep(12)  # more than a command of SLURM's waits for an answer
    slurm.revive()
    toys.release()
    said = [toys.ended(two), toys.ended(three)]
    assert [done.status for done in said] == [0, 0], said

    tasks = [pretraining(key) for key in keys] + [Task("evaluate", key, share) for key in keys for share in (0.0, 1.0)]
    assert [len(study.claims(task)) for task in tasks] == [1] * len(tasks)
    assert study.states() == ["finished"] * 2 and [study.record(key).attempts for key in keys] == [1, 1]
    toys.wait(lambda: _done_once(slurm, study), "one row in sacct for each task", 20)


def _saved(slurm: Cluster, toys: Toys) -> None:
    """Wait until the controller has saved its jobs: it would take one that runs for pending, or not know it at all."""
    since, state = time.time(), slurm.folder / "state/job_state"
    slurm.do("sbatch", "--hold", "--output=/dev/null", "--wrap", "true")  # else there may be nothing to save
    toys.wait(lambda: state.stat().st_mtime > since, "the controller to save its jobs")


def _done_once(slurm: Cluster, study: Study) -> bool:
    """Whether every job of the study that does work ran once, and nothing else was submitted for it."""
    jobs = [job for job in slurm.squeue().values() if Path(job.folder) == study.path.parent.parent]
    work = [job.id for job in jobs if job.name.startswith(("harness-pretrain-", "harness-evaluate-"))]
    return turns(slurm, *work) == {"COMPLETED": 6} == {"COMPLETED": len(work)}


def test_cancel_ends_one_run_or_all_and_resume_goes_on(slurm: Cluster, toys: Toys):
    study = toys.study("cancelled")
    done = toys.typed(*HELD, "--seeds=2", "--name=cancelled", "--detach", *SLURM, *SMALL)
    assert done.status == 0, done.err
    keys = toys.running(study, 2)
    jobs = [study.job(pretraining(key)) for key in keys]

    one = toys.typed("cancel", str(study.path), keys[0])
    assert one.status == 0 and f"cancelled  pretrain {keys[0]}" in one.out and keys[1] not in one.out
    toys.wait(lambda: slurm.squeue()[jobs[0]].state == "CANCELLED", "the end of the cancelled job")
    assert slurm.squeue()[jobs[1]].state == "RUNNING"
    toys.typed("cancel", str(study.path))
    toys.wait(lambda: not slurm.do("squeue", "-h", "-o", "%i"), "an empty queue")
    shown = toys.typed("status", str(study.path))
    assert "cancelled" in shown.out
    nothing = toys.typed("cancel", str(study.path))
    assert nothing.status == 0 and nothing.out.strip() == "no job of it is waiting or running"

    again = toys.typed("resume", str(study.path), "--detach")
    assert again.status == 0 and "submitted pretrain-" in again.out
    toys.park("evaluate")
    toys.wait(lambda: all(study.resumed(key) for key in keys), "both runs to go on")
    toys.release()
    toys.wait(lambda: study.states() == ["finished"] * 2, "both runs' end")
    assert all(study.resumed(key)[0] > 0 for key in keys)
