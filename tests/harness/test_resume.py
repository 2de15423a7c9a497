"""However often a run is stopped or killed, it is the run that was not; what is done again is lost, and logged."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import checkpoint, files, ledger
from harness.errors import HarnessError
from harness.train import latents
from harness.train import stage as stage_module
from harness.train.log import Tick, append_line, last_ledger
from harness.train.pretraining import Interrupted, Pretraining
from tests.harness.runs import log_lines, snapshots
from tests.toys import CLOCK, SlowStep, ToyLatent, ToyLatentInThrees


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "time", CLOCK)


# -- resuming ---------------------------------------------------------------------------------------------------------

CASES = {
    "adamw": {"budget": "24step"},
    "adan": {"budget": "24step", "optimizer": "adan"},
    "without average": {"budget": "24step", "ema": False},
    "bf16": {"budget": "12step", "precision": "bf16"},
    "cut batch": {"budget": "187img"},
    "prepared": {"budget": "24step", "method": ToyLatent},
    "prepared in threes": {"budget": "24step", "method": ToyLatentInThrees},
    "prepared, adan": {"budget": "197img", "method": ToyLatent, "optimizer": "adan"},
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The snapshots of a case's run that nothing interrupted."""
    from tests.toys import training

    done: dict[str, list[str]] = {}

    def names(case: str) -> list[str]:
        if case not in done:
            run = training(tmp_path_factory.mktemp("unbroken"), **CASES[case])
            run.run()
            done[case] = snapshots(run)
        return done[case]

    return names


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("every", [1, 3, 7])
def test_a_run_that_is_stopped_again_and_again_is_the_unbroken_run(
    toy_run: Callable, unbroken: Callable, case: str, every: int
) -> None:
    stops = 0
    while True:
        run = toy_run(**CASES[case])
        began: list[int] = []
        run.should_stop = lambda run=run, began=began: began.append(run.step) or len(began) >= every
        run.after_chunk = lambda: None  # stopped before its first step again and again it would get nowhere
        try:
            run.run()
            break
        except Interrupted:
            stops += 1
    assert stops >= 12 // every
    assert snapshots(run) == unbroken(case)
    assert run.spent() == 1


class Killed(BaseException):
    """What a kill looks like from inside: no handler runs."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpoint_s", [1e-9, 1e9])
def test_a_run_that_is_killed_at_random_moments_is_the_unbroken_run(
    toy_run: Callable, unbroken: Callable, monkeypatch: pytest.MonkeyPatch, case: str, checkpoint_s: float
) -> None:
    """Moments: anywhere in a step, before or after it is booked, and within the writing of a file."""
    chance = random.Random(f"{case} {checkpoint_s}")
    odds = {"left": 0}

    def survive(kind: str) -> None:
        odds["left"] -= 1
        if odds["left"] == 0:
            raise Killed(kind)

    real_replace, real_descend = files.os.replace, stage_module.Stage._descend
    monkeypatch.setattr(files.os, "replace", lambda *words: (survive("file"), real_replace(*words))[1])
    monkeypatch.setattr(
        stage_module.Stage, "_descend", lambda *words: (survive("step"), real_descend(*words), survive("stepped"))[1]
    )
    kills = 0
    while True:
        odds["left"] = chance.randint(1, 20) if kills < 10 else 0
        run = toy_run(**CASES[case], checkpoint_s=checkpoint_s, log_s=1e-9)
        try:
            run.run()
            break
        except Killed:
            kills += 1
    assert kills >= 3
    assert snapshots(run) == unbroken(case)
    assert run.spent() == 1
    assert not list(run.folder.path.rglob(".*.tmp"))


def test_a_finished_run_that_is_repeated_takes_no_step(toy_run: Callable) -> None:
    for budget in ("24step", "0.1s"):
        run = toy_run(budget, folder=budget)
        run.run()
        again = toy_run(budget, folder=budget)
        again.run()
        assert again.step == run.step
        assert snapshots(again) == snapshots(run)


def test_a_truncated_checkpoint_is_told_and_the_one_before_is_used(toy_run: Callable, unbroken: Callable) -> None:
    run = toy_run("24step", checkpoint_s=1e-9)
    run.should_stop = lambda: run.step >= 13
    with pytest.raises(Interrupted):
        run.run()
    newest = sorted(run.folder.checkpoints.glob("step-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    said: list[str] = []
    again = toy_run("24step", say=said.append)
    again.run()
    assert len(said) == 1 and newest.name in said[0]
    assert snapshots(again) == unbroken("adamw")


# -- what is lost, what is logged -------------------------------------------------------------------------------------


class Stops(Exception):
    pass


def crash_at(run: Pretraining, step: int) -> None:
    def stop() -> bool:
        if run.step >= step:
            raise Stops
        return False

    run.should_stop = stop


def test_work_that_is_done_again_is_lost_and_not_charged_twice(toy_run: Callable) -> None:
    first = toy_run("20step", SlowStep, log_s=1e-9, snapshots=())
    crash_at(first, 7)
    with pytest.raises(Stops):
        first.run()
    seen = log_lines(first)[-1]
    assert seen["step"] == 7 and seen["ledger"]["train"] >= 0.07

    second = toy_run("20step", SlowStep, log_s=1e-9, snapshots=())
    crash_at(second, 3)
    with pytest.raises(Stops):
        second.run()
    lost = second.ledger.snapshot()["lost"]
    redone = seen["ledger"]["train"]
    assert redone - 0.002 <= lost <= sum(seen["ledger"].values()), "no less than the training, no more than all"
    redone += log_lines(second)[-1]["ledger"]["train"]

    third = toy_run("20step", SlowStep, log_s=1e-9, snapshots=())
    third.run()
    book = third.ledger.snapshot()
    assert redone - 0.004 <= book["lost"] <= lost + sum(log_lines(second)[-1]["ledger"].values())
    assert book["train"] == pytest.approx(log_lines(third)[-1]["ledger"]["train"], abs=0.05)
    assert third.step == 20 and third.spent() == 1


def test_latents_that_are_read_or_made_again_are_lost_and_not_charged_once_more(
    toy_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(work: Callable) -> Callable:
        def done(*words: object) -> object:
            CLOCK.now += 3
            return work(*words)

        return done

    monkeypatch.setattr(latents, "encode", slowly(latents.encode))
    monkeypatch.setattr(checkpoint, "load_snapshot", slowly(checkpoint.load_snapshot))
    first = toy_run("24step", ToyLatent)
    first.should_stop = lambda: first.step >= 15
    with pytest.raises(Interrupted):
        first.run()
    assert first.stage.name == "train"
    prepared = first.ledger.snapshot()["prepare"]
    assert prepared > 3
    for times, made_again in enumerate([False, True], 1):
        run = toy_run("24step", ToyLatent)
        if made_again:
            for path in run.folder.cache.iterdir():
                path.unlink()
        run.should_stop = lambda run=run, until=15 + 3 * times: run.step >= until
        with pytest.raises(Interrupted):
            run.run()
        book = run.ledger.snapshot()
        assert book["prepare"] == prepared and book["lost"] == pytest.approx(3 * times)


def test_a_run_that_saves_itself_loses_nothing(toy_run: Callable) -> None:
    first = toy_run("20step", SlowStep, log_s=1e-9)
    first.should_stop = lambda: first.step >= 7
    with pytest.raises(Interrupted):
        first.run()
    second = toy_run("20step", SlowStep, log_s=1e-9)
    second.run()
    assert second.ledger.snapshot()["lost"] < 0.002
    assert second.ledger.snapshot()["train"] == pytest.approx(0.2), "the seconds of both attempts"


def test_the_log_has_a_line_for_every_step_and_one_for_every_attempt(toy_run: Callable) -> None:
    ticks: list[Tick] = []
    run = toy_run("24step", ToyLatent, log_s=1e-9)
    run.notify = ticks.append
    run.should_stop = lambda: run.step >= 10
    with pytest.raises(Interrupted):
        run.run()
    toy_run("24step", ToyLatent, log_s=1e-9).run()
    lines = log_lines(run)
    assert [line["step"] for line in lines if "phase" in line] == list(range(1, 25))
    assert [line["phase"] for line in lines if "phase" in line] == ["prepare"] * 6 + ["train"] * 18
    assert [line["step"] for line in lines if line.get("event") == "resumed"] == [10]
    shares = [line["share"] for line in lines if "share" in line]
    assert shares == pytest.approx([i / 24 for i in range(1, 25)], abs=1e-5)
    assert all(math.isfinite(line["loss"]) and line["img_s"] > 0 for line in lines if "phase" in line)
    told = [(line["phase"], line["share"]) for line in lines if "phase" in line]
    assert [(t.phase, round(t.share, 6)) for t in ticks] == told[:10]
    assert {line["step"] for line in lines if line.get("event") == "caching"} == {6}, "before the first step on them"
    assert all(t.left_s >= 0 for t in ticks)


def test_after_a_torn_line_the_log_goes_on_whole(tmp_path: Path) -> None:
    path = tmp_path / "run" / "log.jsonl"
    append_line(path, {"step": 1, "ledger": {"train": 1.0}})
    append_line(path, {"step": 2, "ledger": {"train": 2.0}})
    with open(path, "a") as file:
        file.write('{"step": 3, "ledg')
    assert last_ledger(path) == {"train": 2.0}
    append_line(path, {"step": 3, "ledger": {"train": 3.0}})
    append_line(path, {"event": "resumed"})
    assert [line[:10] for line in path.read_text().splitlines()] == [
        '{"step": 1', '{"step": 2', '{"step": 3', '{"step": 3', '{"event": '
    ]  # fmt: skip
    assert last_ledger(path) == {"train": 3.0}


@pytest.mark.parametrize("text", ["", "\n", "[1, 2]\n", "7\n", '{"step": 1}\n', "\x00\n"])
def test_a_log_without_a_whole_line_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.jsonl"
    assert last_ledger(path) == {}
    path.write_text(text)
    assert last_ledger(path) == {}


def test_a_log_that_cannot_be_written_is_an_error_for_the_user(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the run's folder should be")
    with pytest.raises(HarnessError, match=r"cannot write .*log\.jsonl"):
        append_line(tmp_path / "run" / "log.jsonl", {"step": 1})
