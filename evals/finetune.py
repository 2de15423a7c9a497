"""Fine-tune: the whole network trained end to end on labels, one recipe for all methods (card evaluation, section 3).

A copy of the method up to the tap that the linear probe reads, a new norm and linear head on its features, cross
entropy; the recipe is evals/_recipe.py, the depths of its layer decay evals/_depths.py. From one grid for all methods
the rate is chosen on select, by trainings on fit; then `seeds` trainings on all of train at that rate (start of the
head, order, augmentation, noise), each of which looks at the test part once.

A noisy tap is fine-tuned as it is: on images with its noise, fresh in every step, and tested under fixed noise. This
is the harness's recipe and not DDAE's, whose is not known (card ddae, section 6). Methods on latents encode within a
step: a VAE stays frozen and its time and FLOPs count. At nano one seed and short trials have to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals import _recipe
from evals._recipe import Recipe
from harness.protocol import COMMON

if TYPE_CHECKING:
    from evals._tune import Rate, Task
    from harness.data.dataset import Part
    from harness.evaluation import Choice, Context, Outcome

TITLE = "fine-tune"
PROTOCOL = 1
NEEDS = "features"
FULL_ONLY = True
READS = ("taps", "features", "param_groups", "preparation")  # methods equal in these would find the same


@dataclass(frozen=True)
class Config:
    recipe: Recipe = Recipe()  # noqa: RUF009 (frozen)
    taps: int = COMMON.candidates  # candidates, the method's own first, as for the linear probe; 0 is all of them
    images: int = 0  # of fit for a trial, and of train for the last training, at most; 0 is all
    select_images: int = 0  # that rates are chosen on, at most; 0 is all
    seeds: int = COMMON.seeds  # of the last training

    def __post_init__(self) -> None:
        if self.seeds < 1 or min(self.taps, self.images, self.select_images) < 0:
            raise ValueError("seeds must be at least 1; taps, images and select_images at least 0")


def recipe(size: str) -> Config:
    if size == "nano":
        return Config(_recipe.for_size(size), select_images=1_000, seeds=1)
    return Config(_recipe.for_size(size))


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None on snapshots, for which it is too dear, and for features that rest on no parameter."""
    from evals._accuracy import accuracies
    from evals._tune import choose_rate, guesses, train_at
    from harness.evaluation import Outcome

    if context.cheap or not any(True for _ in context.method.parameters()):
        return None
    choice, rng = context.choose_tap(config.taps), context.rng.at("finetune")
    task = task_of(context, choice.tap, config.recipe)
    if task is None:
        return None
    data = context.data
    with context.choosing():
        fit, select = some(data.fit, config.images, "fit"), some(data.select, config.select_images, "select")
        rate = choose_rate(task, fit, select, rng.at("trial"))
    train, found = some(data.train, config.images, "train"), []
    for seed in range(config.seeds):
        net, seen = train_at(task, train, rate.base, rng.at("seed", seed))
        test = context.part("test")
        found.append(guesses(task, net, test, rng.at("test", seed)))
    numbers = accuracies(
        "finetune", "fine-tune", found, test.labels, data, table="finetune", note=_note(config, len(train))
    )
    chosen = _chosen(choice, task, rate) | {"images": len(train), "images_seen": seen}
    trials = choice.trials + len(config.recipe.base_rates)
    return Outcome(numbers, chosen, trials, notes=diverged(config.recipe, rate))


def task_of(context: Context, tap: Any, recipe: Recipe) -> Task | None:
    """Fine-tuning this checkpoint at a tap; None where its features rest on no parameter."""
    from evals._depths import way_to
    from evals._tune import Task

    data = context.data
    way = way_to(context.method, data.spec, tap, context.rng.at("finetune"))
    if way is None:
        return None
    return Task(
        context.method, tap, way, data.spec.classes, data.mirror, recipe, context.device, context.autocast
    )  # fmt: skip


def some(part: Part, images: int, name: str) -> Part:
    """The first `images` of a part in a fixed random order, the same for every method and seed; all for 0."""
    from harness.rng import Rng

    if not images or images >= len(part):
        return part
    return part.subset(Rng(0).at("finetune", name).permutation("images", len(part))[:images])


def diverged(recipe: Recipe, rate: Rate) -> list[str]:
    lost = [f"{base:g}" for base in recipe.base_rates if f"{base:g}" not in rate.scores]
    return [f"fine-tuning diverged at the base rate {', '.join(lost)}"] if lost else []


def _chosen(choice: Choice, task: Task, rate: Rate) -> dict[str, Any]:
    return {
        "tap": str(choice.tap),
        "tap_scores": choice.scores,
        "base_rate": rate.base,
        "rate_scores": rate.scores,
        "images_trials": rate.images,
        **task.about(),
        "layer_decay": task.recipe.layer_decay,
    }


def _note(config: Config, images: int) -> str:
    recipe = config.recipe
    return (
        f"end to end on {images:,} images of train for {recipe.length}: AdamW, layer decay {recipe.layer_decay:g}, "
        f"drop path {recipe.drop_path:g}, mixup {recipe.mixup:g}, cutmix {recipe.cutmix:g}, RandAugment {recipe.ops}; "
        f"tap and rate chosen on held-out train, the rate from {len(recipe.base_rates)}"
    )
