"""The linear probe as other people take it: DINOv2's many heads, MAE's LARS, DDAE's Adam (card evaluation, section 1).

Their heads are trained while augmented images pass through the frozen network (evals/_presets.py), which costs as many
passes as there are epochs. Each preset has a column of its own: the harness's common probe is the eval `linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.protocol import COMMON

if TYPE_CHECKING:
    from harness.evaluation import Context, Outcome
    from harness.records import Number

TITLE = "linear probe as DINOv2, MAE and DDAE take it"
PROTOCOL = 1
NEEDS = "features"
FULL_ONLY = True

PRESETS = ("dinov2", "mae", "ddae")


@dataclass(frozen=True)
class Config:
    presets: tuple[Literal["dinov2", "mae", "ddae"], ...] = ("mae",)
    taps: int = COMMON.candidates  # candidates, the method's own first; 0 is all of them
    length: Literal["paper", "short"] = "paper"
    epochs: int = 0  # what is 0 is as in the length
    images: int = 0
    batch: int = 0
    rate: float = 0.0  # one base rate instead of theirs
    seeds: int = COMMON.seeds  # of a whole training: start, order, augmentation, noise

    def __post_init__(self) -> None:
        if not self.presets or len(set(self.presets)) < len(self.presets) or not set(self.presets) <= set(PRESETS):
            raise ValueError(f"presets are one or several of {', '.join(PRESETS)}, each once")
        if self.taps < 0 or self.seeds < 1:
            raise ValueError("taps must be at least 0, seeds at least 1")
        if min(self.epochs, self.images, self.batch, self.rate) < 0 or self.batch == 1 or self.images == 1:
            raise ValueError("epochs, images, batch and rate must be 0 or more; a batch norm needs 2 images")


def recipe(size: str) -> Config:
    """The same for every size, but for the length."""
    return Config(length="short") if size == "nano" else Config()


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None on snapshots, for which it is too dear."""
    from evals import _presets
    from harness.evaluation import Outcome

    if context.cheap:
        return None
    numbers: dict[str, Number] = {}
    chosen: dict[str, Any] = {}
    trials = 0
    for i, preset in enumerate(config.presets):
        # Each preset makes its own choices before its own look at the test part.
        found = _presets.evaluate(context if i == 0 else context.again(), config, preset)
        numbers |= found.numbers
        chosen[preset] = found.chosen
        trials += found.trials
    taps = dict.fromkeys(about["tap"] for about in chosen.values())
    return Outcome(numbers, {"tap": ", ".join(taps)} | chosen, trials)
