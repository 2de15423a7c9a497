"""The linear probe on cached features against MAE's protocol over the images; features once against once per eval.

They are the evals `linear` and `online` with its preset `mae`, at MAE's 90 epochs, each with its choice of tap, on the
same network and images. Two things favour the preset: it trains once, where it does so three times by default, and
its base rate is higher than MAE's 0.1 by about as much as the images are fewer than ImageNet's. A step of LARS is a
share of the weights' norm, and with 0.1 the head would not leave its start.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import machine
from harness.bench.rounds import Spread, interleave, ratios, timed
from harness.bench.show import line, table
from harness.evaluation import Context, Subject, evaluate
from harness.rng import Rng

if TYPE_CHECKING:
    from harness.data.dataset import Dataset
    from harness.method import Method

SUBSET = {"fit": 800, "select": 200, "test": 1_000}  # images of train: few, for the online side's sake
EPOCHS = 90
BATCH = 128
RATE = 128.0  # 0.1 x 1.28 million / 1,000
STEPS = 40  # of pre-training before: enough that features are not those of noise
ROUNDS = 3
EVALS = ("linear", "knn")
CACHED, ONLINE = "linear: cached features, L-BFGS", "online, MAE's LARS: over augmented images"
ONCE, EACH = "features once for both", "each eval its own features"

Row = list[str]


def bench(data_dir: Path | None, steps: int = STEPS, epochs: int = EPOCHS, rounds: int = ROUNDS) -> None:
    """Print seconds, ratios and accuracies of all pairs, each measured in interleaved rounds."""
    whole = found_data(data_dir)
    data = few(whole)
    sizes = ", ".join(f"{len(part)} {name}" for name, part in _parts(data).items())
    line(f"{data.title}: {sizes} images; MAE nano after {steps} steps; {epochs} epochs; {rounds} interleaved rounds")
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(_trained(whole, steps), data, Path(folder))
        pairs: list[dict[str, Callable[[], str]]] = [
            {CACHED: lab.cached, ONLINE: lambda: lab.online(epochs)},
            {ONCE: lab.once, EACH: lab.each},
        ]
        rows = [row for sides in pairs for row in _pair(sides, rounds)]
    notes = [
        "Medians (lowest to highest round); a ratio is taken round by round, to the first of its pair.",
        f"{ONLINE}: base rate {RATE:g}, {BATCH} images a step.",
        f"One standard error of a top-1 is {_error(rows[0][-1], data):.1f} points at so few test images.",
    ]
    table("evals", ["what", "seconds", "ratio", "top-1 %"], rows, notes)


def found_data(data_dir: Path | None) -> Dataset:
    """CIFAR-10 where it is found, else the digits that ship with scikit-learn."""
    from harness.data import catalog
    from harness.data.dataset import load

    found = [name for name in ("cifar10", "cifar10-jpeg") if catalog.locate(catalog.find_entry(name), data_dir)]
    return load(found[0] if found else "digits", data_dir)


def few(data: Dataset) -> Dataset:
    """A small data set of train's images; what is its test part is train too, so that no test split is opened."""
    sizes = [round(n * min(1.0, len(data.train) / sum(SUBSET.values()))) for n in SUBSET.values()]
    order = Rng(0).at("bench").permutation("images", len(data.train))
    fit, select, test = order[: sum(sizes)].split(sizes)
    train = data.train.subset(order[: len(fit) + len(select)])
    return dataclasses.replace(data, train=train, fit_n=len(fit), _part=data.train.subset(test), opened=[])


def _parts(data: Dataset) -> dict[str, Any]:
    return {"fit": data.fit, "select": data.select, "test": data.open_test("bench evals")}


def _error(said: str, data: Dataset) -> float:
    share = float(said) / 100
    return 100 * math.sqrt(share * (1 - share) / len(data.open_test("bench evals")))


def _trained(data: Dataset, steps: int) -> Method:
    from harness.bench.ours import PROGRESS, Ours

    loop = Ours("mae", data.fit.images.numpy(), "nano", "auto", BATCH, machine.device())
    for _ in range(steps):
        loop.stage.advance(PROGRESS)
    return loop.stage.objective.requires_grad_(False).eval()  # type: ignore[return-value]


def _pair(sides: dict[str, Callable[[], str]], rounds: int) -> list[Row]:
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

    def fresh(self) -> Context:
        """A context that has extracted nothing yet."""
        return Context(
            self.method,
            self.data,
            Rng(0).at("bench"),
            pictures=self.folder,
            cache=self.folder,
            device=machine.device(),
        )

    def _evaluate(self, name: str, within: Context, **settings: Any) -> str:
        """The accuracies, as they are printed; `settings` are laid over the eval's recipe."""
        from harness.plugins import load_eval

        config = dataclasses.replace(load_eval(name).recipe("nano"), **settings)
        record = evaluate(name, within, config, subject=Subject(reference="bench"))
        assert record is not None
        return f"{next(iter(record.numbers.values())).value:.1f}"

    def cached(self) -> str:
        return self._evaluate("linear", self.fresh())

    def online(self, epochs: int) -> str:
        settings = {"length": "paper", "batch": BATCH, "rate": RATE, "seeds": 1}
        return self._evaluate("online", self.fresh(), epochs=epochs, **settings)

    def once(self) -> str:
        shared = self.fresh()
        return ", ".join(self._evaluate(name, shared) for name in EVALS)

    def each(self) -> str:
        return ", ".join(self._evaluate(name, self.fresh()) for name in EVALS)
