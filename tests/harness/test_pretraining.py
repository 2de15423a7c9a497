"""Pre-training of a run: it ends where its budget says, and however often it is killed, it is the run that was not."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness import checkpoint, files, ledger
from harness.errors import Diverged, HarnessError
from harness.method import Augment, Batch, Loss
from harness.rng import Rng
from harness.store import RunFolder
from harness.train import pretraining
from harness.train import stage as stage_module
from harness.train.log import Tick, append_line, last_ledger
from harness.train.optim import rate
from harness.train.pretraining import Interrupted, Pretraining
from tests.toys import CLOCK, IMAGES, LR_PEAK, Toy, ToyLatent


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "time", CLOCK)


SHARES = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0)


def snapshot(run: Pretraining, share: float = 1.0) -> dict[str, torch.Tensor]:
    path = checkpoint.find_snapshot(run.folder.snapshots, share)
    assert path is not None, f"no snapshot at {share}"
    return checkpoint.load_snapshot(path)


def snapshots(run: Pretraining) -> list[str]:
    """Their names, which hold the checksums of their contents."""
    return sorted(path.name for path in run.folder.snapshots.iterdir())


def log_lines(run: Pretraining) -> list[dict]:
    return [json.loads(text) for text in run.folder.log.read_text().splitlines()]


def trained(run: Pretraining) -> list[float]:
    """The progress of every step of the last stage, those that measured its cost and warmed up left out."""
    return run.method.progresses[-run.stage.step :]


# -- where budgets end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "step", "img"),
    [
        ("1step", 1, 8),
        ("30step", 30, 240),
        ("240img", 30, 240),
        ("250img", 32, 250),
        ("3epoch", 15, 120),
        ("0.5epoch", 3, 20),
        ("5img", 1, 5),
    ],
)
def test_a_count_budget_is_spent_exactly(toy_run: Callable, budget: str, step: int, img: int) -> None:
    run = toy_run(budget)
    run.run()
    assert (run.spent(), run.step, run.img) == (1, step, img)


@pytest.mark.parametrize(
    ("budget", "prepare_img", "img"), [("30step", 64, 240), ("250img", 62, 250), ("3epoch", 30, 120), ("6img", 2, 6)]
)
def test_preparation_takes_its_share_of_a_count_budget(
    toy_run: Callable, budget: str, prepare_img: int, img: int
) -> None:
    run = toy_run(budget, ToyLatent)
    run.run()
    assert (run.spent(), run.img - run.train_img, run.img) == (1, prepare_img, img)


@pytest.mark.parametrize("method", [Toy, ToyLatent])
def test_a_flop_budget_buys_the_images_it_can_pay(toy_run: Callable, method: type[Toy]) -> None:
    probe = toy_run("40step", method, folder="probe")
    probe.run()
    price = probe.flop_per_image
    assert price["train"] > 0 and probe.flop >= 30 * 8 * price["train"]
    run = toy_run(f"{probe.flop + 4 * price['train']:.12g}flop", method)
    run.run()
    left = run.budget.limit - run.flop
    assert 0 <= left < price["train"], "less than one more image"
    assert run.flop == pytest.approx(
        sum(share * price[name] for name, share in images_of(run).items()) + cache_flop(run)
    )


def images_of(run: Pretraining) -> dict[str, int]:
    stages = {"prepare": run.img - run.train_img, "train": run.train_img}
    return {name: images for name, images in stages.items() if images}


def cache_flop(run: Pretraining) -> float:
    """Encoding both views of every image."""
    return 2 * IMAGES * 2 * 16 * 6 if isinstance(run.method, ToyLatent) else 0


@pytest.mark.parametrize("method", [Toy, ToyLatent])
def test_a_time_budget_is_spent_within_half_a_step(toy_run: Callable, method: type[Toy]) -> None:
    run = toy_run("0.2003s", method)
    run.run()
    assert abs(run.spent() - 1) <= 0.5 * Toy.step_s / 0.2003
    book = run.ledger.snapshot()
    assert book["train"] + book["prepare"] == pytest.approx(0.2003 * run.spent())
    assert book["compile"] > 0, "measuring and warming up are shown, and not charged"
    progress = trained(run)
    assert 0 <= progress[0] < 0.01 and all(a < b for a, b in itertools.pairwise(progress)) and 0.98 < progress[-1] < 1
    assert run.stage.optimizer.param_groups[0]["lr"] == pytest.approx(rate(run.stage.optim, progress[-1]))
    assert run.stage.optimizer.param_groups[0]["lr"] < 0.01 * LR_PEAK
    assert run.stage.begun_at == pytest.approx(0.25 if method is ToyLatent else 0.0, abs=0.005)


def test_progress_and_rate_end_with_a_count_budget(toy_run: Callable) -> None:
    run = toy_run("40step", log_s=1e-9)
    run.run()
    assert trained(run) == pytest.approx([i / 40 for i in range(40)])
    rates = [line["lr"] for line in log_lines(run)]
    assert len(rates) == 40
    assert rates[0] == 0 and max(rates) == pytest.approx(LR_PEAK) and 0 < rates[-1] < 0.01 * LR_PEAK


@pytest.mark.parametrize(
    ("budget", "method", "words"),
    [
        ("10flop", Toy, "nothing is left for 'train'"),
        ("1step", ToyLatent, "nothing is left for 'prepare'"),
        ("1img", ToyLatent, "nothing is left for 'prepare'"),
        ("10flop", ToyLatent, "nothing is left for 'prepare'"),
    ],
)
def test_a_count_budget_below_one_step_is_refused(
    toy_run: Callable, budget: str, method: type[Toy], words: str
) -> None:
    with pytest.raises(HarnessError, match=words) as caught:
        toy_run(budget, method).run()
    assert "larger --budget" in caught.value.next_step


class SlowStep(Toy):
    step_s = 0.01


class SlowCache(ToyLatent):
    def preparation(self) -> None:  # what costs is the cache alone
        return None

    def cached(self, images: torch.Tensor) -> torch.Tensor:
        CLOCK.now += 0.05
        return super().cached(images)


class DearCache(ToyLatent):
    share = 0.9

    def cached(self, images: torch.Tensor) -> torch.Tensor:
        return super().cached(images @ torch.eye(4)) + 0 * (torch.eye(100) @ torch.eye(100)).sum()


@pytest.mark.parametrize(
    ("budget", "method", "words"),
    [
        ("0.002s", SlowStep, r"the budget 0.002s is too small: a step of 'train' took .* times as much"),
        ("0.1s", SlowCache, r"the budget 0.1s was used up by preparation \(0\.\d s\) before 'train' began"),
        ("300000flop", DearCache, "nothing is left for 'train'"),
    ],
)
def test_a_budget_that_is_used_up_before_it_teaches_anything_is_refused(
    toy_run: Callable, budget: str, method: type[Toy], words: str
) -> None:
    for _ in range(2):  # repeated, the command says the same again
        with pytest.raises(HarnessError, match=words) as caught:
            toy_run(budget, method).run()
        assert "larger --budget" in caught.value.next_step


# -- snapshots --------------------------------------------------------------------------------------------------------


def test_snapshots_are_taken_at_the_first_step_boundary_past_their_share(toy_run: Callable) -> None:
    run = toy_run("30step", ema=False)
    run.run()
    assert [int(snapshot(run, share)["calls"]) for share in SHARES] == [0, 4, 8, 15, 30]
    assert len(snapshots(run)) == len(SHARES)
    final = snapshot(run)
    assert all(torch.equal(tensor, final[name]) for name, tensor in run.method.state_dict().items())


def test_what_is_evaluated_is_the_average_unless_told_otherwise(toy_run: Callable) -> None:
    averaged, raw = toy_run("30step", folder="a"), toy_run("30step", folder="b", ema=False)
    averaged.run()
    raw.run()
    one, two = snapshot(averaged), snapshot(raw)
    assert torch.equal(one["calls"], two["calls"]) and torch.equal(one["mean"], two["mean"])
    assert not torch.equal(one["first.weight"], two["first.weight"])
    assert torch.equal(snapshot(averaged, 0.0)["first.weight"], snapshot(raw, 0.0)["first.weight"])


def test_while_preparation_lasts_the_method_itself_is_untrained(toy_run: Callable) -> None:
    run = toy_run("40step", ToyLatent)
    run.run()
    assert [int(snapshot(run, share)["calls"]) for share in SHARES] == [0, 0, 0, 10, 30]
    prepared = [snapshot(run, share)["part.encode.weight"] for share in SHARES]
    assert all(torch.equal(weight, prepared[0]) for weight in prepared), "frozen once it is prepared"
    assert not any(p.requires_grad for p in run.method.part.parameters())
    untrained = toy_run("1step", ToyLatent, folder="other").method
    assert torch.equal(snapshot(run, 1 / 8)["first.weight"], untrained.first.weight)
    assert not torch.equal(prepared[0], untrained.part.encode.weight)


# -- preparation and its cache ----------------------------------------------------------------------------------------


def test_the_method_trains_on_what_its_preparation_made(toy_run: Callable) -> None:
    seen = []

    class Looks(ToyLatent):
        def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
            assert batch.images is None
            seen.append(batch.latents)
            return super().pretrain(batch, progress, rng)

    run = toy_run("200step", Looks)
    run.run()
    images = run.fit.images.float() / 127.5 - 1
    with torch.no_grad():
        expected = torch.cat([run.method.cached(images), run.method.cached(images.flip(-1))])
    distance = torch.cdist(torch.cat(seen[-150:]), expected, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(dim=1).values.max() < 1e-5, "every latent is that of an image, mirrored or not"
    assert set(distance.argmin(dim=1).tolist()) == set(range(2 * IMAGES)), "and all of them are used"


def test_without_mirror_there_is_one_view(toy_run: Callable) -> None:
    class Plain(ToyLatent):
        def augment(self) -> Augment:
            return Augment(mirror=False)

    run = toy_run("20step", Plain)
    run.run()
    stored = checkpoint.find_snapshot(run.folder.cache, 0.0)
    assert checkpoint.load_snapshot(stored)["latents"].shape == (1, IMAGES, 6)


def test_preparation_is_charged_and_its_steps_are_counted(toy_run: Callable) -> None:
    run = toy_run("40step", ToyLatent)
    run.run()
    assert (run.step, run.train_img, run.img) == (40, 30 * 8, 40 * 8)
    assert run.flop_per_image.keys() == {"prepare", "train"}
    assert run.ledger.snapshot()["prepare"] > 0


def test_latents_of_other_weights_are_never_read_back(toy_run: Callable) -> None:
    """Killed after the cache was made, with the newest checkpoints gone: what is prepared again is cached again."""
    run = toy_run("40step", ToyLatent)
    run.run()
    whole = snapshots(run)
    for path in run.folder.checkpoints.iterdir():
        path.unlink()
    stale = {"latents": torch.zeros(2, IMAGES, 6)}
    checkpoint.save_snapshot(run.folder.cache, 0.0, stale)
    again = toy_run("40step", ToyLatent)
    again.run()
    assert snapshots(again) == whole


# -- resuming ---------------------------------------------------------------------------------------------------------

CASES = {
    "adamw": {"budget": "24step"},
    "adan": {"budget": "24step", "optimizer": "adan"},
    "without average": {"budget": "24step", "ema": False},
    "bf16": {"budget": "12step", "precision": "bf16"},
    "cut batch": {"budget": "187img"},
    "prepared": {"budget": "24step", "method": ToyLatent},
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
    assert [(t.phase, round(t.share, 6)) for t in ticks] == [(line["phase"], line["share"]) for line in lines[:10]]
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


# -- divergence -------------------------------------------------------------------------------------------------------


class BadFromHalf(Toy):
    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        total = super().pretrain(batch, progress, rng).total
        return Loss(total * math.inf if progress >= 0.5 else total, {})


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize("checkpoint_s", [1e-9, 1e9])
def test_a_run_that_diverges_names_the_step_and_keeps_its_good_weights(
    toy_run: Callable, monkeypatch: pytest.MonkeyPatch, every: int, checkpoint_s: float
) -> None:
    """`every`: how often the loss is looked at; on a GPU rarely. A snapshot is due after the first bad step."""
    monkeypatch.setattr(stage_module, "TIMED_EVERY", {"cpu": every})
    run = toy_run("30step", BadFromHalf, checkpoint_s=checkpoint_s, snapshots=(0.25, 18 / 30, 0.75))
    with pytest.raises(Diverged) as caught:
        run.run()
    assert caught.value.step == 16
    assert {name[:6] for name in snapshots(run)} == {"0.0000", "0.2500"}
    saved, _ = checkpoint.load_latest(run.folder.checkpoints, "cpu")
    assert saved["counters"][0] <= 15
    assert all(tensor.isfinite().all() for tensor in saved["method"].values())


# -- surroundings -----------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_run_with_what_to_do(toy_run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy_run("24step")
    run.should_stop = lambda: run.step >= 5
    with pytest.raises(Interrupted):
        run.run()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(HarnessError, match="no space left to write"):
            toy_run("24step", checkpoint_s=1e-9).run()
    again = toy_run("24step")
    again.run()
    assert again.spent() == 1


def test_training_leaves_torchs_global_randomness_alone(toy_run: Callable) -> None:
    run = toy_run("10step", ToyLatent)
    before = torch.get_rng_state()
    run.run()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("budget", "precision"), [("4step", "fp32"), ("0.05s", "bf16")])
def test_precision_is_calibrated_for_time_and_fixed_for_counts(
    toy_run: Callable, monkeypatch: pytest.MonkeyPatch, budget: str, precision: str
) -> None:
    monkeypatch.setattr(pretraining.calibrate, "fastest", lambda *_: ("bf16", {"fp32": 2.0, "bf16": 1.0}))
    run = toy_run(budget)
    run.run()
    assert run.stage.precision == precision
    again = toy_run(budget, folder="asked", precision="fp32")
    again.run()
    assert again.stage.precision == "fp32"


def test_calibration_leaves_the_objective_as_it_was(toy_run: Callable) -> None:
    run = toy_run("0.05s")
    before = {name: tensor.clone() for name, tensor in run.method.state_dict().items()}
    images = torch.zeros(4, 1, 4, 4)
    name, seconds = pretraining.calibrate.fastest(run.method, Batch(images), Rng(0), torch.device("cpu"))
    assert seconds[name] == min(seconds.values()) and set(seconds) == {"fp32", "bf16"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.method.state_dict().items())
    assert all(p.grad is None for p in run.method.parameters())


def test_the_runs_of_one_process_do_not_touch_each_other(toy_run: Callable) -> None:
    alone = toy_run("12step", folder="alone")
    alone.run()
    toy_run("12step", ToyLatent, folder="between", precision="bf16").run()
    after = toy_run("12step", folder="after")
    after.run()
    assert snapshots(after) == snapshots(alone)
    assert isinstance(after.folder, RunFolder)
