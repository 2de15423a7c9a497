"""Pre-training of a run: it ends where its budget says, and however often it is killed, it is the run that was not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from harness import checkpoint, files, ledger
from harness.errors import Diverged, HarnessError
from harness.method import Augment, Batch, Loss
from harness.rng import Rng
from harness.store import RunFolder
from harness.train import latents, pretraining
from harness.train import stage as stage_module
from harness.train.optim import rate
from harness.train.pretraining import Interrupted, Pretraining
from tests.harness.runs import log_lines, snapshot, snapshots, trained
from tests.toys import CLOCK, IMAGES, LR_PEAK, SlowStep, Toy, ToyLatent, ToyLatentInThrees


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "time", CLOCK)


SHARES = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0)


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


@pytest.mark.parametrize(("budget", "prepare_img", "img"), [("40step", 10 * 3, 10 * 3 + 30 * 8), ("320img", 80, 320)])
def test_preparation_may_have_a_batch_size_of_its_own(
    toy_run: Callable, budget: str, prepare_img: int, img: int
) -> None:
    run = toy_run(budget, ToyLatentInThrees)
    run.run()
    assert (run.img - run.train_img, run.img) == (prepare_img, img)
    assert run.spent() == 1


def test_time_inside_the_preparation_counts_as_work_and_survives_a_stop(toy_run: Callable, monkeypatch) -> None:
    monkeypatch.setattr(pretraining.Ledger, "charged_s", lambda self: 2 * inside)
    inside = 1.0
    run = toy_run("40step", ToyLatent)
    run.should_stop = lambda: run.step >= 30
    with pytest.raises(Interrupted):
        run.run()
    prepared = run.worked_s
    assert prepared > 0
    again = toy_run("40step", ToyLatent)
    again.run()
    assert again.worked_s == prepared, "latents that are read again are no more work"
    inside = again.worked_s + again.stage.timing.of(again.stage.step)
    assert again.outside_share() == pytest.approx(0.5)


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


def test_a_wish_to_stop_is_honoured_while_latents_are_made_and_the_time_is_booked(
    toy_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the part that is trained first and the first step on its latents; the log has seen the time."""
    monkeypatch.setattr(latents, "CHUNK", 10)
    chunks = []

    class Slow(ToyLatent):
        def cached(self, images):
            CLOCK.now += 1.0
            chunks.append(len(images))
            return super().cached(images)

    first = toy_run("40step", Slow, should_stop=lambda: len(chunks) > 4)
    with pytest.raises(Interrupted):
        first.run()
    assert first.stage.name == "prepare" and first.step == 10, "it had begun to make them"
    assert "caching" in [line.get("event") for line in log_lines(first)]
    second = toy_run("40step", Slow)
    second.run()
    assert second.step == 40 and second.ledger.snapshot()["lost"] == pytest.approx(4.0, abs=1.5)


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
