"""The commands around a launched study, with an executor that only takes down what it is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness import store
from harness.errors import HarnessError
from harness.launch import command, worker
from harness.launch.command import Asked
from harness.launch.folders import Attempts, Batches
from harness.launch.job import Work
from harness.launch.options import Launch
from harness.launch.queue import Unreachable
from harness.launch.standing import OVER, Seen
from harness.signals import Stopper
from harness.study import build
from tests.harness.launched import Fake

STUDY = build({"methods": "mae,ddae", "budget": "6step", "evals": "knn", "name": "s", "train": {"snapshots": []}})
SLURM = Asked(Launch(cluster="slurm"), detach=True)


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Fake:
    """What every command of this test is given for its executor."""
    made = Fake(store.Study(tmp_path / "s"), name="slurm")
    monkeypatch.setattr(command, "_executor", lambda *_: (made, 0))
    monkeypatch.setattr(command, "_looker", lambda *_: (made, 0))
    return made


@pytest.fixture
def place(fake, tmp_path) -> store.Study:
    """A study that was submitted and left."""
    assert command.launch_study(STUDY, tmp_path, SLURM, Stopper()) is None
    return fake.place


def states(place: store.Study) -> dict[str, str]:
    return {f"{s.task.kind} {s.task.key[:4]}": s.state for s in command.looking(place).look().values()}


def test_a_detached_study_is_submitted_and_known_by_its_folder_alone(place, fake):
    assert [stage for _, _, stage, _ in fake.submitted] == ["pretrain", "references", "evaluate", "evaluate", "tables"]
    assert all(batch.request == STUDY.asked() for batch, *_ in fake.submitted)
    (code,) = {batch.code for batch, *_ in fake.submitted}
    assert code.startswith(str(place.path / "code"))
    assert set(states(place).values()) == {"queued"}
    assert command.read_launch(place) == replace(SLURM, detach=False)


def test_resume_submits_what_was_lost_from_inside_the_folder_too(place, fake, monkeypatch):
    batch = fake.submitted[0][0]
    fake.seen[batch.name, 0] = Seen(False, word="NODE_FAIL", kind="node")
    monkeypatch.chdir(place.path)
    assert command.resume(store.Study(place.path.__class__(".")), detach=True, stopper=Stopper()) is None
    assert [stage for _, _, stage, _ in fake.submitted[5:]] == ["pretrain", "tables"]
    assert sorted(path.name for path in place.path.parent.iterdir()) == ["s"], "and makes no study of another name"


def test_other_options_for_what_is_queued_already_are_told_not_to_reach_it(place, fake, tmp_path, capsys):
    command.launch_study(STUDY, tmp_path, SLURM, Stopper())
    assert "keep what they were submitted with" not in capsys.readouterr().out
    command.launch_study(STUDY, tmp_path, Asked(Launch(cluster="slurm", time="8h"), detach=True), Stopper())
    said = capsys.readouterr().out
    assert "7 task(s) in the queue keep what they were submitted with; to change it: " in said
    assert f"python -m harness cancel {place.path}, and this command again" in said


def test_a_second_run_in_the_folder_drops_no_queued_run_of_the_first(fake, tmp_path):
    def asked_for(methods: str):
        return build({"methods": methods, "budget": "6step", "evals": "knn", "name": "s", "train": {"snapshots": []}})

    place = fake.place
    command.launch_study(asked_for("mae,ddae"), tmp_path, SLURM, Stopper())
    first, many = set(place.asked().keys), len(fake.submitted)
    command.launch_study(asked_for("ddae,dit"), tmp_path, SLURM, Stopper())
    stages = [stage for _, _, stage, _ in fake.submitted[many:]]
    assert stages == ["pretrain", "evaluate", "evaluate", "tables"], "dit alone, and who goes on after it"
    assert first < set(place.asked().keys) and len(place.asked().keys) == 3
    assert set(states(place)) >= {"pretrain mae-", "pretrain ddae", "pretrain dit-"}
    assert command.cancel(place, ["mae"]) == [
        f"cancelled  {kind} {key}"
        for key in first
        if key.startswith("mae")
        for kind in ("pretrain", "evaluate-1.0000", "evaluate-0.0000")
    ]
    for claim in fake.cancelled:
        fake.seen[claim.batch, claim.index] = Seen(False, kind="cancelled")
    many = len(fake.submitted)
    command.resume(place, detach=True, stopper=Stopper())
    again = [task for batch, *_ in fake.submitted[many:] for task in batch.tasks]
    assert [task for task in again if task.startswith("pretrain")] == [
        f"pretrain {key}" for key in first if "mae" in key
    ]
    assert place.asked().request["methods"] == ["ddae", "dit"] and first < set(place.asked().keys)


def test_a_job_that_goes_on_with_less_than_what_is_asked_for_is_not_relied_on(place, fake, tmp_path):
    driver = command.looking(place)
    assert driver.is_closed()
    driver.truth = replace(driver.truth, study=replace(STUDY, seeds=2))
    assert not driver.is_closed()
    driver.truth = replace(driver.truth, study=replace(STUDY, name="another"))
    assert driver.is_closed(), "the folder may have been renamed"


def test_cancel_ends_everything_and_nothing_is_submitted_until_resume(place, fake):
    lines = command.cancel(place, [])
    assert len(lines) == 8 and len(fake.cancelled) == 8, "seven tasks, and the job that goes on after them"
    assert lines[-1] == "cancelled  tables" and fake.cancelled[-1].batch == fake.submitted[-1][0].name
    for key, seen in fake.seen.items():
        fake.seen[key] = replace(seen, alive=False, kind="cancelled")
    command.close(place, fake.submitted[-1][0])
    assert len(fake.submitted) == 5, "also not by the job that closes the round"
    assert set(states(place).values()) == {"cancelled"}
    command.resume(place, detach=True, stopper=Stopper())
    assert set(states(place).values()) == {"queued"}


def test_what_is_in_no_queue_yet_is_cancelled_as_well(place, fake):
    mae = next(task for task in command.looking(place).tasks if task.kind == "evaluate-1.0000")
    claim = Attempts(place, mae).last()
    fake.seen[claim.batch, claim.index] = Seen(False, word="lost", kind="node")
    assert list(states(place).values()).count("waiting") == 1
    command.cancel(place, ["mae"])
    assert Attempts(place, mae).last().batch == command.NO_BATCH not in [claim.batch for claim in fake.cancelled]
    for seen_by in fake.cancelled:
        fake.seen[seen_by.batch, seen_by.index] = Seen(False, kind="cancelled")
    standings = command.looking(place).look().values()
    assert {s.state for s in standings if s.task.key.startswith("mae")} <= {*OVER}
    assert {s.state for s in standings if s.task.key.startswith("ddae")} == {"queued"}
    with pytest.raises(HarnessError, match="unknown cell 'nae'"):
        command.cancel(place, ["nae"])
    many = len(fake.cancelled)
    with pytest.raises(HarnessError, match="unknown cell 'nae'"):
        command.cancel(place, ["ddae", "nae"])
    assert len(fake.cancelled) == many, "one wrong word cancels nothing"


def test_the_closing_job_makes_the_tables_when_nothing_is_left(place, fake, monkeypatch, capsys):
    monkeypatch.setattr(command.Truth, "complete", lambda self, task: True)
    for task in command.looking(place).tasks:
        Attempts(place, task).ended(1, command.End(state="done"))
    monkeypatch.setattr(command, "_executor", lambda *_: pytest.fail("tables need no partition that takes jobs"))
    command.close(place, fake.submitted[-1][0])
    said = capsys.readouterr().out
    assert "7 of 7 tasks done" in said and "tables.csv" in said
    assert (place.path / "tables" / "tables.csv").exists() and len(fake.submitted) == 5


def test_workers_of_this_machine_cannot_be_left(tmp_path):
    with pytest.raises(HarnessError, match="--detach with --cluster local"):
        command.launch_study(STUDY, tmp_path, Asked(Launch(cluster="local"), detach=True), Stopper())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"launch": {}}'])
def test_a_launch_that_is_not_ours_is_told(tmp_path, content):
    (tmp_path / command.LAUNCH).write_text(content)
    with pytest.raises(HarnessError, match="does not fit") as told:
        command.read_launch(store.Study(tmp_path))
    assert "repeat the `run`" in told.value.next_step


def test_a_study_without_jobs_is_told_apart(tmp_path, harness):
    (tmp_path / "study.json").write_text('{"request": {}, "keys": []}')
    for words in (["resume"], ["cancel"], ["logs"]):
        status, _, said = harness(*words, tmp_path, *(["mae"] if words == ["logs"] else []))
        assert status == 2 and ("says how it was run" in said or "no methods" in said), words


def test_status_where_the_queue_cannot_be_asked_shows_the_folder_and_says_so(place, harness, monkeypatch):
    def unreachable(*_):
        raise HarnessError("no squeue on this machine")

    monkeypatch.setattr(command, "_looker", unreachable)
    status, printed, _ = harness("status", place.path)
    assert status == 0 and "of its tasks nothing is known here: no squeue on this machine" in printed


def test_a_cancel_in_an_outage_is_written_down_and_says_what_it_could_not_do(place, fake, monkeypatch):
    def away(batches):
        raise Unreachable("SLURM's controller does not answer")

    look, failed = fake.look, command.looking(place).tasks[0]
    Attempts(place, failed).ended(1, command.End(state="failed", kind="error", message="no luck"))
    monkeypatch.setattr(fake, "look", away)
    with pytest.raises(Unreachable, match="7 tasks are written down as cancelled") as told:
        command.cancel(place, [])
    assert f"harness cancel {place.path} again" in told.value.next_step
    monkeypatch.setattr(fake, "look", look)
    command.close(place, fake.submitted[-1][0])
    assert len(fake.submitted) == 5 and len(fake.cancelled) == 6, "the next look ends what is still alive"
    assert Attempts(place, failed).end(1).message == "no luck" and Attempts(place, failed).last().attempt == 2


def test_leaving_before_everything_is_submitted_says_so(place, fake, monkeypatch, capsys):
    def left(*_):
        raise KeyboardInterrupt

    driver = command.looking(place)
    monkeypatch.setattr(fake, "look", left)
    with pytest.raises(KeyboardInterrupt):
        command._brought(driver, detach=False)
    assert "left before everything was submitted" in capsys.readouterr().out


def test_a_user_who_leaves_later_is_told_that_jobs_go_on(place, fake, monkeypatch, capsys):
    def once(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.launch.drive.time.sleep", once)
    assert command.resume(place, detach=False, stopper=Stopper()) is None
    assert "left: the jobs go on without this command" in capsys.readouterr().out


def test_a_closing_job_that_fails_is_told_by_status_with_its_log(place, fake, harness, monkeypatch):
    monkeypatch.setattr(command, "close", lambda *_: (_ for _ in ()).throw(HarnessError("unknown partition 'gpu'")))
    closing = fake.submitted[-1][0]
    assert worker.work(Work(str(place.path), closing.name, 0, 1), Stopper()) == "failed"
    for key in fake.seen:
        fake.seen[key] = Seen(False, word="NODE_FAIL", kind="node")
    _, printed, _ = harness("status", place.path)
    assert "nothing of it is in the queue, and it is not complete" in printed
    assert "the job that was to go on failed: unknown partition 'gpu'" in printed
    folder = Batches(place).path(closing.name) / Batches(place).submitted(closing.name).job
    folder.mkdir(parents=True)
    (folder / "0_log.err").write_text("HarnessError: unknown partition\n")
    status, printed, _ = harness("logs", place.path, "tables")
    assert status == 0 and "HarnessError: unknown partition" in printed


def test_a_closing_job_that_fails_at_the_tables_is_told_until_they_are_made(place, fake, harness, monkeypatch):
    monkeypatch.setattr(command.Truth, "complete", lambda self, task: True)
    for task in command.looking(place).tasks:
        Attempts(place, task).ended(1, command.End(state="done"))
    made, closing = "harness.report.tables.write_all", fake.submitted[-1][0]
    with monkeypatch.context() as failing:
        failing.setattr(made, lambda *_: (_ for _ in ()).throw(HarnessError("no space left")))
        assert worker.work(Work(str(place.path), closing.name, 0, 1), Stopper()) == "failed"
    _, printed, _ = harness("status", place.path)
    assert "the job that makes the tables is in the queue" in printed
    fake.seen[closing.name, 0] = Seen(False, word="OUT_OF_MEMORY", kind="memory")
    _, printed, _ = harness("status", place.path)
    assert "its tables were not made\nthe job that was to make them failed: no space left" in printed
    (Batches(place).path(closing.name) / "error.txt").unlink()  # of a job that was killed it has no word
    _, printed, _ = harness("status", place.path)
    assert "its tables were not made\n" in printed
    assert f"harness resume {place.path}         make them\n" in printed, "whole, however long, on one line"
    monkeypatch.setattr(command, "_executor", lambda *_: pytest.fail("tables need no partition that takes jobs"))
    assert harness("resume", place.path)[0] == 0
    _, printed, _ = harness("status", place.path)
    assert "tables were not made" not in printed


def test_missing_tables_of_a_study_with_failures_are_not_promised_for_nothing(place, fake, harness):
    command.cancel(place, [])
    for key in fake.seen:
        fake.seen[key] = Seen(False, word="CANCELLED by 0", kind="cancelled")
    _, printed, _ = harness("status", place.path)
    assert "try again what failed or was cancelled, and make them" in printed


def test_a_closing_job_leaves_a_study_to_the_command_that_goes_on_with_it_in_another_way(place, fake, capsys):
    for key in fake.seen:
        fake.seen[key] = Seen(False, word="NODE_FAIL", kind="node")
    command.close(place, fake.submitted[-1][0].model_copy(update={"executor": "slurm of before"}))
    assert "goes on in another way now: --cluster slurm" in capsys.readouterr().out and len(fake.submitted) == 5


def test_logs_of_what_was_cancelled_in_no_queue_are_those_of_the_attempt_before(place, fake, harness):
    task = next(task for task in command.looking(place).tasks if task.kind == "pretrain" and "mae" in task.key)
    claim = Attempts(place, task).last()
    submitted = Batches(place).submitted(claim.batch)
    folder = Batches(place).path(claim.batch) / (f"{submitted.job}_{claim.index}" if submitted.array else submitted.job)
    folder.mkdir(parents=True)
    (folder / "0_log.out").write_text("step 17\n")
    fake.seen[claim.batch, claim.index] = Seen(False, word="lost", kind="node")
    command.cancel(place, ["mae"])
    assert Attempts(place, task).last().batch == command.NO_BATCH
    status, printed, _ = harness("logs", place.path, task.key)
    assert status == 0 and "step 17" in printed


def test_status_waits_for_a_closing_job_that_is_alive(place, fake, harness):
    closing = fake.submitted[-1][0].name
    for key in fake.seen:
        fake.seen[key] = Seen(key[0] == closing, word="pending", kind="node")
    _, printed, _ = harness("status", place.path)
    assert "the job that goes on is in the queue" in printed and "nothing of it" not in printed
