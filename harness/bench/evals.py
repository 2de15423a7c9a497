"""The linear probe on cached features against a probe trained over the images, and features once against once per eval.

Both probes read the same tap of the same network. The naive one sees plain images, one rate and no choice of tap, and
takes 10 epochs where MAE's own protocol takes 90: all in its favour.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness import machine
from harness.bench.rounds import Spread, interleave, patched, ratios, timed
from harness.bench.show import line, table
from harness.evaluation import Context, Subject, context, evaluate
from harness.rng import Rng

if TYPE_CHECKING:
    from harness.data.dataset import Dataset
    from harness.method import Method

SUBSET = {"fit": 1_000, "select": 200, "test": 500}  # images: small, for the naive side's sake
EPOCHS = 10
BATCH = 128
RATE = 0.1  # of SGD, per 256 images of a batch, as in MAE's protocol
STEPS = 40  # of pre-training before: enough that features are not those of noise
ROUNDS = 3
EVALS = ("linear", "knn")
CACHED, ONLINE = "cached features, L-BFGS, 4 taps, 10 penalties", f"through the encoder, SGD, {EPOCHS} epochs"
ONCE, EACH = "features once for both", "each eval its own features"


def bench(data_dir: Path | None, steps: int = STEPS, epochs: int = EPOCHS, rounds: int = ROUNDS) -> None:
    """Print seconds, ratios and accuracies of both pairs, each measured in interleaved rounds."""
    data = found_data(data_dir)
    method = _trained(data, steps)
    with ExitStack() as stack:
        stack.enter_context(patched(context, "CHEAP", SUBSET))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = Lab(method, data, folder)
        lab.fresh().labels("test")
        images = ", ".join(f"{lab.fresh().part(part).n} {part}" for part in SUBSET)  # type: ignore[arg-type]
        line(f"{data.title}: {images} images; MAE nano after {steps} steps; {rounds} interleaved rounds")
        probes = _pair({CACHED: lab.cached, ONLINE: lambda: lab.online(epochs)}, rounds)
        sharing = _pair({ONCE: lab.once, EACH: lab.each}, rounds)
    notes = ["Medians (lowest to highest round); a ratio is taken round by round, to the first of its pair."]
    table("evals", ["what", "seconds", "ratio", "top-1 %"], [*probes, *sharing], notes)


def found_data(data_dir: Path | None) -> Dataset:
    """CIFAR-10 where it is found, else the digits that ship with scikit-learn."""
    from harness.data import catalog
    from harness.data.dataset import load

    found = catalog.locate(catalog.find_entry("cifar10"), data_dir)
    return load("digits" if found is None else "cifar10", data_dir)


def _trained(data: Dataset, steps: int) -> Method:
    from harness.bench.ours import PROGRESS, Ours

    loop = Ours("mae", data.fit.images.numpy(), "nano", "auto", BATCH, machine.device())
    for _ in range(steps):
        loop.stage.advance(PROGRESS)
    return loop.stage.objective.requires_grad_(False).eval()  # type: ignore[return-value]


def _pair(sides: dict[str, Callable[[], str]], rounds: int) -> list[list[str]]:
    """Table rows of a pair; a side returns the accuracies it came to."""
    said: dict[str, str] = {}

    def measure(name: str) -> float:
        return timed(lambda: said.update({name: sides[name]()}))

    seconds = interleave({name: (lambda name=name: measure(name)) for name in sides}, rounds)
    first = next(iter(seconds.values()))
    return [[name, Spread.of(s).text(".2f"), ratios(s, first).text(".2f"), said[name]] for name, s in seconds.items()]


class Lab:
    """One checkpoint, evaluated in several ways, from nothing each time."""

    def __init__(self, method: Method, data: Dataset, folder: Path) -> None:
        self.method, self.data, self.folder = method, data, folder
        self.device = machine.device()

    def fresh(self) -> Context:
        """A context that has extracted nothing yet."""
        made = Context(
            self.method,
            self.data,
            Rng(0).at("bench"),
            pictures=self.folder,
            cache=self.folder,
            device=self.device,
            cheap=True,
        )
        made.begin("bench evals")
        return made

    def _evaluate(self, name: str, within: Context) -> float:
        from harness.plugins import load_eval

        record = evaluate(name, within, load_eval(name).recipe("nano"), subject=Subject(reference="bench"))
        assert record is not None
        return record.numbers[f"{name}_top1"].value

    def cached(self) -> str:
        return f"{self._evaluate('linear', self.fresh()):.1f}"

    def once(self) -> str:
        shared = self.fresh()
        return ", ".join(f"{self._evaluate(name, shared):.1f}" for name in EVALS)

    def each(self) -> str:
        return ", ".join(f"{self._evaluate(name, self.fresh()):.1f}" for name in EVALS)

    def online(self, epochs: int) -> str:
        """A normalised linear layer trained by SGD while the images pass through the frozen encoder."""
        within, tap, rng = self.fresh(), self.method.taps()[0], Rng(0).at("online")
        train = [within.part("fit"), within.part("select")]
        pixels = torch.cat([part.chunk(0, part.n) for part in train])
        labels = torch.cat([part.labels for part in train]).to(self.device)
        probe = _Probe(self._features(pixels[:2], tap).shape[1], within.data.spec.classes).to(self.device)
        optimizer = torch.optim.SGD(probe.parameters(), lr=RATE * BATCH / 256, momentum=0.9)
        total = epochs * (len(pixels) // BATCH)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        for epoch in range(epochs):
            order = rng.permutation(epoch, len(pixels))
            for chosen in order[: len(pixels) // BATCH * BATCH].to(self.device).split(BATCH):
                loss = nn.functional.cross_entropy(probe(self._features(pixels[chosen], tap)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
        return f"{_top1(probe.eval(), self._features, within, tap):.1f}"

    @torch.no_grad()
    def _features(self, images: torch.Tensor, tap) -> torch.Tensor:
        return self.method.features(images, [tap], Rng(0, device=self.device))[0]


class _Probe(nn.Sequential):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__(nn.BatchNorm1d(width, affine=False, eps=1e-6), nn.Linear(width, classes))
        nn.init.zeros_(self[1].weight)
        nn.init.zeros_(self[1].bias)


@torch.no_grad()
def _top1(probe: nn.Module, features: Callable, within: Context, tap) -> float:
    test = within.part("test")
    guesses = [probe(features(test.chunk(i, BATCH), tap)).argmax(dim=1).cpu() for i in range(0, test.n, BATCH)]
    return 100 * (torch.cat(guesses) == test.labels).double().mean().item()
