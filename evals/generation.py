"""Generation: how far a method's samples are from the real training images (card evaluation, section 7).

The headline is the Frechet distance to the whole training set; the kernel distance has no bias in the number of
samples; precision and recall part quality from coverage; the score needs no reference; copies are samples nearer to
training images than images do that are none. All are means over several sets of samples from one model. With Inception
weights from a path they have their usual names; without, the network that stands in is named in the column, and the
letters FID and IS are not used. Columns name network, sample count and reference; each cell's note names the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.protocol import COMMON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from evals._extractors import Extractor, Seen
    from evals._neighbours import Held
    from evals._samples import Drawn
    from evals._yardstick import Real
    from harness.evaluation import Context, Outcome
    from harness.records import Number

TITLE = "generation"
PROTOCOL = 2  # several sets of samples; score, precision, recall and copies beside the distances
NEEDS = "sample"
READS = ("sample", "sampler", "reconstruct")

PICTURE, PANELS, NEIGHBOURS = "samples.png", "reconstruction.png", "neighbours.png"


@dataclass(frozen=True)
class Config:
    samples: int = 50_000  # in each set
    seeds: int = COMMON.seeds  # sets of samples, of one model; numbers are their means
    steps: int | None = None  # sampling steps; None is each method's own number
    chunk: int = 500  # samples drawn at once; part of the protocol, since every chunk has its own key
    inception: str | None = None  # path of torch-fidelity's Inception weights
    extractors: tuple[str, ...] = ("auto",)  # auto, inception, cnn64, a file, or a name under weights/ of the data
    references: tuple[str, ...] = ("train",)  # also "test", for further columns
    kernel_subsets: int = 100
    kernel_size: int = 1000
    score_splits: int = 10
    grid: int = 8  # samples along one side of the picture
    neighbours: int = 4  # of each sample in the picture of copies

    def __post_init__(self) -> None:
        if self.samples < 100:
            raise ValueError("a distance from fewer than 100 samples says nothing")
        least = (self.chunk, self.seeds, self.kernel_subsets, self.score_splits, self.grid, self.neighbours)
        if min(least) < 1 or self.kernel_size < 2:
            raise ValueError("chunk, seeds, kernel_*, score_splits, grid and neighbours must be positive")
        if self.kernel_size > self.samples or 10 * self.score_splits > self.samples:
            raise ValueError("samples must be at least kernel_size, and ten for each of score_splits")
        if not self.references or not set(self.references) <= {"train", "test"}:
            raise ValueError("references are 'train', 'test', or both")
        if not self.extractors or len(set(self.extractors)) < len(self.extractors):
            raise ValueError("extractors is one name or several different ones")


def recipe(size: str) -> Config:
    """50,000 samples, as the field reports; three sets of 320 at the size for laptops, where sampling takes hours."""
    if size == "nano":
        return Config(samples=320, chunk=160, kernel_subsets=20, kernel_size=160, score_splits=1)
    return Config()


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None in a quick context: a distance at fewer samples is another column, and says little."""
    from evals import _canary, _neighbours, _samples, _yardstick
    from harness.evaluation import Outcome

    if context.cheap:
        return None
    with context.ledger.outside() as shared:  # made once and used by every cell: no cell's own cost
        extractors = _yardstick.extractors(context, config.extractors, config.inception)
        real = {(e.label, "train"): _yardstick.reference(context, e, "train") for e in extractors}
    if "test" in config.references:
        real |= {(e.label, "test"): _yardstick.reference(context, e, "test") for e in extractors}
    held = {e.label: _neighbours.held(real[e.label, "train"], context.data.fit_n) for e in extractors}
    _require_enough(config, real)
    before = context.ledger.snapshot()["sample"]
    looks = [extractor.look for extractor in extractors]
    sets = [
        _samples.draw(context.repeat(i), config.samples, config.chunk, config.steps, config.grid**2, looks)
        for i in range(config.seeds)
    ]
    sample_s = context.ledger.snapshot()["sample"] - before
    numbers: dict[str, Number] = {}
    sampler = context.method.sampler(config.steps)
    facts: dict[str, Any] = {
        "sampler": sampler,
        "distinct": [one.distinct for one in sets],
        "samples_s": round(config.samples * config.seeds / max(sample_s, 1e-9), 2) if sampler else None,
        "shared_s": round(shared.seconds, 1),
        "remarks": [],
    }
    notes = _notes(sampler, config, sets)
    for i, extractor in enumerate(extractors):
        train = real[extractor.label, "train"]
        references = {name: real[extractor.label, name] for name in config.references}
        found, about = _numbers(
            context, config, extractor, [s.seen[i] for s in sets], references, held[extractor.label]
        )
        checks = {"canary": _canary.canary(extractor, train, config.samples, "train")}
        if not sampler:  # once, beside the reference rows: the test part is opened for it
            checks["known"] = _canary.known(context, extractor, train)
        checks = {name: check for name, check in checks.items() if check}
        facts["remarks"] += [check.said for check in checks.values()]
        notes += [check.alarm for check in checks.values() if check.alarm]
        # The keys of the first network stay plain; those of further ones begin with its name.
        numbers |= {key if i == 0 else f"{extractor.facts['extractor']}_{key}": value for key, value in found.items()}
        about |= extractor.facts | {name: check.facts for name, check in checks.items()}
        facts |= about if i == 0 else {extractor.facts["extractor"]: about}
        if i == 0:
            pictures, filled = _pictures(context, config, sets[0], extractor, held[extractor.label])
            facts |= filled
            if knows := filled.get("reconstruction", {}).get("knows"):
                notes.append(f"{PANELS} is drawn knowing {knows}")
    return Outcome(numbers, facts, pictures=pictures, notes=notes)


def require(config: Config, data_dir: Path | None) -> None:
    """Raise HarnessError where a file of weights that is named is not here."""
    from evals import _weights

    _weights.find(config.extractors, config.inception, data_dir)


def _require_enough(config: Config, real: Mapping[Any, Real]) -> None:
    """Raise HarnessError, before samples are drawn, where there are too few real images for a metric."""
    from harness.errors import HarnessError

    least = min(len(one.features) for one in real.values())
    if config.kernel_size > least:
        raise HarnessError(
            f"generation.kernel_size is {config.kernel_size}, and there are {least} real images",
            "a subset of no more images than there are",
            f"generation.kernel_size={least}, the same for every method",
        )


def _numbers(
    context: Context,
    config: Config,
    extractor: Extractor,
    seen: Sequence[Seen],
    references: dict[str, Real],
    held: Held,
) -> tuple[dict[str, Number], dict[str, Any]]:
    """All columns of one network, from what it saw of each set of samples, and facts that go with them."""
    from evals import _frechet, _neighbours
    from harness.evaluation import measured

    n, label, facts = config.samples, extractor.label, {}
    values: dict[str, tuple] = {}  # word, better, images, of which part, note, one value for each set
    for name, real in references.items():
        found, spread = _distances(config, extractor, seen, real, context.rng.number("kernel"))
        facts[f"kernel_{name}_spread"] = spread
        note = f"reference: {real.all.n} real images of the {name} part"
        near = min(n, len(real.features), _frechet.MOST)
        for key, (word, better, numbers) in found.items():
            count = near if key in ("precision", "recall") else n
            blur = (
                "; at small counts blurred samples have a high one: read it with recall" if key == "precision" else ""
            )
            values[f"{key}_{name}"] = (word, better, count, name, note + blur, numbers)
    word = "IS" if extractor.is_inception else "class score"
    note = f"the inception score's formula on this network's classes, {config.score_splits} split(s) of each set"
    scores = [_frechet.score(one.logits, config.score_splits) for one in seen]
    values["score"] = (word, "higher", n, "", note, scores)
    apart = [_neighbours.copies(one.features, held) for one in seen]
    facts["copies_median_ratio"] = [round(ratio, 4) for _, ratio in apart]
    note = (
        f"samples nearer to one of {len(held.fit)} fit images than all but {_neighbours.QUANTILE:.0%} of held-out "
        "training images; more than that is copying, less is being unlike any real image"
    )
    values["copies"] = ("copies %", "lower", min(n, _neighbours.MOST), "fit", note, [share for share, _ in apart])
    return {
        key: measured(
            numbers,
            title=f"{word} ({label}, n={count}{f', {of}' if of else ''})",
            table="generation",
            better=better,
            n=count,
            digits=2,
            note=note,
        )
        for key, (word, better, count, of, note, numbers) in values.items()
    }, facts


def _distances(
    config: Config, extractor: Extractor, seen: Sequence[Seen], real: Real, seed: int
) -> tuple[dict[str, tuple[str, str, list[float]]], float]:
    """Word, direction and a value for each set of samples, of every distance to `real`; the kernel distance's spread.

    The spread is over subsets, the mean of it over sets.
    """
    from evals import _frechet

    kept = real.features[: _frechet.MOST]
    kernel = [
        _frechet.kernel_distance(one.features, kept, config.kernel_subsets, config.kernel_size, seed) for one in seen
    ]
    reach = [_frechet.precision_recall(one.features, kept) for one in seen]
    frechet = [_frechet.frechet(_frechet.statistics(one.features), real.all) for one in seen]
    words = ("FID", "KID x1000") if extractor.is_inception else ("FD", "KD x1000")
    found = {
        "frechet": (words[0], "lower", frechet),
        "kernel": (words[1], "lower", [1e3 * mean for mean, _ in kernel]),
        "precision": ("precision %", "higher", [100 * precision for precision, _ in reach]),
        "recall": ("recall %", "higher", [100 * recall for _, recall in reach]),
    }
    if real.spatial is not None:
        found["spatial"] = (
            "sFID",
            "lower",
            [_frechet.frechet(_frechet.statistics(one.spatial), real.spatial) for one in seen],
        )
    return found, round(1e3 * sum(spread for _, spread in kernel) / len(kernel), 4)


def _notes(sampler: str, config: Config, sets: list[Drawn]) -> list[str]:
    notes = [f"drawn by: {sampler}"] if sampler else []
    fewest = min(one.distinct for one in sets)
    if fewest < config.samples:
        notes.append(f"only {fewest} of {config.samples} samples are distinct images")
    width = sets[0].seen[0].features.shape[1]
    if config.samples <= width:
        notes.append(
            f"{config.samples} samples for {width} features: the covariance is singular, the distance's floor high"
        )
    return notes


def _pictures(
    context: Context, config: Config, drawn: Drawn, extractor: Extractor, held: Held
) -> tuple[list[str], dict[str, Any]]:
    """The first samples; beside training images; and, of masked methods, what they fill in."""
    from evals import _neighbours, _panels, _samples
    from harness.evaluation import can

    _samples.write_picture(context.pictures / PICTURE, drawn.first, config.grid)
    beside = _neighbours.picture(drawn.first[:16], extractor, held, context.data, config.neighbours)
    _samples.write_picture(context.pictures / NEIGHBOURS, beside, 2 * config.neighbours + 3, least_px=32, gap=1)
    pictures, facts = [PICTURE, NEIGHBOURS], {}
    if can(context.method, "reconstruct"):
        rows, about = _panels.panels(context, config.grid)
        _samples.write_picture(context.pictures / PANELS, rows, config.grid, gap=1)
        pictures, facts = [*pictures, PANELS], {"reconstruction": about}
    return pictures, facts
