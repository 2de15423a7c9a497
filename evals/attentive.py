"""Heads trained with labels on frozen maps: linear and attention on one tap, fusion of several, fed-back maps.

Mukhopadhyay et al. 2024 (DifFormer, DifFeed) compare such heads with other methods' linear probes; here every method
gets the same heads (card difformer_diffeed, sections 6.3 and 8, table B). Heads learn on the fit part, each one's rate
is chosen on select from equally many, and the test part is looked at once. Labels train millions of weights here, so
this is no measure of what pre-training alone has learned: the linear probe is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from harness.protocol import COMMON

if TYPE_CHECKING:
    from torch import Tensor

    from evals._heads import Fitted
    from harness.evaluation import Choice, Context, Outcome
    from harness.method import Tap
    from harness.records import Number

# Shapes: n images, B batch, C channels and S side of a map, D token width, K classes.

TITLE = "linear, attention and fusion heads on maps"
PROTOCOL = 3  # three starts of each head
NEEDS = "features"
FULL_ONLY = True
READS = ("taps", "features", "maps", "fusion", "feedback_head")  # methods equal in these would find the same

Levels = list[list["Tap"]]


@dataclass(frozen=True)
class Config:
    recipe: Literal["short", "repo", "paper"] = "short"  # evals/_heads.py
    taps: int = COMMON.candidates  # candidates, the method's own first, as for the linear probe
    images: int = 10_000  # of fit, at most, that a head learns from
    select_images: int = 2_000  # of select, at most, that rates are chosen on
    epochs: int = 28
    batch: int = 128
    feedback_images: int = 10_000  # the same for the head that runs the network itself
    feedback_epochs: int = 28
    width: int = 1024  # of a token
    depth: int = 2
    heads: int = 8
    side: int = 0  # tokens along a map's side at most; 0 is 16 for images of 128 px and more, else 8
    memory_gb: float = 16.0  # that extracted maps may take
    seeds: int = COMMON.seeds  # starts and orders of each head, at the best rate; rates are tried on the first

    def __post_init__(self) -> None:
        counts = (
            self.taps,
            self.images,
            self.select_images,
            self.epochs,
            self.batch,
            self.depth,
            self.heads,
            self.seeds,
        )
        if min(*counts, self.feedback_images, self.feedback_epochs) < 1 or self.side < 0 or self.memory_gb <= 0:
            raise ValueError("counts must be at least 1, side at least 0, memory_gb positive")
        if self.width < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must divide into {self.heads} heads")


WIDTHS = {"nano": 64, "ti": 128, "s": 256, "b": 512}  # the larger sizes have the paper's


def recipe(size: str) -> Config:
    width = WIDTHS.get(size, 1024)
    if size == "nano":  # some three minutes a method at most on one CPU core
        return Config(
            images=2_000,
            select_images=1_000,
            epochs=10,
            batch=32,
            feedback_images=1_000,
            feedback_epochs=3,
            width=width,
            depth=1,
            heads=4,
            side=4,
        )
    return Config(width=width)


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None on snapshots, for which it is too dear, and for a method without maps."""
    from harness.evaluation import Outcome

    if context.cheap or not context.method.maps():
        return None
    choice = context.choose_tap(config.taps)
    tap = mapped_tap(choice, context.method.maps())
    reads: dict[str, Levels] = {"linear": [[tap]], "attention": [[tap]], "fusion": context.method.fusion()}
    with context.choosing():
        fitted = _fit_on_maps(context, config, reads)
        fed = _fit_feedback(context, config)
    _book_fits(context, [*fitted.values(), *([fed] if fed else [])])
    right = _right(context, config, {name: (head, reads[name]) for name, head in fitted.items()})
    if fed is not None:
        fitted["feedback"], right["feedback"] = fed, _right_fed(context, fed)
    chosen: dict[str, Any] = {"tap": str(tap), "probe_tap": str(choice.tap), "tap_scores": choice.scores}
    chosen["fusion_taps"] = [[str(t) for t in level] for level in reads["fusion"]]
    for name, found in fitted.items():
        chosen[name] = {"rate": found.rate, "rate_scores": found.scores, **_cost(found)}
    numbers = {f"{name}_top1": _number(name, config, found, right[name]) for name, found in fitted.items()}
    return Outcome(numbers, chosen, choice.trials + sum(len(found.scores) for found in fitted.values()))


def mapped_tap(choice: Choice, maps: Sequence[Tap]) -> Tap:
    """The chosen tap; where it has no map (a class token), the best scored of the candidates that have one."""
    scored = [tap for tap in maps if str(tap) in choice.scores]
    if choice.tap in maps or not scored:
        return choice.tap if choice.tap in maps else maps[0]
    return max(scored, key=lambda tap: (choice.scores[str(tap)], -maps.index(tap)))


# -- fitting ----------------------------------------------------------------------------------------------------------


def _fit_on_maps(context: Context, config: Config, reads: dict[str, Levels]) -> dict[str, Fitted]:
    from backbones.heads import FusionHead, LinearHead, MapShape
    from evals._heads import RECIPES, MapExamples, best_of

    taps = list(dict.fromkeys(tap for levels in reads.values() for level in levels for tap in level))
    limits = {"fit": config.images, "select": config.select_images}
    maps = {part: _kept(context, config, taps, part, limit) for part, limit in limits.items()}
    fitted = {}
    for name, levels in reads.items():
        shapes = {t.layer: MapShape(*maps["fit"][t].shape[1:3]) for level in levels for t in level}
        if name == "linear":
            head = partial(LinearHead, shapes, context.data.spec.classes)
        else:
            head = partial(FusionHead, shapes, len(levels), context.data.spec.classes, _measures(context, config))
        fit, select = (
            MapExamples(maps[part], levels, context.labels(part, limit), context.device)
            for part, limit in limits.items()
        )
        rng = context.rng.at("attentive", name)
        fitted[name] = best_of(
            head, RECIPES[config.recipe], fit, select, config.epochs, config.batch, rng, context.device, config.seeds
        )
    return fitted


def _kept(context: Context, config: Config, taps: list[Tap], part: Any, limit: int) -> dict[Tap, Tensor]:
    """The maps of a part, whole, as [n, C, S, S] float16. Raises HarnessError where they would not fit."""
    import torch

    from harness.errors import HarnessError

    n, chunks = context.part(part).first(limit).n, []
    for chunk in context.maps(taps, part, _side(context, config), limit):
        if not chunks:
            needed = sum(m.nbytes for m in chunk.values()) / len(chunk[taps[0]]) * n / 1e9
            if needed > config.memory_gb:
                raise HarnessError(
                    f"the maps of {n} images at {len(taps)} tap(s) take {needed:.3g} GB",
                    f"at most {config.memory_gb:g} GB (attentive.memory_gb)",
                    "a smaller attentive.images or attentive.side, the same for every method",
                )
        chunks.append(chunk)
    return {tap: torch.cat([chunk[tap] for chunk in chunks]) for tap in taps}


def _fit_feedback(context: Context, config: Config) -> Fitted | None:
    """The method's own head that runs its network, where it has one; with fresh noise in every step."""
    from evals._heads import RECIPES, ImageExamples, best_of, built

    head = partial(context.method.feedback_head, context.data.spec.classes, _measures(context, config))
    rng = context.rng.at("attentive", "feedback")
    if built(head, rng) is None:
        return None
    fit, select = (
        ImageExamples(context.part(part).first(limit))
        for part, limit in (("fit", config.feedback_images), ("select", config.select_images))
    )
    recipe, epochs = RECIPES[config.recipe], config.feedback_epochs
    return best_of(head, recipe, fit, select, epochs, config.batch, rng, context.device, config.seeds)


def _book_fits(context: Context, fitted: Sequence[Fitted]) -> None:
    """What is trained with labels is evaluation; choosing is what was tried beside it (card, section 8)."""
    fit_s = sum(found.fit_s for found in fitted)
    context.ledger.add("select", -fit_s)
    context.ledger.add("evaluate", fit_s)


def _side(context: Context, config: Config) -> int:
    return config.side or (16 if context.data.spec.size >= 128 else 8)


def _measures(context: Context, config: Config):
    from backbones.heads import Measures

    return Measures(config.width, config.depth, config.heads, _side(context, config))


# -- the test part ----------------------------------------------------------------------------------------------------


def _right(context: Context, config: Config, heads: dict[str, tuple[Fitted, Levels]]) -> dict[str, Tensor]:
    """Which test images each kind of head is right about, [seeds, n]; maps are not kept."""
    import torch

    from evals._heads import MapExamples, guesses

    taps = list(dict.fromkeys(tap for _, levels in heads.values() for level in levels for tap in level))
    labels = context.labels("test")
    found: dict[str, list[Tensor]] = {name: [] for name in heads}
    seen = 0
    for maps in context.maps(taps, "test", _side(context, config)):
        truth = labels[seen : seen + len(maps[taps[0]])]
        seen += len(truth)
        for name, (fitted, levels) in heads.items():
            examples = MapExamples(maps, levels, truth, context.device)
            found[name].append(torch.stack([guesses(head, examples, context.rng) == truth for head in fitted.heads]))
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def _right_fed(context: Context, fed: Fitted) -> Tensor:
    import torch

    from evals._heads import ImageExamples, guesses

    test, rng = context.part("test"), context.rng.at("attentive", "test")
    return torch.stack([guesses(head, ImageExamples(test), rng) == test.labels for head in fed.heads])


# -- the record -------------------------------------------------------------------------------------------------------


def _cost(fitted: Fitted) -> dict[str, float]:
    """The head's size and what training it took; its seconds are in the ledger."""
    size = sum(p.numel() for p in fitted.heads[0].parameters())
    return {"parameters": size, "images": fitted.images, "fit_flop": fitted.fit_flop}


def _number(name: str, config: Config, fitted: Fitted, right: Tensor) -> Number:
    from harness.evaluation import measured
    from harness.hits import packed

    images, epochs = config.images, config.epochs
    if name == "feedback":
        images, epochs = config.feedback_images, config.feedback_epochs
    return measured(
        (100.0 * right.double().mean(dim=1)).tolist(),
        title=f"{name} head top-1 %",
        table="representation",
        better="higher",
        n=right.shape[1],
        hits=packed(right),
        note=f"label-trained: on up to {images:,} images of train for {epochs} epochs; recipe {config.recipe}, its "
        f"rate chosen from {len(fitted.scores)} on held-out train; the network is frozen",
    )
