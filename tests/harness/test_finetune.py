"""A training outside a run: its budget in every unit, its latents, and what it leaves of the method."""

from __future__ import annotations

import pytest
import torch

from harness.budget import parse_budget
from harness.errors import HarnessError
from harness.method import Batch, Loss
from harness.rng import Rng
from harness.train import stage
from harness.train.finetune import Finetune
from tests.toys import CLOCK, IMAGES, Toy, ToyLatent, build, toy_part


class Sees(ToyLatent):
    sees_labels = True

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        vars(self).setdefault("given", []).append(batch)
        return super().pretrain(batch, progress, rng)


class Breaks(Toy):
    """Its sixth step is not finite."""

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        loss = super().pretrain(batch, progress, rng)
        broken = rng.path[-2:] == ("step", 5)
        return loss._replace(total=loss.total * float("nan")) if broken else loss


def tune(budget: str, method: Toy | None = None, seed: int = 0, mirror: bool = True) -> Finetune:
    return Finetune(method or build(), toy_part(), mirror, parse_budget(budget), 8, Rng(seed).at("tune"))


@pytest.mark.parametrize(("budget", "step", "img"), [("9step", 9, 72), ("50img", 7, 50), ("2epoch", 10, 80)])
def test_a_count_budget_is_spent_exactly(budget: str, step: int, img: int) -> None:
    spend = tune(budget).run()
    assert (spend.step, spend.img, spend.share) == (step, img, 1.0)
    assert spend.epoch == img / IMAGES and spend.flop > 0


def test_a_flop_budget_buys_the_images_it_can_pay() -> None:
    work = tune("1e6flop")
    spend = work.run()
    assert 1e6 - work.flop_per_image < spend.flop <= 1e6


def test_a_time_budget_ends_at_the_step_nearest_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.ledger

    monkeypatch.setattr(harness.ledger, "time", CLOCK)
    work = tune("0.1s")
    spend = work.run()
    assert spend.wall_s == pytest.approx(0.1, abs=Toy.step_s / 2) and spend.step == 100
    progresses = work.method.progresses[-100:]
    assert progresses == pytest.approx([i / 100 for i in range(100)], abs=0.011)


def test_it_is_left_frozen_with_the_average_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[stage.Stage] = []
    run_stage = stage.run_stage
    monkeypatch.setattr("harness.train.finetune.run_stage", lambda s, *rest: made.append(s) or run_stage(s, *rest))
    work = tune("30step")
    before = {name: value.clone() for name, value in work.method.state_dict().items()}
    work.run()
    assert all(torch.equal(made[0].weights()[n], value) for n, value in work.method.state_dict().items())
    assert all(torch.equal(made[0].ema.averaged[n], p) for n, p in work.method.named_parameters())
    assert not torch.equal(before["first.weight"], work.method.first.weight)
    assert not work.method.training and not any(p.requires_grad for p in work.method.parameters())


def test_it_repeats_from_its_key() -> None:
    one, same, other = (tune("12step", seed=seed) for seed in (0, 0, 1))
    for work in (one, same, other):
        work.run()
    assert torch.equal(one.method.first.weight, same.method.first.weight) and one.loss == same.loss
    assert not torch.equal(one.method.first.weight, other.method.first.weight)


@pytest.mark.parametrize("mirror", [True, False])
def test_a_latent_method_trains_on_its_latents_with_their_labels(mirror: bool) -> None:
    method = build(Sees)
    method.part.requires_grad_(False)
    part, views = toy_part(), 2 if mirror else 1
    work = tune("20step", method, mirror=mirror)
    spend = work.run()
    assert spend.flop == pytest.approx(views * IMAGES * 2 * 16 * 6 + 160 * work.flop_per_image)
    plain = method.part.encode(part.images.float().flatten(1) / 127.5 - 1)
    met = 0
    for batch in method.given[-20:]:
        assert batch.images is None and len(batch.labels) == 8
        for latent, label in zip(batch.latents, batch.labels, strict=True):
            near = (plain - latent).abs().amax(dim=1)
            if near.min() < 1e-5:
                met += 1
                assert part.labels[near.argmin()] == label
    assert met == 160 if not mirror else 40 < met < 120


def test_a_budget_below_one_step_is_refused() -> None:
    with pytest.raises(HarnessError, match="too small to train on"):
        tune("1flop").run()


def test_a_fine_tune_that_diverges_is_not_taken_for_the_run() -> None:
    with pytest.raises(HarnessError, match=r"the fine-tune of 20step diverged: non-finite loss \(nan\) at step 6"):
        tune("20step", build(Breaks)).run()


def test_gpu_time_is_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(HarnessError, match="counted in GPU time and this machine has no GPU"):
        tune("5gpu-min")


def test_measuring_what_encoding_costs_is_no_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.ledger
    from harness.train import finetune

    def slow(*_) -> float:
        CLOCK.now += 5.0
        return 1.0

    monkeypatch.setattr(harness.ledger, "time", CLOCK)
    monkeypatch.setattr(finetune, "encoding_flop", slow)
    method = build(Sees)
    method.part.requires_grad_(False)
    assert tune("0.1s", method).run().wall_s == pytest.approx(0.1, abs=Toy.step_s / 2)
