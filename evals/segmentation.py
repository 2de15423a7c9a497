"""Segmentation: a linear head and a small decoder on frozen dense features, mean intersection over union (mIoU).

What is in a picture is asked of every pixel (card evaluation, section 6). The tap is chosen among the first few of the
method's maps by ridge regression of each place onto the label of most of its pixels; each head learns on the fit part
at one of three rates; both are chosen on select, and the test part is looked at once. Images of other sizes than the
network's pass in tiles (evals/_tiles.py), and logits are up-sampled to the mask. The network stays frozen: fine-tuning
is not offered. Maps are extracted once, so images are neither cropped nor mirrored. The mean is over the classes that
occur in the test masks; one that no mask of the fit part shows is left out of it, and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.protocol import COMMON

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from evals._segments import Examples, Fitted, Head
    from harness.data.masks import MaskData, Pairs
    from harness.evaluation import Choice, Context, Outcome
    from harness.evaluation.context import Loan
    from harness.method import Tap
    from harness.records import Number

# Shapes: D feature width, P places, K classes.

TITLE = "segmentation: linear head and decoder on dense features"
PROTOCOL = 1
NEEDS = "features"
FULL_ONLY = True
READS = ("taps", "features", "maps")  # methods equal in these would find the same

HEADS = ("linear", "decoder")
PLACES = 20_000  # of each part, at most, that a tap is chosen with
SHOWN = 6  # test images in the picture


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("camvid",)  # or voc:PATH, ade:PATH, masks:PATH (harness/data/layouts.py)
    taps: int = COMMON.candidates  # candidates, the method's own first maps
    tap_images: int = 500  # of fit, and half as many of select, at most, that the tap is chosen with
    images: int = 20_000  # of fit, at most, that a head learns from
    select_images: int = 2_000  # of select, at most, that rates are chosen on
    epochs: int = 40
    batch: int = 16
    hidden: int = 256  # channels of the decoder
    side: int = 0  # places along a tile's side at most; 0: as many as the method has
    seeds: int = COMMON.seeds  # of a head's start and order, and of the noise at a noisy tap
    memory_gb: float = 16.0  # that extracted maps may take

    def __post_init__(self) -> None:
        counts = (self.taps, self.images, self.select_images, self.epochs, self.batch, self.hidden, self.seeds)
        if min(*counts, len(self.data)) < 1 or self.tap_images < 2 or self.side < 0 or self.memory_gb <= 0:
            raise ValueError("counts must be at least 1, tap_images at least 2, side at least 0, memory_gb positive")
        if len(set(self.data)) < len(self.data):
            raise ValueError("data must be named once each")


def recipe(size: str) -> Config:
    if size == "nano":  # at most some two minutes a method on one CPU core
        return Config(tap_images=60, images=200, select_images=60, epochs=8, batch=4, hidden=32, side=8)
    return Config()


def require(config: Config, data_dir: Path | None) -> None:
    """Raise HarnessError where a data set is not here."""
    from harness.data import layouts
    from harness.errors import HarnessError

    names = [layouts.find(name, data_dir).name for name in config.data]
    if len(set(names)) < len(names):
        raise HarnessError(f"segmentation.data names {', '.join(names)}", "data sets of different names")


def revisions(config: Config, data_dir: Path | None) -> dict[str, str]:
    """Of each data set, by name."""
    from harness.data import masks

    return {data.spec.name: data.revision for data in (masks.load(name, data_dir) for name in config.data)}


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None on snapshots, for which it is too dear, and for a method without maps."""
    from harness.data import masks
    from harness.evaluation import Outcome

    if context.cheap or not context.method.maps():
        return None
    require(config, context.data_dir)
    loans = [context.borrow(masks.load(name, context.data_dir)) for name in config.data]
    learned = [_learn(context, config, loan.data) for loan in loans]  # all choices, before any test part is opened
    found = Outcome({}, {"tap": ", ".join(str(one.choice.tap) for one in learned)}, trials=0)
    for loan, one in zip(loans, learned, strict=True):
        found = _with(found, context, config, loan, one)
    return found


class Learned(NamedTuple):
    """What came of one data set's fit and select parts."""

    choice: Choice
    fitted: dict[str, Fitted]  # by head
    heads: list[dict[str, Head]]  # for each seed, by head
    shown: Tensor  # bool [K], classes in the masks of the images learned from
    images: int


# -- learning ---------------------------------------------------------------------------------------------------------


def _learn(context: Context, config: Config, data: MaskData) -> Learned:
    """The tap, the rates, and a pair of heads for each seed."""
    fit, select = (_ordered(data, part) for part in ("fit", "select"))
    with context.choosing():
        choice = _choose_tap(context, config, data, fit, select)
        examples = _kept(context, config, choice.tap, data, "fit", fit)
        shown = _shown(examples, data.spec.classes)
        held_out = _kept(context, config, choice.tap, data, "select", select)
        fitted = {name: _fit(context, config, data, name, examples, held_out, shown) for name in HEADS}
        del held_out  # maps are gigabytes, and so are the next ones
    spent = sum(found.fit_s for found in fitted.values())
    context.ledger.add("select", -spent)  # training the head that is tested is evaluation
    context.ledger.add("evaluate", spent)
    heads = [{name: found.head for name, found in fitted.items()}]
    for number in range(1, config.seeds):
        again = context.repeat(number)
        if choice.tap.noise is not None:
            del examples
            examples = _kept(again, config, choice.tap, data, "fit", fit)
        heads.append({name: _again(again, config, data, name, examples, fitted[name].rate) for name in HEADS})
    return Learned(choice, fitted, heads, shown, len(examples))


def _ordered(data: MaskData, part: str, pairs: Pairs | None = None) -> Pairs:
    """A part in a fixed random order, the same for every method and seed: the first of it are a fair subset."""
    from harness.rng import Rng

    pairs = getattr(data, part) if pairs is None else pairs
    return pairs.subset(Rng(0).at("segmentation", part).permutation("order", len(pairs)))


def _choose_tap(context: Context, config: Config, data: MaskData, fit: Pairs, select: Pairs) -> Choice:
    """The best of the first few maps, by the top-1 % of ridge regression on places of select."""
    from harness.errors import HarnessError
    from harness.evaluation.choose import Ridge, best

    taps = context.method.maps()[: config.taps]
    ridges = {tap: Ridge(data.spec.classes) for tap in taps}
    for tap, rows, labels in _places(context, config, taps, data, "fit", fit.subset(slice(0, config.tap_images))):
        ridges[tap].add(rows, labels)
    right, seen = dict.fromkeys(taps, 0), dict.fromkeys(taps, 0)
    if all(ridge.n for ridge in ridges.values()):
        for ridge in ridges.values():
            ridge.solve()
        some = select.subset(slice(0, config.tap_images // 2))
        for tap, rows, labels in _places(context, config, taps, data, "select", some):
            right[tap] += int((ridges[tap].guess(rows) == labels).sum())
            seen[tap] += len(labels)
    if not all(seen.values()):
        raise HarnessError(f"the masks of {data.spec.name} ignore every pixel", "masks that show classes")
    return best(taps, [100.0 * right[tap] / seen[tap] for tap in taps])


def _places(
    context: Context, config: Config, taps: Sequence[Tap], data: MaskData, part: str, pairs: Pairs
) -> Iterator[tuple[Tap, Tensor, Tensor]]:
    """For each image and tap, features [P, D] and labels [P] of places drawn from its map, equally many from each."""
    from evals._segments import majority
    from evals._tiles import seen
    from harness.data.layouts import IGNORED

    each, rng = -(-PLACES // len(pairs)), context.rng.to("cpu").at("segmentation", "places", part)
    for number, one in enumerate(seen(context, taps, f"{data.spec.name} {part} choice", pairs, config.side)):
        for tap, maps in one.maps.items():
            labels = majority(one.pair.mask, maps.shape[1:], data.spec.classes).flatten()
            drawn = rng.permutation(number, len(labels))[:each]
            drawn = drawn[labels[drawn] != IGNORED]
            if len(drawn):
                yield tap, maps.flatten(1).T[drawn].float(), labels[drawn]


def _kept(context: Context, config: Config, tap: Tap, data: MaskData, part: str, pairs: Pairs) -> Examples:
    """The maps and masks of a part, whole. Raises HarnessError where they would not fit."""
    from evals._segments import Examples
    from evals._tiles import seen
    from harness.errors import HarnessError

    pairs = pairs.subset(slice(0, config.images if part == "fit" else config.select_images))
    maps, masks, taken = [], [], 0
    for one in seen(context, [tap], f"{data.spec.name} {part}", pairs, config.side):
        maps.append(one.maps[tap])
        masks.append(one.pair.mask)
        taken += maps[-1].nbytes + masks[-1].nbytes
        needed = taken / len(maps) * len(pairs) / 1e9
        if needed > config.memory_gb and len(maps) >= min(64, len(pairs)):  # of a few, the sizes may be odd
            raise HarnessError(
                f"the maps of {len(pairs)} images of {data.spec.name} take about {needed:.3g} GB",
                f"at most {config.memory_gb:g} GB (segmentation.memory_gb)",
                "a smaller segmentation.images or segmentation.side, the same for every method",
            )
    return Examples(maps, masks, context.device)


def _shown(examples: Examples, classes: int) -> Tensor:
    """Which classes the masks show: bool [K]."""
    import torch

    counts = torch.zeros(256, dtype=torch.int64)
    for mask in examples.masks:
        counts += torch.bincount(mask.flatten(), minlength=256)
    return counts[:classes] > 0


def _build(name: str, config: Config, width: int, classes: int) -> partial[Head]:
    from evals._segments import Decoder, Linear

    return partial(Linear, width, classes) if name == "linear" else partial(Decoder, width, classes, config.hidden)


def _fit(
    context: Context, config: Config, data: MaskData, name: str, fit: Examples, select: Examples, shown: Tensor
) -> Fitted:
    from evals._segments import best_of, mean_iou

    build = _build(name, config, fit.width, data.spec.classes)
    rng = context.rng.at("segmentation", data.spec.name, name)
    score = partial(mean_iou, counted=shown)
    return best_of(build, fit, select, score, config.epochs, config.batch, rng, context.device)


def _again(context: Context, config: Config, data: MaskData, name: str, fit: Examples, rate: float) -> Head:
    """A head of the chosen rate from another start, in another order."""
    from evals._heads import built
    from evals._segments import train

    rng = context.rng.at("segmentation", data.spec.name, name)
    head = built(_build(name, config, fit.width, data.spec.classes), rng).to(context.device)
    return train(head, rate, fit, config.epochs, config.batch, rng)


# -- the test part ----------------------------------------------------------------------------------------------------


def _with(found: Outcome, context: Context, config: Config, loan: Loan, learned: Learned) -> Outcome:
    """`found`, and what there is to say of one more data set, whose test part is opened here."""
    from evals._overlays import write
    from evals._segments import ious, pixel_accuracy
    from harness.evaluation import Outcome

    data: MaskData = loan.data
    test = _ordered(data, "test", loan.open_test())
    scored, pictures = _score(context, config, data, test, learned)
    name, classes = data.spec.name, data.spec.names
    numbers, about = dict(found.numbers), _about(learned, len(classes))
    for head, matrices in scored.items():
        numbers[_key(head, name)] = _number(head, config, data, learned, matrices, len(test))
        occurs = (matrices[0].sum(dim=1) > 0).tolist()
        shares = (sum(ious(matrix) for matrix in matrices) / len(matrices)).tolist()
        about[head]["test"] = {  # what was found, the mean over the seeds; the rest here is what was chosen
            "pixel_accuracy": round(sum(map(pixel_accuracy, matrices)) / len(matrices), 2),
            "iou": {c: round(100 * s, 2) for c, s, there in zip(classes, shares, occurs, strict=True) if there},
        }
    picture = f"segmentation-{name}.png"
    write(context.pictures / picture, ["image", "truth", *HEADS], pictures, classes)
    lost = [c for c, there in zip(classes, learned.shown.tolist(), strict=True) if not there]
    said = f"{name}: no mask of the images learned from shows {', '.join(lost)}; left out of the mean"
    return Outcome(
        numbers,
        found.chosen | {name: about},
        found.trials + learned.choice.trials + sum(len(f.scores) for f in learned.fitted.values()),
        [*found.pictures, picture],
        [*found.notes, *([said] if lost else [])],
    )


def _score(
    context: Context, config: Config, data: MaskData, test: Pairs, learned: Learned
) -> tuple[dict[str, list[Tensor]], list[list[Tensor]]]:
    """A confusion matrix [K, K] for each seed, by head; and image, truth and first guesses of the first few images."""
    from evals._segments import confused, guesses
    from evals._tiles import seen

    tap, classes = learned.choice.tap, data.spec.classes
    scored: dict[str, list[Tensor]] = {name: [] for name in HEADS}
    pictures: list[list[Tensor]] = []
    noisy = tap.noise is not None
    for group in [[n] for n in range(config.seeds)] if noisy else [list(range(config.seeds))]:
        totals = {(name, number): 0 for name in HEADS for number in group}
        for one in seen(context.repeat(group[0]), [tap], f"{data.spec.name} test", test, config.side):
            maps = one.maps[tap][None].to(context.device).float()
            masks = one.pair.mask
            found = {
                (name, n): guesses(learned.heads[n][name], maps, masks.shape)[0].cpu() for n in group for name in HEADS
            }
            for place, guess in found.items():
                totals[place] = totals[place] + confused(masks, guess, classes)
            if group[0] == 0 and len(pictures) < SHOWN:
                pictures.append([one.pair.image, masks, *(found[name, 0] for name in HEADS)])
        for (name, _), total in totals.items():
            scored[name].append(total)
    return scored, pictures


# -- the record -------------------------------------------------------------------------------------------------------


def _key(head: str, name: str) -> str:
    return f"{head}_miou_{name}"


def _about(learned: Learned, classes: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tap": str(learned.choice.tap),
        "tap_scores": learned.choice.scores,
        "images": learned.images,
        "classes": f"{int(learned.shown.sum())} of {classes}",
    }
    for name, fitted in learned.fitted.items():
        size = sum(p.numel() for p in fitted.head.parameters())
        found[name] = {"rate": fitted.rate, "rate_scores": fitted.scores, "parameters": size}
    return found


def _number(head: str, config: Config, data: MaskData, learned: Learned, matrices: list[Tensor], n: int) -> Number:
    from evals._segments import mean_iou
    from harness.evaluation import measured

    return measured(
        [mean_iou(matrix, learned.shown) for matrix in matrices],
        title=f"{head} mIoU % on {data.spec.name}",
        table="dense",
        better="higher",
        n=n,
        note=f"{data.title}; label-trained: a {head} head on {learned.images:,} images for {config.epochs} epochs; the "
        "network is frozen and sees each image in tiles of its own size; tap and rate chosen on held-out train; mean "
        "over the classes in the test masks",
    )
