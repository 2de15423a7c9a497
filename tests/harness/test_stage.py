"""One stage of training: what its objective is told, how the rate runs, and what a restored stage goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness import checkpoint
from harness.data.batches import Batches
from harness.errors import Diverged
from harness.method import Augment, Batch, Loss
from harness.rng import Rng
from harness.train import stage as stage_module
from harness.train.stage import Stage, run_stage
from tests.toys import IMAGES, LR_PEAK, Toy, build, toy_part


def make(toy: Toy | None = None, images: int | None = 80, **changed: object) -> Stage:
    rng = Rng(0)
    settings = {
        "name": "train",
        "objective": toy or build(),
        "batches": Batches(toy_part(), 8, rng, Augment(mirror=False), mirror=False),
        "batch_size": 8,
        "rng": rng,
        "device": torch.device("cpu"),
        "precision": "fp32",
        "compiled": False,
        "average": True,
        "images_planned": images,
    }
    return Stage(**(settings | changed))


def run(stage: Stage) -> list[float]:
    """Run a count budget to its end; the loss after every step."""
    losses = []
    run_stage(stage, lambda: 0.0, lambda stage, share, images: losses.append(stage.loss))
    return losses


def test_progress_runs_from_0_to_just_below_1() -> None:
    stage = make()
    run(stage)
    assert stage.objective.progresses == pytest.approx([i / 10 for i in range(10)])


def test_the_loss_falls_and_the_averaged_weights_follow() -> None:
    stage = make(images=8 * 200)
    losses = run(stage)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    live, average = stage.objective.state_dict(), stage.weights()
    distance = {n: (live[n] - average[n]).norm() / live[n].norm() for n in stage.ema.averaged}
    assert all(0 < d < 0.2 for d in distance.values())


def test_the_last_batch_of_a_count_budget_takes_only_what_is_left() -> None:
    sizes = []
    stage = make(images=8 * 3 + 5)
    run_stage(stage, lambda: 0.0, lambda stage, share, images: sizes.append(images))
    assert sizes == [8, 8, 8, 5]
    assert (stage.img, stage.step) == (29, 4)


def test_every_image_is_seen_once_an_epoch() -> None:
    seen: list[torch.Tensor] = []

    class Looks(Toy):
        def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
            seen.append(batch.images.flatten(1))
            return super().pretrain(batch, progress, rng)

    run(make(build(Looks), images=2 * IMAGES))
    epochs = torch.cat(seen).view(2, IMAGES, -1)
    assert all(len(epoch.unique(dim=0)) == IMAGES for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1]), "in another order"


def test_the_warm_up_step_leaves_no_trace() -> None:
    plain, warmed = make(build(optimizer="adan")), make(build(optimizer="adan"))
    warmed.warm_up()
    before = {n: t.clone() for n, t in build(optimizer="adan").state_dict().items()}
    assert all(torch.equal(t, before[n]) for n, t in warmed.objective.state_dict().items())
    assert run(plain) == run(warmed)
    assert all(torch.equal(t, warmed.weights()[n]) for n, t in plain.weights().items())


@pytest.mark.parametrize("optimizer", ["adamw", "adan"])
def test_a_restored_stage_goes_on_as_if_it_had_never_stopped(tmp_path: Path, optimizer: str) -> None:
    whole = make(build(optimizer=optimizer))
    run(whole)
    first = make(build(optimizer=optimizer))
    with pytest.raises(InterruptedError):
        run_stage(first, lambda: 0.0, stop_after(4))
    checkpoint.save(tmp_path, 4, {"stage": first.state(), "method": first.objective.state_dict()})
    saved, _ = checkpoint.load_latest(tmp_path, "cpu")

    second = make(build(optimizer=optimizer))
    second.objective.load_state_dict(saved["method"])
    second.warm_up()
    second.restore(saved["stage"])
    run(second)
    assert (second.step, second.img) == (whole.step, whole.img)
    assert all(torch.equal(t, second.weights()[n]) for n, t in whole.weights().items())
    assert math.isclose(second.loss, whole.loss, rel_tol=0)


def stop_after(step: int) -> Callable:
    def after(stage: Stage, share: float, images: int) -> None:
        if stage.step == step:
            raise InterruptedError

    return after


def test_a_stage_restored_at_its_end_ends_at_once() -> None:
    done = make()
    run(done)
    again = make()
    again.restore(done.state())
    assert run(again) == []
    assert again.loss == done.loss


class BadFrom(Toy):
    """Its loss is no number from 30 % of the budget on."""

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        total = super().pretrain(batch, progress, rng).total
        return Loss(total * math.nan if progress >= 0.3 else total, {})


@pytest.mark.parametrize("every", [1, 4, 50])
def test_a_loss_that_is_no_number_names_its_first_step(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Even where a GPU is asked for it only now and then."""
    monkeypatch.setattr(stage_module, "TIMED_EVERY", {"cpu": every})
    with pytest.raises(Diverged) as caught:
        run(make(build(BadFrom)))
    assert caught.value.step == 4, "progress 0.3 is the fourth step of ten"
    assert "step 4" in str(caught.value)


def test_the_time_inside_steps_is_known() -> None:
    stage = make()
    run(stage)
    inside_s, steps = stage.timing.inside_s, stage.timing.steps
    assert inside_s > 0 and steps == stage.step
    assert stage.timing.of(3 * steps) == pytest.approx(3 * inside_s)
    assert make().timing.of(10) == 0


@pytest.mark.parametrize("took", [0.03, 0.07, 0.3])
def test_a_time_budget_ends_at_the_step_boundary_nearest_to_it(took: float) -> None:
    """On a clock that moves by `took` of the budget a step."""
    clock = {"now": 0.0}

    class Slow(Toy):
        def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
            clock["now"] += took
            return super().pretrain(batch, progress, rng)

    stage = make(build(Slow), images=None)
    run_stage(stage, lambda: clock["now"], lambda *_: None)
    assert stage.step == round(1 / took)
    assert stage.objective.progresses == pytest.approx([i * took for i in range(stage.step)])


def test_a_time_budget_that_ended_early_has_ended_when_it_is_restored() -> None:
    """Three steps of 0.3 are nearer to the budget than four: a repeated command must not take the fourth."""
    done = make(images=None)
    run_stage(done, lambda: 0.3 * len(done.objective.progresses), lambda *_: None)
    assert done.step == 3
    again = make(images=None)
    again.restore(done.state())
    run_stage(again, lambda: 0.9 + 0.3 * len(again.objective.progresses), lambda *_: None)
    assert again.step == 3


def test_every_step_draws_anew() -> None:
    drawn = []

    class Draws(Toy):
        def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
            drawn.append(rng.number())
            return super().pretrain(batch, progress, rng)

    run(make(build(Draws)))
    run(make(build(Draws)))
    assert len(set(drawn)) == 10 and drawn[:10] == drawn[10:]


def test_a_part_of_a_time_budget_has_progress_of_its_own() -> None:
    stage = make(images=None, begun_at=0.25, ends_at=0.75)
    assert [stage.progress(share) for share in (0.2, 0.25, 0.5, 0.75, 0.8)] == [0, 0, 0.5, 1, 1]


def test_the_rate_runs_from_0_over_its_peak_to_nearly_0() -> None:
    rates = []
    stage = make(images=8 * 100)
    run_stage(stage, lambda: 0.0, lambda stage, share, images: rates.append(stage.optimizer.param_groups[0]["lr"]))
    assert rates[0] == 0
    assert max(rates) == pytest.approx(LR_PEAK, rel=1e-3)
    assert rates.index(max(rates)) == 5, "warm-up takes 5 % of the budget"
    assert 0 < rates[-1] < 1e-3 * LR_PEAK


def test_bf16_trains_too() -> None:
    stage = make(images=8 * 100, precision="bf16")
    losses = run(stage)
    assert losses[-1] < losses[0]
    exact = run(make(images=8 * 100))
    assert losses != exact and losses[0] == pytest.approx(exact[0], rel=0.02)
    assert all(p.dtype == torch.float32 for p in stage.objective.parameters())


def test_its_state_is_plain(tmp_path: Path) -> None:
    stage = make()
    run(stage)
    state = stage.state()
    rest = {name: value for name, value in state.items() if name not in ("optimizer", "ema")}
    assert json.loads(json.dumps(rest)) == rest
