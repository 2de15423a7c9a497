"""A study is run in one way at a time: what is alive in another way is refused, and what is not is gone on with."""

from __future__ import annotations

import os

import pytest

from harness import store
from harness.errors import HarnessError
from harness.launch import command, queue
from harness.launch.folders import Attempts, Batches, Claim, End
from harness.launch.living import refuse_living
from harness.launch.options import Launch
from harness.launch.standing import Seen
from harness.launch.tasks import graph
from harness.lock import only_writer, refuse_trainer
from harness.resolve import jobs
from harness.signals import Stopper
from harness.study import build
from tests.harness.launched import Fake, attempt, batch, ended_process, programs

STUDY = build({"methods": "mae", "budget": "4step", "evals": "knn", "name": "s", "train": {"snapshots": []}})
IN_SLURM = "1001|RUNNING|None|n1|harness-b1-pretrain"


@pytest.fixture
def place(tmp_path) -> store.Study:
    return store.Study(tmp_path / "s")


@pytest.fixture
def task():
    return next(task for task in graph(STUDY, jobs(STUDY)) if task.stage == "pretrain")


def cluster(tmp_path, monkeypatch, rows: str) -> None:
    programs(tmp_path / "bin", monkeypatch, squeue=f"echo '{rows}'", sbatch="exit 0", sacct="exit 0")
    monkeypatch.delenv("SLURM_CONF", raising=False)


def in_slurm(place: store.Study, task, end: End | None = None) -> Claim:
    claim = attempt(place, task, 1, end)
    Batches(place).write(batch(claim.batch, task, executor="slurm"))
    return claim


@pytest.mark.parametrize("end", [None, End(state="stopped", kind="cancelled")])
def test_a_living_job_is_refused_by_who_would_train_here(place, task, tmp_path, monkeypatch, harness, end):
    in_slurm(place, task, end)
    cluster(tmp_path, monkeypatch, IN_SLURM)
    words = ["--methods", "mae", "--budget", "4step", "--evals", "knn", "train.snapshots=[]", "--name", "s"]
    with monkeypatch.context() as held:  # to hold the study would disturb the command of its jobs
        held.setattr("harness.launch.command.only_writer", lambda *_: pytest.fail("the study is held"))
        assert harness("run", *words, "--out", tmp_path, "--cluster", "inline")[0] == 2
    for where in ("inline", "local"):
        status, _, said = harness("run", *words, "--out", tmp_path, "--cluster", where)
        assert status == 2 and "1 tasks of the study" in said and "have jobs in the queue: pretrain mae" in said
        assert f"harness resume {place.path}" in said and f"harness cancel {place.path}" in said
    assert not place.run(task.key).record.exists()


def test_a_living_job_of_another_commands_run_is_refused_too(place, task, tmp_path, monkeypatch):
    other = build({"methods": "dit", "budget": "4step", "evals": "knn", "name": "s", "train": {"snapshots": []}})
    in_slurm(place, task)
    cluster(tmp_path, monkeypatch, IN_SLURM)
    with pytest.raises(HarnessError, match=r"have jobs in the queue: pretrain mae"):
        refuse_living(place, other, jobs(other))


@pytest.mark.parametrize("rows", ["", "1001|CANCELLED|None||harness-b1-pretrain", "1001|RUNNING|None||harness-another"])
def test_one_that_is_over_is_gone_on_with(place, task, tmp_path, monkeypatch, rows):
    in_slurm(place, task)
    cluster(tmp_path, monkeypatch, rows)
    refuse_living(place, STUDY, jobs(STUDY))


@pytest.mark.parametrize("submitter", ["alive", "elsewhere", "dead", "cancelled"])
def test_what_another_command_is_just_submitting_is_refused_too(place, task, tmp_path, monkeypatch, submitter):
    claim = attempt(place, task, 1, submitted=False)
    host = "elsewhere" if submitter == "elsewhere" else os.uname().nodename
    pid = ended_process() if submitter == "dead" else os.getpid()
    Batches(place).write(batch(claim.batch, task, executor="slurm", host=host, pid=pid))
    cluster(tmp_path, monkeypatch, "")
    if submitter == "cancelled":
        Attempts(place, task).ended(1, End(state="stopped", kind="cancelled"))
    if submitter in ("dead", "cancelled"):
        refuse_living(place, STUDY, jobs(STUDY))
        return
    with pytest.raises(HarnessError, match="are being submitted by another command"):
        refuse_living(place, STUDY, jobs(STUDY))


def test_where_nobody_can_be_asked_only_what_has_ended_is_gone_on_with(place, task, monkeypatch):
    monkeypatch.setattr(queue, "here", lambda: False)
    in_slurm(place, task)
    with pytest.raises(HarnessError, match="have not ended, and it cannot be asked here"):
        refuse_living(place, STUDY, jobs(STUDY))
    Attempts(place, task).ended(1, End(state="stopped", kind="cancelled"))
    refuse_living(place, STUDY, jobs(STUDY))


def test_no_job_is_submitted_beside_a_process_that_trains(place, tmp_path, monkeypatch):
    fake = Fake(place)
    monkeypatch.setattr(command, "_executor", lambda *_: (fake, 0))
    asked = command.Asked(Launch(cluster="slurm"), detach=True)
    with only_writer(place.path), pytest.raises(HarnessError, match=rf"\(run on .*, process {os.getpid()}\)"):
        command.launch_study(STUDY, tmp_path, asked, Stopper())
    assert not fake.submitted
    with only_writer(place.path, "eval"):
        command.launch_study(STUDY, tmp_path, asked, Stopper())
    assert fake.submitted


def test_nor_beside_one_that_came_while_a_command_waits(place, tmp_path, monkeypatch):
    fake = Fake(place)
    monkeypatch.setattr(command, "_executor", lambda *_: (fake, 0))
    monkeypatch.setattr(command, "_looker", lambda *_: (fake, 0))
    command.launch_study(STUDY, tmp_path, command.Asked(Launch(cluster="slurm"), detach=True), Stopper())
    driver, many = command.looking(place), len(fake.submitted)
    fake.seen = {key: Seen(False, word="NODE_FAIL", kind="node") for key in fake.seen}
    with only_writer(place.path), pytest.raises(HarnessError, match="is working on the study"):
        driver.round()
    assert len(fake.submitted) == many
    run = next(task for task in driver.tasks if task.stage == "pretrain")
    assert Attempts(place, run).end(2).kind == "void", "its claims are let go"


def test_nor_does_a_closing_job_go_on_with_it(place, monkeypatch):
    monkeypatch.setattr(command, "_executor", lambda *_: pytest.fail("it looked"))
    with only_writer(place.path), pytest.raises(HarnessError, match="is working on the study"):
        command.close(place, batch("b"))


def test_a_file_system_without_locks_is_told_and_no_hindrance(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with only_writer(tmp_path):
        refuse_trainer(tmp_path)
    assert "no locks on this file system" in capsys.readouterr().err
