"""The grid of taps x noise levels: against bare passes of the network, against one run a cell, and its peak memory.

DDAE's network, whose protocol the grid is: every decoder block at three levels. Speed does not depend on the weights,
which are as initialised. A run of a cell is the eval `linear` at that tap, with all it does on all the images it wants;
so the images are few, in the proportions of CIFAR-10. `python -m harness.bench.grid` is the process whose memory is
measured, on all images.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
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

SUBSET = {"fit": 1_800, "select": 200, "test": 400}  # a twenty-fifth of CIFAR-10
CHOICE = 400  # and of the images of fit that a choice is made with
ROUNDS = 3
PASSES, GRID, CELLS = "one pass a noise level, nothing read", "the grid, streaming ridge", "one run a cell"


def bench(data_dir: Path | None, rounds: int = ROUNDS, memory: bool = True) -> None:
    """Print seconds and ratios of interleaved rounds, and the peak memory of a whole evaluation over the grid."""
    from harness.bench.evals import found_data

    data = found_data(data_dir)
    few = replace(COMMON, choice_images=CHOICE)
    with (
        tempfile.TemporaryDirectory() as folder,
        patched(context, "CHEAP", SUBSET),
        patched(context, "COMMON", few),
    ):
        lab = Lab(data, Path(folder))
        taps = lab.method.taps()
        levels = {tap.noise for tap in taps}
        counts = ", ".join(f"{lab.fresh().part(part).n} {part}" for part in SUBSET)
        line(
            f"{data.title}: {counts} images, {CHOICE} of fit for the choice; DDAE nano, {len(taps)} taps = "
            f"{len(taps) // len(levels)} blocks x {len(levels)} levels; {rounds} interleaved rounds"
        )
        sides = {PASSES: lab.passes, GRID: lab.grid, CELLS: lab.cells}
        seconds = interleave({name: (lambda work=work: timed(work)) for name, work in sides.items()}, rounds)
    rows = [
        [
            name,
            Spread.of(found).text(".2f"),
            ratios(found, seconds[PASSES]).text(".3f"),
            ratios(found, seconds[GRID]).text(".2f"),
        ]
        for name, found in seconds.items()
    ]
    notes = [
        "Medians (lowest to highest round); ratios round by round.",
        "A run of a cell extracts its tap on fit, select and test, chooses one of ten penalties, refits and scores.",
    ]
    table("grid of taps", ["what", "seconds", "to bare passes", "to the grid"], rows, notes)
    if memory:
        _memory(data_dir)


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
            for start in range(0, min(images.n, CHOICE), CHUNK):
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
