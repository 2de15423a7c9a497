"""Runs in the command's own process are tasks like all others: told, kept, gone on with by `resume`."""

from __future__ import annotations

import json

import pytest

from harness.evaluate_run import evaluate_run
from harness.launch import worker
from harness.launch.folders import Attempts
from harness.launch.tasks import parse
from harness.store import Study
from harness.train.pretraining import Pretraining

WORDS = ["--budget", "4step", "--evals", "knn", "--cluster", "inline", "--name", "s", "train.batch_size=16"]
WORDS += ["train.snapshots=[]"]


def ends(place: Study, name: str) -> list[tuple[str, str]]:
    """How the attempts at the task ended."""
    attempts = Attempts(place, parse(name))
    found = [attempts.end(claim.attempt) for claim in attempts.all()]
    return [("", "") if end is None else (end.state, end.kind) for end in found]


@pytest.fixture
def order(monkeypatch) -> list[str | int]:
    """What pre-training and evals work on, as they come."""
    seen: list[str | int] = []
    real_run, real_evaluate = Pretraining.run, evaluate_run
    monkeypatch.setattr(Pretraining, "run", lambda run: (seen.append("train"), real_run(run))[1])
    monkeypatch.setattr(
        worker,
        "evaluate_run",
        lambda job, *rest, **more: (seen.append(job.cell.seed), real_evaluate(job, *rest, **more)),
    )
    return seen


def test_a_run_is_evaluated_before_the_next_is_trained_and_the_tasks_are_as_of_jobs(tmp_path, harness, order):
    status, out, _ = harness("run", "--methods", "mae", "--seeds", 2, *WORDS, "--out", tmp_path)
    assert status == 0 and "submitted" not in out
    assert order == ["train", 0, 0, "train", 1, 1]
    place = Study(tmp_path / "s")
    for run in place.runs():
        for kind in ("pretrain", "evaluate-1.0000", "evaluate-0.0000"):
            assert ends(place, f"{kind} {run.key}") == [("done", "")]
    assert json.loads((place.path / "launch.json").read_text())["launch"]["cluster"] == "inline"
    status, _, _ = harness("run", "--methods", "mae", "--seeds", 2, *WORDS, "--out", tmp_path)
    assert status == 0 and len(order) == 6, "nothing is done again"


def test_one_that_was_stopped_is_gone_on_with_by_resume(tmp_path, harness, monkeypatch):
    real = Pretraining.run

    def stopped(run: Pretraining) -> None:
        run.should_stop = lambda: True
        real(run)

    with monkeypatch.context() as first:
        first.setattr(Pretraining, "run", stopped)
        assert harness("run", "--methods", "mae", *WORDS, "--out", tmp_path)[0] == 130
    place = Study(tmp_path / "s")
    (run,) = place.runs()
    assert run.state == "interrupted" and ends(place, f"pretrain {run.key}") == [("stopped", "signal")]
    status, out, said = harness("status", place.path)
    assert "2 tasks done" not in out and "nothing of it is running, and it is not complete" in out
    assert f"harness resume {place.path}" in out
    status, out, said = harness("cancel", place.path)
    assert status == 2 and "runs in the process of its own command" in said
    status, out, _ = harness("resume", place.path)
    assert status == 0 and "kNN" in out
    (run,) = place.runs()
    assert (run.state, run.attempts, run.spend.step) == ("finished", 2, 4)
    assert ends(place, f"pretrain {run.key}") == [("stopped", "signal"), ("done", "")]
    status, out, _ = harness("status", place.path)
    assert status == 0 and "finished" in out and "tasks" not in out, "of what is complete the records say all"


def test_a_folder_that_another_computer_left_in_the_middle_is_gone_on_with(tmp_path, harness, monkeypatch):
    def killed(*_: object, **__: object) -> None:
        raise MemoryError  # no word of it is written

    with monkeypatch.context() as there:
        there.setattr("harness.launch.here.socket.gethostname", lambda: "elsewhere")
        there.setattr("harness.launch.drive.socket.gethostname", lambda: "elsewhere")
        there.setattr("harness.launch.inline.Attempts.ended", killed)
        with pytest.raises(MemoryError):
            harness("run", "--methods", "mae", *WORDS, "--out", tmp_path)
    place = Study(tmp_path / "s")
    (run,) = place.runs()
    assert ends(place, f"pretrain {run.key}") == [("", "")]
    assert harness("run", "--methods", "mae", *WORDS, "--out", tmp_path)[0] == 0
    assert ends(place, f"evaluate-1.0000 {run.key}") == [("done", "")]
    assert place.run(run.key).evals(1.0, False).joinpath("knn.json").exists()


def test_what_fails_is_told_once_and_its_traceback_is_a_log(tmp_path, harness, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Pretraining, "run", broken)
    status, out, _ = harness("run", "--methods", "mae", *WORDS, "--out", tmp_path)
    assert status == 1 and "failed    pretrain mae digits nano 4step seed 0: RuntimeError: no such luck\n" in out
    place = Study(tmp_path / "s")
    (run,) = place.runs()
    assert ends(place, f"pretrain {run.key}") == [("failed", "error")], "what failed here once would fail again"
    status, out, _ = harness("logs", place.path, "mae")
    assert status == 0 and "in broken" in out and "RuntimeError: no such luck" in out
