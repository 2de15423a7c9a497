"""Class-conditional generation: a short labelled fine-tune of the pre-trained weights, then samples of every class.

The fine-tune is evaluation: it has a budget of its own, the same for every method, is charged to `evaluate`, and learns
from all of train, as the final linear probe does, since nothing is chosen here. Each method trains by its own recipe
(`Method.labelled`); one that saw labels in pre-training is drawn from as it is. Classes take turns, so that every set
of samples is balanced (card umd, section 6). Two numbers for each guidance scale, means over several sets of samples
from one fine-tune: the Frechet distance to all of train, and how many samples the stand-in classifier takes for what
they should be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.budget import parse_budget
from harness.protocol import COMMON

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from evals._extractors import Extractor, Seen
    from evals._frechet import Statistics
    from evals._samples import Drawn
    from harness.evaluation import Context, Outcome
    from harness.method import Method
    from harness.records import Number

TITLE = "class-conditional generation"
PROTOCOL = 2  # several sets of samples
NEEDS = "labelled"

# Shapes: n samples, K classes, C channels, H height, W width.


@dataclass(frozen=True)
class Config:
    budget: str = "50epoch"  # of the fine-tune, in any unit of --budget
    batch_size: int = 256
    guidance: tuple[float, ...] = (1.0, 1.5)  # 1 is plain conditional; any other costs twice the network passes
    samples: int = 10_000  # in each set
    seeds: int = COMMON.seeds  # sets of samples, of one fine-tune
    steps: int | None = None  # sampling steps; None is each method's own number
    chunk: int = 500  # samples drawn at once; part of the protocol, since every chunk has its own key
    inception: str | None = None  # path of torch-fidelity's Inception weights
    columns: int = 8  # of the picture, a class a row
    rows: int = 10  # of the picture at most

    def __post_init__(self) -> None:
        # One spelling, so that "50 epoch" and "50epoch" are one setting.
        object.__setattr__(self, "budget", str(parse_budget(self.budget)))
        if self.samples < 100:
            raise ValueError("a distance from fewer than 100 samples says nothing")
        if min(self.batch_size, self.seeds, self.chunk, self.columns, self.rows) < 1:
            raise ValueError("batch_size, seeds, chunk, columns and rows must be positive")
        if not self.guidance or len({f"{scale:g}" for scale in self.guidance}) < len(self.guidance):
            raise ValueError("guidance is one scale or several different ones")


def recipe(size: str) -> Config:
    """UMD's 50 epochs; less for small networks, which a laptop has to train: nano takes 400 steps."""
    if size == "nano":
        return Config(budget="51200img", batch_size=128, samples=320, chunk=160)
    return Config(budget="10epoch") if size == "ti" else Config()


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None in a quick context: a distance at fewer samples is another column, and says little."""
    from evals import _extractors, _frechet, _samples, _yardstick
    from harness.evaluation import Outcome

    if context.cheap:
        return None
    with context.ledger.outside():  # made once and used by every cell: no cell's own cost
        [extractor] = _yardstick.extractors(context, [_yardstick.AUTO], config.inception)
        judge = extractor
        if extractor.is_inception:
            judge = _extractors.stand_in(context.data, context.cache, context.device)
        real = _yardstick.reference(context, extractor, "train").all
    method, facts, notes = _with_labels(context, config)
    facts |= extractor.facts | {"judge": judge.facts, "sampler": method.sampler(config.steps)}
    notes.append(f"drawn by: {facts['sampler']}")
    numbers: dict[str, Number] = {}
    pictures = []
    for scale in config.guidance:
        sets, rights = zip(
            *(_draw(context, config, method, scale, extractor, judge, i) for i in range(config.seeds)), strict=True
        )
        drawn = [_frechet.statistics(one.seen[0].features) for one in sets]
        numbers |= _numbers(config, scale, extractor, judge, drawn, real, rights)
        facts[f"at guidance {scale:g}"] = {
            "distinct": [one.distinct for one in sets],
            "right_by_class": _by_class(context, rights),
        }
        pictures.append(f"conditional-{scale:g}.png")
        shown, columns = _by_rows(sets[0].first, context.data.spec.classes, config)
        _samples.write_picture(context.pictures / pictures[-1], shown, columns)
    return Outcome(numbers, facts, pictures=pictures, notes=notes)


def require(config: Config, data_dir: Path | None) -> None:
    """Raise HarnessError where a file of weights that is named is not here."""
    from evals import _weights

    _weights.find([_weights.AUTO], config.inception, data_dir)


def _with_labels(context: Context, config: Config) -> tuple[Method, dict[str, Any], list[str]]:
    """The method that draws classes, what making it took, and how a table says that."""
    import torch

    from harness.config import plain
    from harness.train.finetune import Finetune

    if context.method.sees_labels:
        return context.method, {"finetune": None}, ["drawn as pre-trained: it saw labels there, and was not fine-tuned"]
    rng = context.rng.at("conditional")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.number("init"))
        method = context.method.labelled()
    data, budget = context.data, parse_budget(config.budget)
    work = Finetune(method, data.train, data.mirror, budget, config.batch_size, rng)
    spend = work.run()
    about = {
        "budget": str(budget),
        "spend": {name: round(value, 4) for name, value in spend.model_dump().items()},
        "flop_img": work.flop_per_image,
        "precision": work.precision,
        "loss": round(work.loss, 6),
        "optim": plain(method.optim(config.batch_size)),
        "augment": plain(method.augment()),
        "method": plain(method.config),
    }
    said = f"after a labelled fine-tune of {budget} on all of train: {spend.img:,.0f} images, {spend.flop:.2e} FLOP"
    return method, {"finetune": about}, [said]


def _draw(
    context: Context, config: Config, method: Method, scale: float, extractor: Extractor, judge: Extractor, number: int
) -> tuple[Drawn, Tensor]:
    """The set `number` of samples of every class in turn, and whether the judge takes each for its class, bool [n].

    Every scale starts from the same noise.
    """
    import torch

    from evals import _samples
    from harness.evaluation import Context

    within = Context(
        method,
        context.data,
        context.rng.at("conditional"),
        pictures=context.pictures,
        cache=context.cache,
        device=context.device,
        precision=context.precision,
        ledger=context.ledger,
    ).repeat(number)
    classes = context.data.spec.classes
    labels, guesses = torch.arange(config.samples) % classes, []

    def look(images: Tensor) -> Seen:
        guesses.append(judge.guess(images))
        return extractor.look(images)

    shown = config.columns * classes
    drawn = _samples.draw(
        within, config.samples, config.chunk, config.steps, shown, [look], labels=labels, guidance=scale
    )  # fmt: skip
    return drawn, torch.cat(guesses) == labels


def _numbers(
    config: Config,
    scale: float,
    extractor: Extractor,
    judge: Extractor,
    drawn: Sequence[Statistics],
    real: Statistics,
    rights: Sequence[Tensor],
) -> dict[str, Number]:
    from evals import _frechet
    from harness.evaluation import measured

    n, word = config.samples, "FID" if extractor.is_inception else "FD"
    note = f"classes in turn, guidance {scale:g}"
    known = f"the classifier itself: {judge.facts['extractor_train_top1']:.1f} % on real train images"
    return {
        f"frechet_{scale:g}": measured(
            [_frechet.frechet(one, real) for one in drawn],
            title=f"conditional {word} ({extractor.label}, n={n}, train, guidance {scale:g})",
            table="generation",
            better="lower",
            n=n,
            digits=2,
            note=f"{note}; reference: {real.n} real images of the train part",
        ),
        f"right_{scale:g}": measured(
            [100.0 * right.double().mean().item() for right in rights],
            title=f"right class % ({judge.label}, n={n}, guidance {scale:g})",
            table="generation",
            better="higher",
            n=n,
            note=f"{note}; {known}",
        ),
    }


def _by_class(context: Context, rights: Sequence[Tensor]) -> list[float]:
    """The share of right samples of each class, over all sets, in %."""
    import torch

    classes, right = context.data.spec.classes, torch.stack([*rights]).double()
    return [round(100.0 * right[:, k::classes].mean().item(), 1) for k in range(min(classes, right.shape[1]))]


def _by_rows(images: Tensor, classes: int, config: Config) -> tuple[Tensor, int]:
    """The first samples uint8 [n, C, H, W] a class a row, [rows * columns, C, H, W], and how many columns there are."""
    import torch

    columns = max(1, min(config.columns, len(images) // classes))
    rows = min(config.rows, classes, len(images))
    return torch.cat([images[k::classes][:columns] for k in range(rows)]), columns
