"""Generation: how far a method's samples are from the real training images (card evaluation, section 7).

The headline is the Frechet distance to the whole training set, the second number the kernel distance, which has no
bias in the number of samples. With Inception weights from a path they are FID and KID; without, the network that
stands in is named in the column, and the letters FID are not used. Columns name network, sample count and reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals._frechet import Extractor, Statistics
    from harness.evaluation import Context, Outcome
    from harness.records import Number

TITLE = "generation"
PROTOCOL = 1
NEEDS = "sample"

PICTURE = "samples.png"


@dataclass(frozen=True)
class Config:
    samples: int = 50_000
    steps: int | None = None  # sampling steps; None is each method's own number
    chunk: int = 500  # samples drawn at once; part of the protocol, since every chunk has its own key
    inception: str | None = None  # path of torch-fidelity's Inception weights
    references: tuple[str, ...] = ("train",)  # also "test", for further columns
    kernel_subsets: int = 100
    kernel_size: int = 1000
    grid: int = 8  # samples along one side of the picture

    def __post_init__(self) -> None:
        if self.samples < 100:
            raise ValueError("a distance from fewer than 100 samples says nothing")
        if self.chunk < 1 or self.kernel_subsets < 1 or self.kernel_size < 2 or self.grid < 1:
            raise ValueError("chunk, kernel_subsets, kernel_size and grid must be positive")
        if not self.references or not set(self.references) <= {"train", "test"}:
            raise ValueError("references are 'train', 'test', or both")


def recipe(size: str) -> Config:
    """50,000 samples, as the field reports; 1,000 at the size for laptops, where sampling would take hours."""
    return Config(samples=1000, chunk=250, kernel_subsets=20) if size == "nano" else Config()


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None in a quick context: a distance at fewer samples is another column, and says little."""
    from evals import _frechet, _samples, _yardstick
    from harness.evaluation import Outcome

    if context.cheap:
        return None
    n = config.samples
    extractor = _yardstick.extractor(context, config.inception)
    references = {name: _yardstick.reference(context, extractor, name) for name in config.references}
    before = context.ledger.snapshot()["sample"]
    shown = config.grid**2
    samples = _samples.draw(
        context, n, config.chunk, config.steps, shown, lambda images: _frechet.features(extractor, images)
    )
    sample_s = context.ledger.snapshot()["sample"] - before
    drawn = _frechet.statistics(samples.features)
    numbers: dict[str, Number] = {}
    facts: dict[str, Any] = extractor.facts | {
        "steps": config.steps or "the method's own",
        "samples_s": round(n / max(sample_s, 1e-9), 2),
        "distinct": samples.distinct,
    }
    for name, real in references.items():
        found, spread = _distances(config, extractor, name, drawn, real, context.rng.number("kernel"))
        numbers |= found
        facts[f"kernel_{name}_spread"] = spread
    _samples.write_picture(context.pictures / PICTURE, samples.first, config.grid)
    return Outcome(numbers, facts, pictures=[PICTURE], notes=_notes(drawn, samples.distinct))


def _distances(
    config: Config, extractor: Extractor, name: str, drawn: Statistics, real: Statistics, seed: int
) -> tuple[dict[str, Number], float]:
    """The two distances to the reference `name`, as columns that say what they are; the kernel distance's spread."""
    from evals import _frechet
    from harness.records import Number

    frechet = _frechet.frechet(drawn, real)
    kernel, spread = _frechet.kernel_distance(
        drawn.features, real.features, config.kernel_subsets, config.kernel_size, seed
    )
    words = ("FID", "KID x1000") if extractor.is_inception else ("FD", "KD x1000")
    note = f"reference: {real.n} real images of the {name} part"
    numbers = {
        f"{key}_{name}": Number(
            value=value,
            title=f"{word} ({extractor.label}, n={drawn.n}, {name})",
            table="generation",
            better="lower",
            n=drawn.n,
            digits=2,
            note=note,
        )
        for key, word, value in zip(("frechet", "kernel"), words, (frechet, 1e3 * kernel), strict=True)
    }
    return numbers, round(1e3 * spread, 4)


def _notes(drawn: Statistics, distinct: int) -> list[str]:
    notes = []
    if distinct < drawn.n:
        notes.append(f"only {distinct} of {drawn.n} samples are distinct images")
    if drawn.n <= len(drawn.mean):
        notes.append(
            f"{drawn.n} samples for {len(drawn.mean)} features: the covariance is singular, the distance's floor high"
        )
    return notes
