"""Pre-training: our loop against a reference implementation's own, same network, batch and images.

Each loop lives in a process of its own and they take turns, so they never run at the same time. The reference gets
the number of DataLoader workers that suits it best here, and its pictures ready in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.bench.reference import SOURCES, require, worker_choices
from harness.bench.rounds import Spread, interleave, ratios
from harness.bench.show import line, table
from harness.bench.side import Side, Spec
from harness.errors import HarnessError, unknown
from harness.plugins import load_method

SIZES = ("nano", "ti")
BATCH = 128
IMAGES = 12_800  # an epoch of 100 steps; the round's length is bound by it
SIDE = 32
ROUNDS = 9
ROUND_S = 1.5  # aimed at, for the slower side
WARM = 1  # steps of each round that do not count
PARTS = ("data", "forward", "backward", "optimizer")
COLUMNS = ["loop", "precision", "workers", "parameters", "peak MiB", "img/s", "times reference"]
NOTES = (
    "Medians (lowest to highest round); a ratio is taken round by round.",
    "OpenMP threads wait without spinning on both sides, unless OMP_WAIT_POLICY says otherwise.",
    "The reference's pictures lie decoded in memory; its workers' memory is not counted.",
)
THEIRS, OURS, OURS_FP32 = "reference", "harness", "harness, fp32"


def bench(
    reference: Path | None,
    data_dir: Path | None,
    method: str = "mae",
    sizes: tuple[str, ...] = SIZES,
    rounds: int = ROUNDS,
) -> None:
    """Print images/s of both loops over a method, their ratio, and where the time of a step goes."""
    checkout = require(method, reference)
    _require_sizes(method, sizes)
    with _images(data_dir) as (title, file):
        line(f"images: {title}; batch {BATCH}; {os.cpu_count()} cores; {rounds} interleaved rounds a size")
        for size in sizes:
            speed, parts = _measure(method, size, str(checkout), file, rounds)
            table(f"{method} pre-training, size {size}", COLUMNS, speed)
            table(f"where a step's time goes, size {size}, %", ["loop", "ms/step", *PARTS, "rest"], parts)
    for note in (*NOTES, *SOURCES[method].notes):
        line(note)


def _require_sizes(method: str, sizes: tuple[str, ...]) -> None:
    for size in sizes:
        if size not in load_method(method).sizes:
            raise unknown("size", size, load_method(method).sizes, "for example: --size nano,ti")


@contextmanager
def _images(data_dir: Path | None) -> Iterator[tuple[str, str]]:
    """A title and an .npy file of IMAGES images: CIFAR-10 where it is found, else noise."""
    import numpy as np

    from harness.data import catalog
    from harness.data.dataset import load
    from harness.rng import Rng

    if catalog.locate(catalog.find_entry("cifar10"), data_dir) is not None:
        data = load("cifar10", data_dir)
        title, images = data.title, data.fit.images[:IMAGES].numpy()
    else:
        title = "noise (CIFAR-10 was not found)"
        images = Rng(0).integers("images", 256, (IMAGES, 3, SIDE, SIDE)).numpy().astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, images)
        yield title, str(file)


def _measure(
    method: str, size: str, checkout: str, images: str, rounds: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of both tables for one size."""
    with ExitStack() as stack:
        sides = {
            THEIRS: stack.enter_context(Side(THEIRS, Spec(method, size, images, BATCH, reference=checkout))),
            OURS: stack.enter_context(Side(OURS, Spec(method, size, images, BATCH))),
        }
        if sides[OURS].about["precision"] != "fp32":
            sides[OURS_FP32] = stack.enter_context(Side(OURS_FP32, Spec(method, size, images, BATCH, "fp32")))
        _require_equal(sides)
        steps, workers = _plan(sides[THEIRS])
        line(f"{size}: {steps} steps a round; the reference runs fastest with {workers} DataLoader workers")
        request = {"warm": WARM, "steps": steps, "workers": workers}
        img_s = interleave(
            {n: lambda s=s: steps * BATCH / s.ask(do="run", **request)["wall_s"] for n, s in sides.items()},
            rounds,
        )
        peak = {n: s.ask(do="run", warm=0, steps=1)["peak_bytes"] for n, s in sides.items()}
        profiles = {n: s.ask(do="profile", **request) for n, s in sides.items()}
    speed = [
        [
            name,
            side.about["precision"],
            str(workers) if name == THEIRS else "none",
            f"{side.about['parameters']:,}",
            f"{peak[name] / 2**20:,.0f}",
            Spread.of(img_s[name]).text(),
            ratios(img_s[name], img_s[THEIRS]).text(".2f"),
        ]
        for name, side in sides.items()
    ]
    return speed, [_shares(name, profile, steps) for name, profile in profiles.items()]


def _require_equal(sides: dict[str, Side]) -> None:
    found = {name: side.about["parameters"] for name, side in sides.items()}
    if len(set(found.values())) > 1:
        raise HarnessError(f"the networks differ: {found} trained parameters", "the same network on both sides")


def _plan(reference: Side) -> tuple[int, int]:
    """Steps of a round, and the number of workers with which the reference is fastest."""
    step_s = {}
    for workers in worker_choices():
        trial = reference.ask(do="run", warm=WARM, steps=2, workers=workers)
        steps = max(2, min(20, int(2 / trial["wall_s"])))
        step_s[workers] = reference.ask(do="run", warm=WARM, steps=steps, workers=workers)["wall_s"] / steps
    workers = min(step_s, key=step_s.__getitem__)
    return max(2, min(IMAGES // BATCH - WARM, round(ROUND_S / step_s[workers]))), workers


def _shares(name: str, profile: dict, steps: int) -> list[str]:
    total, parts = profile["wall_s"], profile["parts"]
    shares = [100 * parts.get(part, 0.0) / total for part in PARTS]
    shares.append(100 - sum(shares))
    return [name, f"{1000 * total / steps:.1f}", *(f"{share:.1f}" for share in shares)]
