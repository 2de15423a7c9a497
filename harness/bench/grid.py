"""The grid of taps x noise levels: against bare passes of the network, against one run a cell, and its peak memory.

DDAE's network, whose protocol the grid is: every decoder block at three levels. Speed does not depend on the weights,
which are as initialised. A run of a cell is the eval `linear` at that tap, with all it does on all the images it wants;
so the images are few there, in the proportions of CIFAR-10, and more beside bare passes.
`python -m harness.bench.grid` is the process whose memory is measured, on all images.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import machine
from harness.bench.rounds import Spread, interleave, patched, ratios, timed
from harness.bench.show import line, table
from harness.evaluation import Choice, Context, context
from harness.evaluation.features import CHUNK
from harness.protocol import COMMON
from harness.rng import Rng

if TYPE_CHECKING:
    from harness.data.dataset import Dataset
    from harness.method import Method, Tap

ROUNDS = 3
PASSES, GRID, CELLS = "one pass a noise level, nothing read", "the grid, streaming ridge", "one run a cell"


@dataclass(frozen=True)
class Sizes:
    """Images of each part, those of fit that a choice is made with, and rounds for each one asked for."""

    parts: dict[str, int]
    choice: int
    rounds: int = 1

    @contextmanager
    def used(self) -> Iterator[None]:
        few = replace(COMMON, choice_images=self.choice)
        with patched(context, "CHEAP", self.parts), patched(context, "COMMON", few):
            yield


BESIDE_PASSES = Sizes({"fit": 3_600, "select": 400, "test": 800}, 3_600, rounds=3)
BESIDE_CELLS = Sizes({"fit": 1_800, "select": 200, "test": 400}, 400)  # a twenty-fifth of CIFAR-10


def bench(data_dir: Path | None, rounds: int = ROUNDS, memory: bool = True) -> None:
    """Print seconds and ratios of interleaved rounds, and the peak memory of a whole evaluation over the grid."""
    from harness.bench.evals import found_data

    data = found_data(data_dir)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(data, Path(folder))
        taps = lab.method.taps()
        levels = {tap.noise for tap in taps}
        line(f"{data.title}; DDAE nano, {len(taps)} taps = {len(taps) // len(levels)} blocks x {len(levels)} levels")
        rows = _compared(lab, {PASSES: lab.passes, GRID: lab.grid}, BESIDE_PASSES, rounds)
        rows += _compared(lab, {GRID: lab.grid, CELLS: lab.cells}, BESIDE_CELLS, rounds)
    notes = [
        "Medians (lowest to highest round); a ratio is taken round by round, to the first of its pair.",
        "A run of a cell extracts its tap on fit, select and test, chooses one of ten penalties, refits and scores.",
    ]
    table("grid of taps", ["what", "images", "seconds", "ratio"], rows, notes)
    if memory:
        _memory(data_dir)


def _compared(lab: Lab, pair: dict[str, Callable[[], None]], sizes: Sizes, rounds: int) -> list[list[str]]:
    """A row for each of the pair, measured in interleaved rounds."""
    with sizes.used():
        sides = {name: (lambda work=work: timed(work)) for name, work in pair.items()}
        seconds = interleave(sides, rounds * sizes.rounds)
    images = f"{sizes.choice:,} of fit, {sizes.parts['select']:,} of select"
    first = next(iter(seconds.values()))
    return [
        [name, images, Spread.of(found).text(".2f"), ratios(found, first).text(".3f")]
        for name, found in seconds.items()
    ]


def _memory(data_dir: Path | None) -> None:
    words = [sys.executable, "-m", "harness.bench.grid", *([str(data_dir)] if data_dir else [])]
    said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    line(
        f"peak memory {said['peak'] / 2**30:.2f} GiB for {said['images']:,} train images and a grid of {said['taps']} "
        f"taps, choice and probe, in {said['seconds']:.0f} s; {said['before'] / 2**30:.2f} GiB before the first pass"
    )


class Lab:
    """DDAE's network on a data set, read in several ways, from nothing each time."""

    def __init__(self, data: Dataset, folder: Path) -> None:
        from methods.ddae.method import Ddae

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            method = Ddae.create(Ddae.recipe("nano", data.spec), data.spec)
        self.device = machine.device()
        self.method: Method = method.requires_grad_(False).eval().to(self.device)
        self.data, self.folder = data, folder

    def fresh(self, cheap: bool = True, **settings: Any) -> Context:
        made = Context(
            self.method,
            self.data,
            Rng(0).at("bench"),
            pictures=self.folder,
            cache=self.folder,
            device=self.device,
            cheap=cheap,
            **settings,
        )
        made.begin("bench grid")
        return made

    def passes(self) -> None:
        """The network on every image at every level, up to the last block that a tap reads."""
        within = self.fresh()
        last = max(self.method.taps(), key=lambda tap: int(tap.layer.removeprefix("out_")))
        block = self.method.network.middle + int(last.layer.removeprefix("out_"))
        levels = sorted({tap.noise for tap in self.method.taps()})
        for part in ("fit", "select"):
            images = within.part(part)
            for start in range(0, min(images.n, context.COMMON.choice_images), CHUNK):
                x = images.chunk(start, CHUNK)
                for level in levels:
                    with torch.no_grad():
                        self.method.read(x, [level], {block}, within.rng.at(part, start))

    def grid(self) -> None:
        self.fresh().choose_tap(0)

    def cells(self) -> None:
        for tap in self.method.taps():
            self._cell(tap)

    def _cell(self, tap: Tap) -> None:
        from evals import linear

        within, config = self.fresh(), linear.Config(seeds=1)
        within._choices[config.taps] = Choice(tap, 1, {})
        linear.evaluate(within, config)


def _whole(data_dir: Path | None) -> dict[str, Any]:
    """A choice over the whole grid and the probe at its winner, on all of train, and what memory they took."""
    from evals import linear
    from harness.bench.evals import found_data

    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(found_data(data_dir), Path(folder))
        before = machine.peak_memory_bytes()
        within = lab.fresh(cheap=False, kept=Path(folder) / "features")
        seconds = timed(lambda: linear.evaluate(within, linear.Config(taps=0, seeds=1)))
    return {
        "peak": machine.peak_memory_bytes(),
        "before": before,
        "images": len(lab.data.train),
        "taps": len(lab.method.taps()),
        "seconds": seconds,
    }


if __name__ == "__main__":
    print(json.dumps(_whole(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
