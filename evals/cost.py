"""What a network costs: its size, its FLOPs, and its pace and memory on the machine that evaluates it.

Counted: parameters and FLOPs (2 per multiply-accumulate; card evaluation, section 8). Measured here, in rounds of
several passes of which the median counts: reading features at the method's first tap, pixels to vectors, and drawing
samples. Of the pre-training the run's own record is read. What cannot be read is left out, and never 0.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.protocol import COMMON

if TYPE_CHECKING:
    from harness.evaluation import Context, Outcome
    from harness.method import Tap
    from harness.records import Number, RunRecord

TITLE = "cost"
PROTOCOL = 1
NEEDS = "features"
FULL_ONLY = True  # no snapshot is cheaper than another
TRAINED_ONLY = True  # nor is the untrained network
READS = ("taps", "features", "sample")

ENERGY_S = 2.0  # of passes behind a reading of energy: NVML renews its counter about ten times a second


@dataclass(frozen=True)
class Config:
    chunk: int = 256  # images a pass
    passes: int = 5  # timed in a round, after one that is not
    samples: int = 64  # drawn at once, with the method's own number of steps
    seeds: int = COMMON.seeds  # rounds

    def __post_init__(self) -> None:
        if min(self.chunk, self.passes, self.samples, self.seeds) < 1:
            raise ValueError("chunk, passes, samples and seeds must be at least 1")


def recipe(size: str) -> Config:
    """Less of everything at the size for laptops, smaller chunks where maps of 256 images would be gigabytes."""
    if size == "nano":
        return Config(passes=3, samples=16)
    return Config(chunk=64) if size in ("l", "xl") else Config()


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None on snapshots."""
    from harness.evaluation import Outcome, can

    if context.cheap:
        return None
    tap = context.method.taps()[0]
    numbers = _network(context, tap) | _features(context, config, tap)
    if can(context.method, "sample"):
        numbers |= _samples(context, config)
    if context.run is not None:
        numbers |= _training(context.run)
    return Outcome(numbers, {"tap": str(tap)})


def _number(values: list[float], title: str, better: str, n: int = 1, note: str | None = None) -> Number:
    """`values`, one for each round, to three significant digits."""
    from harness.evaluation import measured

    mean = statistics.fmean(values)
    digits = max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 0
    return measured(values, title=title, table="cost", better=better, n=n, digits=digits, note=note)


# -- counted ----------------------------------------------------------------------------------------------------------


def _network(context: Context, tap: Tap) -> dict[str, Number]:
    """Nothing for rows that are no network."""
    from harness.train import flops

    method = context.method
    total = sum(p.numel() for p in method.parameters())
    if not total:
        return {}
    flop, read = flops.feature_cost(method, tap, context.rng)
    note = _borrowed(context.run) if context.run else None
    return {
        "parameters": _number([total / 1e6], "parameters, M", "lower", note=note),
        "parameters_features": _number([read / 1e6], "parameters behind features, M", "lower"),
        "gflop_features": _number([flop / 1e9], "features, GFLOP/img", "lower"),
    }


def _training(run: RunRecord) -> dict[str, Number]:
    """What the run's record says of its pre-training, as far as it was measured."""
    found: dict[str, tuple[float | None, str, str]] = {}
    if run.cost:
        flop = run.cost.flop_train_img
        found["gflop_training"] = (flop and flop / 1e9, "training, GFLOP/img", "lower")
        found["img_s_training"] = (run.cost.img_s, "training, img/s", "higher")
        found["mfu"] = (run.cost.mfu and 100 * run.cost.mfu, "training, MFU %", "higher")
    found["device_h"] = (run.spend.device_s / 3600, "pre-training, device-h", "lower")
    notes = {"device_h": _borrowed(run)}
    return {
        key: _number([value], title, better, note=notes.get(key))
        for key, (value, title, better) in found.items()
        if value
    }


def _borrowed(run: RunRecord) -> str | None:
    loans = [f"{loan.what} (its cost elsewhere: {loan.cost or 'not stated'})" for loan in run.borrowed]
    return f"without what it starts from: {'; '.join(loans)}" if loans else None


# -- measured ---------------------------------------------------------------------------------------------------------


def _features(context: Context, config: Config, tap: Tap) -> dict[str, Number]:
    part = context.part("fit")
    size = min(config.chunk, part.n)

    def read(index: int) -> None:
        import torch

        images = part.chunk(index * size % (part.n - size + 1), size)
        with torch.no_grad(), context.autocast():
            context.method.features(images, [tap], context.rng.at("cost", index))[0].float().cpu()

    read(0)
    rounds = [[_seconds(read, r * config.passes + i) for i in range(config.passes)] for r in range(config.seeds)]
    paces = [size / statistics.median(passes) for passes in rounds]
    n = size * config.passes
    found = {"img_s_features": _number(paces, "features, img/s", "higher", n)}
    memory = [grown / 2**20 for _ in range(config.seeds) if (grown := _memory_bytes(context, read)) is not None]
    if memory:
        note = "weights and what a pass adds" + ", as a CPU's allocator does it" * (context.device.type == "cpu")
        found["memory_features"] = _number(memory, f"features, peak MiB at {size} img", "lower", note=note)
    energy = _joules(context, read, size)
    if energy is not None:
        joules, source = energy
        found["joules_features"] = _number([joules], "features, J/img", "lower", note=f"idle draw included: {source}")
    return found


def _samples(context: Context, config: Config) -> dict[str, Number]:
    def draw(index: int) -> None:
        import torch

        with torch.no_grad(), context.autocast():
            context.method.sample(config.samples, context.rng.at("cost", "sample", index), steps=None).cpu()

    with context.ledger.account("sample"):
        draw(0)
        paces = [config.samples / _seconds(draw, 1 + r) for r in range(config.seeds)]
    return {"img_s_samples": _number(paces, "samples, img/s", "higher", config.samples)}


def _seconds(work: Callable[[int], None], index: int) -> float:
    """Of work that ends with its result on the CPU, so that a GPU's queue is empty then."""
    begin = time.perf_counter()
    work(index)
    return time.perf_counter() - begin


def _memory_bytes(context: Context, read: Callable[[int], None]) -> int | None:
    """The network's tensors, and what a pass adds at most to what is there; None where the system does not tell.

    So other evals' features, the data set and the libraries do not count.
    """
    from harness import machine

    try:
        if not machine.forget_peak_memory():
            return None
        before = machine.memory_bytes()
    except OSError:
        return None
    read(0)
    added = max(0, machine.peak_memory_bytes() - before)
    method = context.method
    return added + sum(t.numel() * t.element_size() for t in [*method.parameters(), *method.buffers()])


def _joules(context: Context, read: Callable[[int], None], size: int) -> tuple[float, str] | None:
    """Joules an image, and the counters they are from; None where nothing can be read."""
    from harness.energy import EnergyMeter, counters

    meter = EnergyMeter(counters(context.device))
    if meter.source is None:
        return None
    meter.start()
    until, passes = time.perf_counter() + ENERGY_S, 0
    while not passes or time.perf_counter() < until:
        read(passes)
        passes += 1
    joules, source = meter.joules(), meter.source
    return None if joules is None or source is None else (joules / (passes * size), source)
