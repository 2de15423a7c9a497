"""A short training outside a run: the loop's own stage, on a budget of its own, with nothing saved on the way.

What an eval trains is evaluation: it spends from no run's budget, its seconds go to the account that is open around it,
and a killed one begins anew. Precision follows from the device alone, so a count budget gives the same weights again.
"""

from __future__ import annotations

import math

import torch

from harness.budget import Budget, Meter, check_devices, images_left
from harness.data.batches import Batches
from harness.data.dataset import Part
from harness.errors import Diverged, HarnessError
from harness.ledger import Ledger
from harness.method import Method
from harness.records import Spend
from harness.rng import Rng
from harness.train import calibrate, flops
from harness.train.latents import encode, encoding_flop, views_of
from harness.train.stage import Stage, run_stage


class Finetune:
    """One training of `method` on `part` by its own objective, rate and augmentation, on the device of `rng`.

    Latents are encoded within the budget; the step that warms up and what measures FLOPs are outside it.
    """

    def __init__(self, method: Method, part: Part, mirror: bool, budget: Budget, batch_size: int, rng: Rng) -> None:
        self.method, self.part, self.mirror = method, part, mirror
        self.budget, self.batch_size, self.rng = budget, batch_size, rng
        self.device = torch.device(rng.device)
        check_devices(budget, gpus=int(self.device.type == "cuda"))
        self.precision = calibrate.by_device(self.device)
        self.ledger, self.flop, self.step, self.img = Ledger(), 0.0, 0, 0
        self.flop_per_image = self.loss = math.nan

    def run(self) -> Spend:
        """Train; the method is left with the averaged weights, frozen, ready to be evaluated."""
        stage = self._stage(self._latents())
        stage.warm_up()
        try:
            with self.ledger.account("train"):
                run_stage(stage, lambda: self.budget.spent(self.meter()), self._count)
        except Diverged as error:  # of the run, that would say that its pre-training did
            raise HarnessError(f"the fine-tune of {self.budget} diverged: {error}", "a finite loss") from error
        self.loss = stage.loss
        self.method.load_state_dict(stage.weights())
        self.method.requires_grad_(False).eval()
        meter = self.meter()
        return Spend(**vars(meter), share=self.budget.spent(meter))

    def meter(self) -> Meter:
        seconds = self.ledger.charged_s()
        return Meter(seconds, seconds, self.flop, self.img, self.img / len(self.part), self.step)

    def _latents(self) -> torch.Tensor | None:
        views = views_of(self.method.eval(), self.part.images, self.mirror, self.device)
        if not views:
            return None
        self.flop += encoding_flop(self.method, self.part.images, views, self.device)
        with self.ledger.account("prepare"):
            return encode(self.method, self.part.images, views, self.device, self.precision)

    def _stage(self, latents: torch.Tensor | None) -> Stage:
        method, rng = self.method.train(), self.rng
        batches = Batches(
            self.part,
            self.batch_size,
            rng,
            method.augment(),
            self.mirror,
            latents,
            self.device,
            labels=method.sees_labels,
        )
        self.flop_per_image = flops.train_flop_per_image(method, batches.at(0), rng)
        begun = self.meter()
        planned = images_left(self.budget, begun, self.batch_size, len(self.part), self.flop_per_image)
        if self.budget.spent(begun) >= 1 or (planned is not None and planned < 1):
            raise HarnessError(
                f"the fine-tune's budget {self.budget} is too small to train on",
                "room for at least one step",
                "a larger budget of the eval; the run's own has nothing to do with it",
            )
        return Stage(
            name="train",
            objective=method,
            batches=batches,
            batch_size=self.batch_size,
            rng=rng,
            device=self.device,
            precision=self.precision,
            compiled=False,
            average=True,
            images_planned=planned,
            begun_at=self.budget.spent(begun),
        )

    def _count(self, stage: Stage, share: float, images: int) -> None:
        self.step += 1
        self.img += images
        self.flop += images * self.flop_per_image
