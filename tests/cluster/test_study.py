"""Studies on the test cluster from the command to the tables, watched and left alone."""

from __future__ import annotations

from pathlib import Path

from harness.launch.folders import Batches
from harness.launch.tasks import Task
from tests.cluster.cluster import Cluster
from tests.cluster.studies import SLURM, SMALL, Study, Toys, pretraining

RUN = (
    "run",
    "--methods=held,other",
    "--budget=8step",
    "--name=two",
    *SLURM,
    *SMALL,
    "--evals=knn",
    "train.log_s=1e-9",
)
NODES = "nodename=n[1-4]"


def times(slurm: Cluster, study: Study, batch: str) -> dict[str, tuple[str, str]]:
    """Start and end of each element of a batch, by its index."""
    job = Batches(study.place).submitted(batch).job
    rows = slurm.do("sacct", "-X", "-n", "-P", "-o", "JobID,State,Start,End", "-j", job).splitlines()
    fields = [row.split("|") for row in rows]
    assert {state for _, state, _, _ in fields} == {"COMPLETED"}
    return {id.partition("_")[2]: (start, end) for id, _, start, end in fields}


def test_a_study_of_two_methods(slurm: Cluster, toys: Toys, site: Path):
    before = set(slurm.squeue())
    dry = toys.typed(*RUN, "--dry-run", "slurm.constraint=")
    assert dry.status == 0 and not (toys.folder / "runs").exists() and set(slurm.squeue()) == before
    assert "#SBATCH --array=0-1" in dry.out and "#SBATCH --dependency=aftercorr:JOBID" in dry.out

    slurm.do("scontrol", "update", NODES, "state=DRAIN", "reason=later")
    toys.release()
    command, study = toys.begun(*RUN), toys.study("two")
    toys.wait(lambda: len(set(slurm.squeue()) - before) == 2 + 4 + 1 + 1, "runs, evaluations, references and tables")
    plugin = site / "held/method.py"
    code = plugin.read_text()
    plugin.write_text(code.replace("VERSION = 1", "VERSION = 2"))
    try:
        waiting = toys.typed("status", str(study.path))
        assert waiting.status == 0 and "0 of 7 tasks done, 7 queued" in waiting.out
        slurm.do("scontrol", "update", NODES, "state=RESUME")
        done = toys.ended(command)
    finally:
        plugin.write_text(code)
    assert done.status == 0, done.out
    it_ran_as_arrays(slurm, study)
    assert {line["terms"]["version"] for key in study.keys for line in study.lines(key) if "terms" in line} == {1}
    assert (study.path / "tables/tables.md").exists() and "kNN top-1" in done.out

    jobs, batches = set(slurm.squeue()), Batches(study.place).all()
    again = toys.typed(*RUN)
    assert again.status == 0 and "submitted" not in again.out and "kNN top-1" in again.out
    assert set(slurm.squeue()) == jobs and Batches(study.place).all() == batches
    shown = toys.typed("status", str(study.path))
    assert "7 of 7 tasks done" in shown.out and shown.out.count("finished") == 2
    logs = toys.typed("logs", str(study.path), "held")
    assert "held digits nano 8step seed 0  starting" in logs.out and "evaluating knn at 1 of budget" in logs.out


def it_ran_as_arrays(slurm: Cluster, study: Study) -> None:
    """One array of runs; element by element after it, the evaluations of each snapshot; each task done once."""
    (pretrain,) = study.batches("pretrain")
    runs, evaluations = times(slurm, study, pretrain), [times(slurm, study, name) for name in study.batches("evaluate")]
    assert len(runs) == 2 and [len(found) for found in evaluations] == [2, 2]
    for found in evaluations:
        assert all(found[index][0] >= runs[index][1] for index in runs)
    assert study.states() == ["finished"] * 2
    for key in study.keys:
        tasks = [pretraining(key), Task("evaluate", key, 0.0), Task("evaluate", key, 1.0)]
        assert [len(study.claims(task)) for task in tasks] == [1, 1, 1]
        assert {study.end(task).state for task in tasks} == {"done"}


def test_left_alone_without_accounting_a_killed_run_is_submitted_again(
    slurm_no_accounting: Cluster, toys_no_accounting: Toys
):
    slurm, toys = slurm_no_accounting, toys_no_accounting
    study = toys.study("alone")
    words = ("--methods=held", "--budget=600step", "--name=alone", *SLURM, *SMALL, "train.checkpoint_s=3")
    left = toys.typed("run", *words, "--detach")
    assert left.status == 0 and left.out.count("submitted") == 3
    (key,) = toys.running(study, 1)
    toys.wait(lambda: 0 < study.saved(key) <= study.step(key) - 2, "steps that no checkpoint has")
    slurm.do("scancel", "--signal=KILL", f"{study.job(pretraining(key))}.0")  # its processes, as the kernel would
    toys.wait(lambda: len(study.claims(pretraining(key))) == 2, "the closing job to submit the run again")
    toys.wait(lambda: study.resumed(key), "its second attempt")
    toys.release()
    toys.wait((study.path / "tables/tables.md").exists, "the tables")
    assert study.states() == ["finished"] and study.resumed(key)[0] > 0
    assert study.record(key).ledger["lost"] > 0.5  # a step at the least
    assert "4 of 4 tasks done" in toys.typed("status", str(study.path)).out
