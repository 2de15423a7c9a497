"""Trackers get what the log gets, go on where a killed run stopped, and never stop one."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.store import RunFolder
from harness.train import track
from harness.train.pretraining import Interrupted
from harness.train.track import Tracking
from tests.harness.runs import log_lines, snapshots

TINY = ["--methods", "mae", "--budget", "6step", "--evals", "knn", "train.batch_size=16", "train.snapshots=[0.5]"]
LOUD = "train.log_s=1e-9"


def tracked(run, *names: str) -> tuple[Tracking, list[str]]:
    """Trackers of a toy run, and what they say."""
    said: list[str] = []
    tracking = Tracking(names, run.folder, said.append)
    run.track = tracking.line
    return tracking, said


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_what_the_log_holds(toy_run):
    run = toy_run("12step", log_s=1e-9)
    tracking, said = tracked(run, "tensorboard")
    with tracking:
        run.run()
    shown, lines = scalars(run.folder.track / "tensorboard"), [line for line in log_lines(run) if "loss" in line]
    assert said == []
    for tag, name in [("train/loss", "loss"), ("train/lr", "lr"), ("train/img_s", "img_s"), ("budget/share", "share")]:
        assert shown[tag] == [(line["step"], pytest.approx(line[name])) for line in lines]
    assert [step for step, _ in shown["train/mse"]] == list(range(1, 13))
    assert shown["train/mse"][-1][1] == pytest.approx(lines[-1]["terms"]["mse"])
    assert shown["ledger/train"][-1][1] == pytest.approx(lines[-1]["ledger"]["train"])


def test_a_resumed_run_goes_on_in_the_same_place_and_hides_what_it_does_again(toy_run):
    run = toy_run("12step", log_s=1e-9, checkpoint_s=1e9)
    run.should_stop = lambda: run.step >= 8 and kill()
    tracking, _ = tracked(run, "tensorboard")

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    with pytest.raises(Killed), tracking:
        run.run()
    assert [step for step, _ in scalars(run.folder.track / "tensorboard")["train/loss"]] == list(range(1, 9))
    again = toy_run("12step", log_s=1e-9)
    tracking, _ = tracked(again, "tensorboard")
    with tracking:
        again.run()
    (resumed,) = [line["step"] for line in log_lines(again) if line.get("event") == "resumed"]
    assert resumed < 8, "some steps were taken twice"
    shown = scalars(run.folder.track / "tensorboard")["train/loss"]
    assert [step for step, _ in shown] == list(range(1, 13)), "every step once"
    assert len(list((run.folder.track / "tensorboard").iterdir())) == 2


def test_tracking_changes_no_bit_of_the_run_and_costs_it_no_budget(toy_run, monkeypatch):
    plain, run = toy_run("12step", folder="plain", log_s=1e-9), toy_run("12step", folder="tracked", log_s=1e-9)
    plain.run()
    tracking, _ = tracked(run, "tensorboard")
    slow = tracking.line

    def line(values):
        import time

        time.sleep(0.01)
        slow(values)

    run.track = line
    with tracking:
        run.run()
    assert snapshots(run) == snapshots(plain)
    seconds = run.ledger.snapshot()
    assert seconds["wait"] >= 0.12 and seconds["train"] < seconds["wait"]
    assert plain.ledger.snapshot()["wait"] == 0


@pytest.mark.parametrize("moment", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(toy_run, monkeypatch, moment):
    from accelerate.tracking import TensorBoardTracker

    def fail(*_, **__):
        raise ConnectionError("no route to the tracker")

    monkeypatch.setattr(TensorBoardTracker, moment, fail)
    run = toy_run("12step", log_s=1e-9)
    tracking, said = tracked(run, "tensorboard")
    with tracking:
        run.run()
    assert run.spent() == 1
    assert len(said) == 1 and "no longer tracked by tensorboard (ConnectionError: no route to the tracker)" in said[0]


# -- W&B and MLflow, whose packages are not needed: stand-ins take down how they are called ---------------------------


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    made: list[tuple] = []

    def note(name: str, answer: object = None):
        return lambda *words, **options: made.append((name, words, options)) or answer

    run = types.SimpleNamespace(log=note("wandb.log"), finish=note("wandb.finish"))
    active = types.SimpleNamespace(info=types.SimpleNamespace(run_id="run-of-mlflow"))
    limits = types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    modules = {
        "wandb": {"init": note("wandb.init", run)},
        "mlflow": {
            "set_tracking_uri": note("set_tracking_uri"),
            "search_experiments": note("search", []),
            "create_experiment": note("create_experiment", "7"),
            "start_run": note("start_run", active),
            "log_params": note("log_params"),
            "log_metrics": note("log_metrics"),
            "end_run": note("end_run"),
            "utils": types.SimpleNamespace(validation=limits),
        },
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return made


def options(calls: list[tuple], name: str) -> list[dict]:
    return [options for called, _, options in calls if called == name]


@pytest.fixture
def begun(tmp_path) -> RunFolder:
    """The folder of a run of the study `mine`, with its record."""
    from harness import store
    from harness.records import Cell, RunRecord

    folder = store.Study(tmp_path / "mine").run("mae-digits")
    cell = Cell(method="mae", dataset="digits", size="nano", budget="6step", seed=0)
    settings = {"config": {"width": 3, "betas": [0.9, 0.95]}, "train": {"batch_size": 16, "log_s": 2.0}}
    record = RunRecord(key="mae-digits", cell=cell, data_revision="1", state="running", **settings)
    store.write(folder.record, record)
    return folder


LINE = {"step": 3, "phase": "train", "share": 0.5, "loss": 1.5, "lr": 0.1, "img_s": 9.0, "ledger": {"train": 2.0}}
VALUES = {"train/loss": 1.5, "train/lr": 0.1, "train/img_s": 9.0, "ledger/train": 2.0, "budget/share": 0.5}


def write(folder: RunFolder, *names: str) -> list[str]:
    said: list[str] = []
    with Tracking(names, folder, said.append) as tracking:
        tracking.line({"step": 2, "event": "resumed", "ledger": {}})
        tracking.line(LINE)
    return said


def test_wandb_is_offline_and_its_run_is_the_runs_key(begun, calls):
    assert write(begun, "wandb") == [] and write(begun, "wandb") == []
    first, second = options(calls, "wandb.init")
    assert first == second
    assert (first["project"], first["id"], first["resume"], first["mode"]) == ("mine", "mae-digits", "allow", "offline")
    assert Path(first["dir"]) == begun.track / "wandb" and Path(first["dir"]).is_dir()
    assert first["config"]["method"] == "mae" and first["config"]["config.betas"] == "[0.9, 0.95]"
    assert first["config"]["train.batch_size"] == 16 and "train.log_s" not in first["config"]
    logged = [words[0] for called, words, _ in calls if called == "wandb.log"]
    assert logged == [VALUES | {"step": 3}] * 2
    assert len(options(calls, "wandb.finish")) == 2


def test_wandb_goes_online_where_the_user_says_so(begun, calls, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    write(begun, "wandb")
    assert options(calls, "wandb.init")[0]["mode"] == "online"


def test_mlflow_writes_below_the_run_and_goes_on_with_the_same_one(begun, calls):
    assert write(begun, "mlflow") == [] and write(begun, "mlflow") == []
    assert {words for called, words, _ in calls if called == "set_tracking_uri"} >= {
        ((begun.track / "mlflow").absolute().as_uri(),)
    }
    assert [o["run_id"] for o in options(calls, "start_run")] == [None, "run-of-mlflow"]
    assert options(calls, "create_experiment")[0]["name"] == "mine"
    assert [(words[0], o) for called, words, o in calls if called == "log_metrics"] == [(VALUES, {"step": 3})] * 2


def test_mlflow_uses_the_users_server_where_there_is_one(begun, calls, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    write(begun, "mlflow")
    assert not options(calls, "set_tracking_uri")


# -- as a user types it -----------------------------------------------------------------------------------------------


def test_off_by_default_and_on_with_one_flag(harness, tmp_path):
    status, _, _ = harness("run", *TINY, LOUD, "--name", "off", "--out", tmp_path, "--evals", "")
    assert status == 0 and not list(tmp_path.glob("off/runs/*/track"))
    status, _, _ = harness("run", *TINY, LOUD, "--name", "on", "--out", tmp_path, "--track", "tensorboard")
    assert status == 0
    (off,), (on,) = tmp_path.glob("off/runs/*"), tmp_path.glob("on/runs/*")
    assert on.name == off.name, "trackers are no part of a run's key"
    shown = scalars(on / "track/tensorboard")
    assert [step for step, _ in shown["train/loss"]] == [1, 2, 3, 4, 5, 6]
    full = {
        share: json.loads((on / f"evals/{share}/knn.json").read_text())["numbers"] for share in ("0.0000", "1.0000")
    }
    for name, number in full["1.0000"].items():
        shown_number = [(0, pytest.approx(full["0.0000"][name]["value"])), (6, pytest.approx(number["value"]))]
        assert shown[f"evals/knn/{name}"] == shown_number
        assert [step for step, _ in shown[f"evals-quick/knn/{name}"]] == [0, 3, 6]


@pytest.mark.parametrize(
    ("words", "complaint", "help_"),
    [
        (["--track", "wandb"], "the tracker wandb needs the package 'wandb'", "pip install wandb"),
        (["train.track=tensorboard,mlflow"], "the tracker mlflow needs the package 'mlflow'", "pip install mlflow"),
        (["--track", "tensorbord"], "no tracker 'tensorbord'", "known: tensorboard, wandb, mlflow"),
    ],
)
def test_a_tracker_that_is_not_there_is_told_before_any_work(harness, tmp_path, monkeypatch, words, complaint, help_):
    monkeypatch.setattr(track, "find_spec", lambda name: name == "tensorboard" or None)
    status, _, err = harness("run", *TINY, "--out", tmp_path / "runs", *words)
    assert status == 2
    assert complaint in err and help_ in err
    assert not (tmp_path / "runs").exists()


def test_a_missing_package_is_an_error_with_the_next_step(monkeypatch):
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    with pytest.raises(HarnessError, match="pip install tensorboard"):
        track.require(["tensorboard"])


def test_a_stopped_run_closes_its_trackers(toy_run):
    run = toy_run("12step", log_s=1e-9)
    run.should_stop = lambda: run.step >= 4
    tracking, _ = tracked(run, "tensorboard")
    with pytest.raises(Interrupted), tracking:
        run.run()
    assert [step for step, _ in scalars(run.folder.track / "tensorboard")["train/loss"]] == [1, 2, 3, 4]
