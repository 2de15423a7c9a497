"""The linear probe as DINOv2, MAE and DDAE take it: presets of the eval `online` (cards evaluation 1, mae 5, ddae 6).

What is theirs is in RECIPES. What is ours, the same for every method: the taps are the harness's candidates (DINOv2 has
four feature variants too: the last 1 or 4 blocks, with or without the pooled patches; MAE reads the class token; DDAE
chooses its tap on test); test images stay whole at their native size; crops are drawn like torchvision's, where MAE
draws once and clips; every number is of the last step (MAE: of the best epoch on test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evals._accuracy import accuracies, top1
from evals._online import Heads, Recipe, guesses, train
from harness.errors import HarnessError
from harness.evaluation import Context, Outcome
from harness.method import Augment, Tap

if TYPE_CHECKING:
    from torch import Tensor

    from evals.online import Config


def _cosine(done: float, epochs: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * done / epochs))


def _warm_cosine(done: float, epochs: int) -> float:
    """MAE's 10 epochs of warm-up in 90, from zero."""
    warm = epochs / 9
    return done / warm if done < warm else _cosine(done - warm, epochs - warm)


def _epoch_cosine(done: float, epochs: int) -> float:
    return _cosine(math.floor(done), epochs)


CROP = Augment(crop=(0.08, 1.0))
# DINOv2's 13 base rates, 1, 2, 5 a decade.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
RECIPES = {
    "dinov2": Recipe("DINOv2's heads", "sgd", RATES, 256, 10, _cosine, CROP, select=True),
    # A step of LARS is a share of the weights' own norm: it takes many to grow from 0.01, however steep the loss.
    "mae": Recipe("MAE's LARS", "lars", (0.1,), 256, 90, _warm_cosine, CROP, norm=True, faster=300.0),
    "ddae": Recipe("DDAE's Adam", "adam", (1e-3,), 128, 15, _epoch_cosine, None, spread=None, remainder=True),
}


@dataclass(frozen=True)
class Length:
    """How long a preset trains; 0 is all images, or the epochs of its recipe."""

    epochs: int
    images: int
    batch: int


# DDAE's batch is 512; DINOv2's is 1024 and MAE's 16384, a third of CIFAR-10. Rates scale with it, as in theirs.
LENGTHS = {"paper": Length(epochs=0, images=0, batch=512), "short": Length(epochs=5, images=4_000, batch=128)}


def settled(config: Config, preset: str) -> tuple[Recipe, Length]:
    """The recipe and the length that `config` asks of `preset`: theirs, but for what it sets itself."""
    recipe, length = RECIPES[preset], LENGTHS[config.length]
    rates = recipe.rates if config.length == "paper" else tuple(rate * recipe.faster for rate in recipe.rates)
    return replace(recipe, rates=(config.rate,) if config.rate else rates), Length(
        epochs=config.epochs or length.epochs or recipe.epochs,
        images=config.images or length.images,
        batch=config.batch or length.batch,
    )


# -- the record -------------------------------------------------------------------------------------------------------


def evaluate(context: Context, config: Config, preset: str) -> Outcome:
    """The mean of `config.seeds` trainings, each with its own start, order, augmentation and noise."""
    recipe, length = settled(config, preset)
    images = context.part("fit" if recipe.select else "train").first(length.images or None)

    def trained(number: int, recipe: Recipe, taps: Sequence[Tap]) -> Heads:
        repeat = context.repeat(number)
        return train(repeat, recipe, taps, images, length.epochs, length.batch, repeat.rng.at("online", preset))

    chosen: dict[str, Any] = {"epochs": length.epochs, "batch": length.batch, "images": images.n}
    if recipe.select:
        heads = trained(0, recipe, context.method.taps()[: config.taps or None])
        tap, rate, scores = _best(context, heads)
        recipe, trials = replace(recipe, rates=(rate,)), len(heads.names)
        chosen |= {"tap": str(tap), "rate": rate, "scores": scores}
        every = [heads] + [trained(number, recipe, [tap]) for number in range(1, config.seeds)]
    else:
        choice = context.choose_tap(config.taps)
        tap, trials = choice.tap, choice.trials
        chosen |= {"tap": str(tap), "rate": recipe.rates[0], "tap_scores": choice.scores}
        every = [trained(number, recipe, [tap]) for number in range(config.seeds)]
    answers = [_on_test(context, number, heads, tap, recipe.rates[0]) for number, heads in enumerate(every)]
    if any((answer < 0).any() for answer in answers):
        raise HarnessError(
            f"a head of {recipe.who} diverged at base rate {recipe.rates[0]:g}",
            "a finite loss",
            "a lower online.rate, the same for every method",
        )
    about = {"table": "representation", "note": _note(recipe, length, images.n, preset)}
    key, title = f"online_{preset}", f"linear probe ({recipe.who})"
    numbers = accuracies(key, title, answers, context.labels("test"), context.data, **about)
    return Outcome(numbers, chosen, trials)


def _best(context: Context, heads: Heads) -> tuple[Tap, float, dict[str, float]]:
    """Tap and base rate of the best head on select, and all scores; among equals the first tap, the lower rate."""
    with context.choosing():
        said = guesses(heads, context.features(heads.taps, "select"), context.device)
        found = {name: top1(guess, context.labels("select")) for name, guess in said.items()}
    tap, rate = max(found, key=found.__getitem__)  # the first of equals
    return tap, rate, {f"{tap} {rate:g}": round(score, 3) for (tap, rate), score in found.items()}


def _on_test(context: Context, number: int, heads: Heads, tap: Tap, rate: float) -> Tensor:
    """What the head of `tap` and `rate` says of test, [n]; a noisy tap is read anew for each training."""
    source = context if tap.noise is None else context.repeat(number)
    return guesses(heads, source.features([tap], "test"), context.device)[tap, rate]


def _note(recipe: Recipe, length: Length, images: int, preset: str) -> str:
    theirs = RECIPES[preset]
    part = "fit, the best of all heads on select" if recipe.select else "train"
    rate = "" if recipe.select else f", base rate {recipe.rates[0]:g} (theirs {theirs.rates[0]:g})"
    if recipe.select and recipe.faster != 1 and length.epochs < theirs.epochs:
        rate = f", base rates {recipe.faster:g} times theirs"
    return (
        f"{recipe.who}: {images:,} images of {part}, augmented, {length.epochs} epochs (theirs {theirs.epochs}) of "
        f"{length.batch} a step{rate}"
    )
