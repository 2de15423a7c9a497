"""Our own training loop over a method, as a run drives it: the harness's data, optimizer, average and checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness.bench.rounds import Parts, patched, timed
from harness.data.batches import Batches
from harness.data.dataset import Part
from harness.method import DataSpec
from harness.plugins import load_method
from harness.rng import Rng
from harness.train import calibrate
from harness.train.stage import Stage

PROGRESS = 0.5  # where on the budget the steps are taken: the rate is neither 0 nor at its peak


def config(method: str, size: str, images: np.ndarray) -> Any:
    """The recipe that both sides are built from."""
    return load_method(method).recipe(size, _spec(images))


def _spec(images: np.ndarray) -> DataSpec:
    return DataSpec("bench", channels=images.shape[1], size=images.shape[-1], classes=10)


class Ours:
    """A `Stage` over the images; `precision` auto picks the faster one as a time budget does."""

    def __init__(
        self, method: str, images: np.ndarray, size: str, precision: str, batch_size: int, device: torch.device
    ) -> None:
        spec, rng = _spec(images), Rng(0).at("train").to(device)
        kind = load_method(method)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.number("init"))
            objective = kind.create(kind.recipe(size, spec), spec).to(device)
        number = torch.arange(len(images))
        part = Part(torch.from_numpy(images), torch.zeros_like(number), number)
        batches = Batches(part, batch_size, rng, objective.augment(), True, device=device)
        if precision == "auto":
            precision, _ = calibrate.fastest(objective, batches.at(0), rng, device)
        self.stage = Stage(
            name="train",
            objective=objective,
            batches=batches,
            batch_size=batch_size,
            rng=rng,
            device=device,
            precision=precision,
            compiled=False,
            average=True,
            images_planned=None,
        )

    def about(self) -> dict[str, Any]:
        trained = sum(p.numel() for p in self.stage.objective.parameters() if p.requires_grad)
        return {"parameters": trained, "precision": self.stage.precision}

    def run(self, warm: int, steps: int, workers: int, parts: Parts) -> float:
        """Seconds of `steps` steps, after `warm` steps that do not count; it has no `workers`."""
        for _ in range(warm):
            self.stage.advance(PROGRESS)
        parts.seconds.clear()
        return timed(lambda: self._steps(steps))

    def _steps(self, steps: int) -> None:
        for _ in range(steps):
            self.stage.advance(PROGRESS)
        self.stage.check_finite()  # waits for the device

    def profile(self, warm: int, steps: int, workers: int, parts: Parts) -> float:
        """`run` with data, forward, backward and optimizer booked."""
        stage = self.stage
        with (
            patched(stage.batches, "at", parts.wrap("data", stage.batches.at)),
            patched(stage, "model", parts.wrap("forward", stage.model)),
            patched(stage.accelerator, "backward", parts.wrap("backward", stage.accelerator.backward)),
            patched(stage.optimizer, "step", parts.wrap("optimizer", stage.optimizer.step)),
        ):
            return self.run(warm, steps, workers, parts)
