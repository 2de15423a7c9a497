"""Few labels: 1 % and 10 % of train's, drawn evenly over the classes (card evaluation, section 4).

Each of `seeds` draws is the same for every method, and the smaller share's lies in the larger's. The ways are two, and
named in the column: "probe" is the linear probe's logistic regression on frozen features, "finetune" the fine-tune's
recipe at a length of its own. No more labels are used than the column says: tap (by ridge), C and rate are chosen anew
within each draw, on a fifth of it held out evenly, and the last training has all of the draw. With one image a class
nothing can be held out, and the method's first tap, C = 1 and the middle rate are taken. The select part is not
used. At nano fine-tuning is left out, since a column takes as long as the fine-tune of all labels (`semi.ways`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from evals import _recipe, finetune
from evals._recipe import Recipe
from harness.protocol import COMMON

if TYPE_CHECKING:
    from torch import Tensor

    from evals._tune import Task
    from harness.data.dataset import Part
    from harness.evaluation import Choice, Context, Outcome
    from harness.method import Tap
    from harness.records import Number

# Shapes: n drawn images, S of each of K classes, D feature width.

TITLE = "few labels"
PROTOCOL = 1 + finetune.PROTOCOL  # its own, and that of the training it shares
NEEDS = "features"
FULL_ONLY = True
READS = ("taps", "features", "param_groups", "preparation")  # methods equal in these would find the same

WAYS = {"probe": "probe", "finetune": "fine-tune"}
HELD_OUT = 5  # one image in so many of each class, for choices


@dataclass(frozen=True)
class Config:
    ways: tuple[str, ...] = ("probe", "finetune")
    shares: tuple[float, ...] = (0.01, 0.1)  # of train's labels; at least one a class
    recipe: Recipe = replace(Recipe(), length="200000img", batch=256)  # noqa: RUF009 (frozen)
    taps: int = COMMON.candidates  # candidates, the method's own first; 0 is all of them
    c_values: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)  # the linear probe's
    seeds: int = COMMON.seeds  # draws

    def __post_init__(self) -> None:
        if not self.ways or len(set(self.ways)) < len(self.ways) or not set(self.ways) <= set(WAYS):
            raise ValueError(f"ways are one or both of {', '.join(WAYS)}")
        if not self.shares or list(self.shares) != sorted(set(self.shares)) or self.shares[0] <= 0:
            raise ValueError("shares are different, above 0 and rising")
        if self.shares[-1] > 1 or self.taps < 0 or self.seeds < 1:
            raise ValueError("a share is at most 1; taps are at least 0, seeds at least 1")
        if not self.c_values or min(self.c_values) <= 0:
            raise ValueError("c_values are above 0")


def recipe(size: str) -> Config:
    short = _recipe.for_size(size)
    if size == "nano":
        return Config(("probe",), recipe=replace(short, length="4000img"))
    if size == "ti":
        return Config(recipe=replace(short, length="20000img", batch=64))
    return Config(recipe=replace(short, length="200000img", batch=256))


@dataclass(frozen=True)
class Draw:
    """One draw of labelled images, what was chosen within it, and how to get at its images."""

    share: float
    seed: int
    part: Part  # n = S x K images: one of each class, another of each class, ...
    held: int  # how many of them, the last, choices were made on
    features: dict[Tap, Tensor]  # [n, D]
    choice: Choice
    chosen: dict[str, tuple[float, dict[str, float]]] = field(default_factory=dict)  # by way: the value, all scores


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None on snapshots, and where fine-tuning alone is asked for of features that rest on no parameter."""
    from evals.finetune import task_of
    from harness.evaluation import Outcome

    if context.cheap:
        return None
    first = context.method.taps()[0]
    tasks = {first: task_of(context, first, config.recipe)} if "finetune" in config.ways else {}
    ways = [way for way in config.ways if way == "probe" or tasks[first] is not None]
    if not ways:
        return None
    with context.choosing():
        draws = [draw for seed in range(config.seeds) for draw in _draws(context, config, seed)]
        for draw in draws:
            for way in ways:
                draw.chosen[way] = _choose(context, config, draw, way, tasks)
    numbers, chosen, notes = {}, {}, _notes(context, config)
    for share in config.shares:
        mine = [draw for draw in draws if draw.share == share]
        for way in ways:
            name = f"{way}_{100 * share:g}pct"
            values = [_top1(context, draw, way, tasks, notes) for draw in mine]
            numbers[f"{name}_top1"] = _number(share, way, mine, values, context.part("test").n)
            chosen[name] = _about(mine, way)
    tried = {"probe": len(config.c_values), "finetune": len(config.recipe.base_rates)}
    trials = len(context.method.taps()[: config.taps or None]) + sum(tried[way] for way in ways)
    taps = dict.fromkeys(str(draw.choice.tap) for draw in draws)
    return Outcome(numbers, {"tap": ", ".join(taps)} | chosen, trials, notes=notes)


# -- drawing ----------------------------------------------------------------------------------------------------------


def shots(share: float, images: int, classes: int) -> int:
    """How many images of each class a share of all is, at least one."""
    return max(1, round(share * images / classes))


def drawn(labels: Tensor, classes: int, count: int, seed: int) -> Tensor:
    """Positions [count x K] of `count` images of each class: a first one of every class, then a second, ...

    The same for every method; of two counts the smaller is the beginning of the larger. Raises HarnessError for a
    class that has too few.
    """
    import torch

    from harness.errors import HarnessError
    from harness.rng import Rng

    columns = []
    for k in range(classes):
        found = (labels == k).nonzero().flatten()
        if len(found) < count:
            raise HarnessError(
                f"class {k} has {len(found)} images in train, and {count} labels of each class were asked for",
                "as many images of every class as labels",
                "smaller shares (semi.shares), the same for every method",
            )
        order = Rng(0).at("few labels", seed).permutation(k, len(found))
        columns.append(found[order[:count]])
    return torch.stack(columns, dim=1).flatten()


def _draws(context: Context, config: Config, seed: int) -> list[Draw]:
    """A draw for each share, with features at the candidate taps: one extraction, of the largest."""
    from harness.evaluation.choose import best, ridge_top1
    from harness.evaluation.features import Features, Images

    train, classes = context.data.train, context.data.spec.classes
    taps = context.method.taps()[: config.taps or None]
    counts = [shots(share, len(train), classes) for share in config.shares]
    index = drawn(train.labels, classes, counts[-1], seed)
    images = Images(train.images, train.labels, index, context.device)
    features = Features(context.method, context.rng.at("semi", seed), context.autocast).of(taps, "train", images)
    found = []
    for share, count in zip(config.shares, counts, strict=True):
        n, held = count * classes, 0 if count == 1 else max(1, count // HELD_OUT) * classes
        part, own = train.subset(index[:n]), {tap: values[:n] for tap, values in features.items()}
        parts = [({t: x[rows] for t, x in own.items()}, part.labels[rows]) for rows in _halves(n, held)]
        (fit, labels), (rest, truth) = parts
        scores = ridge_top1(taps, [fit], labels, [rest], truth, classes) if held else [0.0] * len(taps)
        found.append(Draw(share, seed, part, held, own, best(taps, scores)))
    return found


def _halves(n: int, held: int) -> tuple[slice, slice]:
    """What a draw's trials learn from, and what they are scored on."""
    return slice(0, n - held), slice(n - held, n)


# -- choosing ---------------------------------------------------------------------------------------------------------


def _choose(
    context: Context, config: Config, draw: Draw, way: str, tasks: dict[Tap, Task | None]
) -> tuple[float, dict[str, float]]:
    """C or the base rate, and the score (top-1 % on the held-out fifth) of each; none where nothing is held out."""
    from evals._tune import choose_rate
    from evals.finetune import task_of

    if way == "probe":
        return _choose_c(context, config, draw)
    tap = draw.choice.tap
    if tap not in tasks:
        tasks[tap] = task_of(context, tap, config.recipe)
    rates = config.recipe.base_rates
    if not draw.held:
        return rates[len(rates) // 2], {}
    fit, held = (draw.part.subset(rows) for rows in _halves(len(draw.part), draw.held))
    rate = choose_rate(tasks[tap], fit, held, _rng(context, draw).at("trial"))
    return rate.base, rate.scores


def _choose_c(context: Context, config: Config, draw: Draw) -> tuple[float, dict[str, float]]:
    """Among equal scores the strongest penalty wins."""
    if not draw.held:
        return 1.0, {}
    from evals._logistic import Problem

    x, labels = draw.features[draw.choice.tap], draw.part.labels
    fit, held = _halves(len(labels), draw.held)
    problem = Problem(x[fit], labels[fit], context.data.spec.classes, context.device)
    scores, last = {}, None
    for c in sorted(config.c_values):
        last = problem.solve(c, last)
        scores[c] = _percent(problem.predict(last, x[held]), labels[held])
    best = max(scores, key=lambda c: (scores[c], -c))
    return best, {f"{c:g}": round(score, 3) for c, score in scores.items()}


# -- the test part ----------------------------------------------------------------------------------------------------


def _top1(context: Context, draw: Draw, way: str, tasks: dict[Tap, Task | None], notes: list[str]) -> float:
    """Top-1 % on test after training on all of the draw, as was chosen."""
    from evals._logistic import Problem
    from evals._tune import top1, train_at

    (value, _), tap, test = draw.chosen[way], draw.choice.tap, context.part("test")
    if way == "probe":
        problem = Problem(draw.features[tap], draw.part.labels, context.data.spec.classes, context.device)
        solution = problem.solve(value)
        if not solution.converged:
            notes.append(f"the probe of {len(draw.part)} labels, draw {draw.seed}, stopped without converging")
        guess = problem.predict(solution, context.features([tap], "test")[tap])
        return _percent(guess, test.labels)
    task, rng = tasks[tap], _rng(context, draw)
    net, _ = train_at(task, draw.part, value, rng)
    return top1(task, net, test, rng.at("test"))


def _rng(context: Context, draw: Draw):
    return context.rng.at("semi", draw.seed, f"{draw.share:g}")


def _percent(guess: Tensor, labels: Tensor) -> float:
    return 100.0 * (guess == labels).double().mean().item()


# -- the record -------------------------------------------------------------------------------------------------------


def _number(share: float, way: str, draws: list[Draw], values: list[float], n: int) -> Number:
    from harness.evaluation import measured

    labels, choice = len(draws[0].part), {"probe": "C", "finetune": "rate"}[way]
    return measured(
        values,
        title=f"{100 * share:g} % labels, {WAYS[way]} top-1 %",
        table="finetune",
        better="higher",
        n=n,
        note=f"{labels:,} labels, evenly over the classes; tap and {choice} chosen within them",
    )


def _about(draws: list[Draw], way: str) -> dict[str, Any]:
    """What each draw chose, and from which scores."""
    word = {"probe": "C", "finetune": "base_rate"}[way]
    return {
        "labels": len(draws[0].part),
        "tap": [str(draw.choice.tap) for draw in draws],
        "tap_scores": [draw.choice.scores for draw in draws],
        word: [draw.chosen[way][0] for draw in draws],
        f"{word}_scores": [draw.chosen[way][1] for draw in draws],
    }


def _notes(context: Context, config: Config) -> list[str]:
    n, classes = len(context.data.train), context.data.spec.classes
    few = [f"{100 * share:g} %" for share in config.shares if share * n < classes]
    return [f"{' and '.join(few)} of {n:,} labels is less than one a class: one of each was drawn"] if few else []
