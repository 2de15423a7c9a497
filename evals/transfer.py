"""Transfer: the same checkpoint on other data sets, each read in the ways that the harness reads the first.

A way is an eval that gives accuracies. Images are resized once to the size that the network was pre-trained at, by
the same interpolation for all methods, and every number is the metric that the data set's papers report: top-1, or
the mean over classes (card evaluation, section 5). Tap and settings are chosen anew on held-out train images of each
data set. All data sets are read before any work, so that one that is not here costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evals import finetune, linear
from evals.finetune import Config as Finetune
from evals.linear import Config as Linear

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.evaluation import Context, Outcome
    from harness.records import Number

TITLE = "transfer to other data sets"
PROTOCOL = 1 + linear.PROTOCOL + finetune.PROTOCOL  # its own, and its ways': what raises one raises the sum
NEEDS = "features"
FULL_ONLY = True
READS = finetune.READS

SUITE = ("cifar100", "stl10", "svhn", "flowers102", "pets", "dtd", "eurosat")  # the card's, through torchvision
SMALL = ("flowers89", "tiny-imagenet100")
WAYS = ("linear", "finetune")
SAID = {"top1": "top-1", "mean-per-class": "mean per class"}
ENDS = {"top1": "_top1", "mean-per-class": "_mean_class"}  # of a way's numbers (evals/_accuracy.py)


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = SUITE  # names of data sets, or folder:PATH
    ways: tuple[str, ...] = ("linear",)
    linear: Linear = field(default_factory=Linear)  # the way's own settings, with its seeds
    finetune: Finetune = field(default_factory=Finetune)

    def __post_init__(self) -> None:
        if not self.data or len(set(self.data)) < len(self.data):
            raise ValueError("data must name at least one data set, and each once")
        if not self.ways or not set(self.ways) <= set(WAYS) or len(set(self.ways)) < len(self.ways):
            raise ValueError(f"ways must be some of {', '.join(WAYS)}, each once")


def recipe(size: str) -> Config:
    return Config(data=SMALL if size == "nano" else SUITE, linear=linear.recipe(size), finetune=finetune.recipe(size))


def require(config: Config, data_dir: Path | None) -> None:
    """Raise HarnessError, which says how to get it, where a data set is not here."""
    from harness.data import catalog

    for name in config.data:
        catalog.resolve(name, data_dir)


def revisions(config: Config, data_dir: Path | None) -> dict[str, str]:
    """Of each data set, by name."""
    from harness.resolve import dataset

    return {data.spec.name: data.revision for data in (dataset(name, data_dir) for name in config.data)}


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None on snapshots. Raises HarnessError before any work for a data set that is not here."""
    from harness.evaluation import Outcome

    if context.cheap:
        return None
    places = _places(context, config.data)
    numbers: dict[str, Number] = {}
    chosen: dict[str, Any] = {}
    trials = 0
    for way in config.ways:
        found = {name: outcome for name, place in places.items() if (outcome := _read(way, place, config)) is not None}
        picked = {name: _number(way, places[name], outcome) for name, outcome in found.items()}
        numbers |= {f"{way}_{name}": number for name, number in picked.items()}
        if len(picked) > 1:
            numbers[f"{way}_mean"] = _mean(way, picked)
        chosen[way] = {name: outcome.chosen for name, outcome in found.items()}
        trials += sum(outcome.trials for outcome in found.values())
    taps = {f"{about['tap']} on {name}": None for of_way in chosen.values() for name, about in of_way.items()}
    return Outcome(numbers, {"tap": ", ".join(taps)} | chosen, trials)


def _places(context: Context, data: Sequence[str]) -> Mapping[str, Context]:
    """The context of each data set, by the name of what was found."""
    from harness.errors import HarnessError

    places: dict[str, Context] = {}
    for asked in data:
        place = context.on(asked)
        if place.data.spec.name in places:
            raise HarnessError(
                f"transfer.data names {place.data.spec.name} twice: {', '.join(data)}",
                "different data sets",
                f"leave {asked!r} out",
            )
        places[place.data.spec.name] = place
    return places


def _read(way: str, place: Context, config: Config) -> Outcome | None:
    from harness.plugins import load_eval

    # Each way makes its own choices before its own look at the test part, which tells the next way nothing.
    return load_eval(way).evaluate(place.again(), getattr(config, way))


def _number(way: str, place: Context, outcome: Outcome) -> Number:
    """The way's number in the data set's metric, under a title of its own; what the way said of it is its note."""
    from harness.errors import HarnessError

    data = place.data
    fitting = [number for key, number in outcome.numbers.items() if key.endswith(ENDS[data.metric])]
    if len(fitting) != 1:
        raise HarnessError(
            f"{way} on {data.spec.name} gave {', '.join(outcome.numbers) or 'nothing'}",
            f"one number whose name ends in {ENDS[data.metric]!r}, the metric of {data.spec.name}",
        )
    said = [data.title, fitting[0].note, *place.method.remarks(), *outcome.notes]
    return fitting[0].model_copy(
        update={
            "title": f"{way} on {data.spec.name}, {SAID[data.metric]} %",
            "table": "transfer",
            "note": "; ".join(filter(None, said)),
        }
    )


def _mean(way: str, picked: Mapping[str, Number]) -> Number:
    """Over the data sets, seed by seed; one in which nothing was random counts with its one value for every seed."""
    from harness.evaluation import measured

    seeds = max(len(number.values) for number in picked.values())
    rows = [number.values * (seeds if len(number.values) == 1 else 1) for number in picked.values()]
    return measured(
        [fmean(values) for values in zip(*rows, strict=True)],
        title=f"{way}, mean of {len(picked)} data sets %",
        table="transfer",
        better="higher",
        n=sum(number.n for number in picked.values()),
        note=f"of {', '.join(picked)}, each in its own metric and counted alike",
    )
