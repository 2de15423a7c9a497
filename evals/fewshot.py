"""Few-shot probe: ridge regression in closed form on a few images of each class (card umd, section 7).

The rule is UMD's: features standardised by the shots' own mean and deviation + 1e-5, a constant feature of 100 for the
bias, which is penalised like the others, targets of -1 and +1, an L2 penalty of 1024, float64, the whole test part. UMD
draws its shots once; here each draw is a seed. A class with fewer images gives what it has. The tap is the one that the
linear probe reads: its choice uses every label of select, the ridge only those of its shots. At a noisy tap the noise
is that of the features as first read: each draw of shots meets other noise, the test images the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.protocol import COMMON

if TYPE_CHECKING:
    from torch import Tensor

    from harness.evaluation import Context, Outcome

# Shapes: n shots, m queries, D feature width, K classes.

TITLE = "few-shot ridge probe"
PROTOCOL = 1
NEEDS = "features"

L2 = 1024.0
BIAS = 100.0  # the constant feature
EPSILON = 1e-5  # beside a feature's deviation
DRAWS = 0  # the seed of the shots, the same for every run and method


@dataclass(frozen=True)
class Config:
    taps: int = COMMON.candidates  # as for the linear probe, whose choice this eval shares
    shots: tuple[int, ...] = (10, 100)  # images of each class; UMD has 100, and both in its transfer table
    seeds: int = COMMON.seeds  # draws of shots

    def __post_init__(self) -> None:
        if self.taps < 0 or min(self.seeds, len(self.shots), *self.shots) < 1:
            raise ValueError("taps must be at least 0, seeds and shots at least 1, and one number of shots be given")
        if len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots {self.shots} must differ")


def recipe(size: str) -> Config:
    """The same for every size."""
    return Config()


def evaluate(context: Context, config: Config) -> Outcome:
    from evals._accuracy import accuracies
    from harness.evaluation import Outcome

    classes = context.data.spec.classes
    choice = context.choose_tap(config.taps)
    features, labels = context.train_features(choice.tap)
    test, truth = context.features([choice.tap], "test")[choice.tap], context.labels("test")
    numbers = {}
    for shots in config.shots:
        draws = [draw(labels, shots, classes, number) for number in range(config.seeds)]
        guesses = [Ridge(features[index], labels[index], classes).guess(test) for index in draws]
        about = {"table": "representation", "note": None if context.cheap else _note(shots, classes, draws)}
        numbers |= accuracies(f"fewshot{shots}", f"{shots}-shot ridge", guesses, truth, context.data, **about)
    return Outcome(numbers, {"tap": str(choice.tap), "tap_scores": choice.scores}, choice.trials)


def _note(shots: int, classes: int, draws: list[Tensor]) -> str:
    found, wanted = len(draws[0]), shots * classes
    short = "" if found == wanted else f"; {found} images, not {wanted}: some classes have fewer"
    return f"{len(draws)} draws of {shots} images a class{short}"


def draw(labels: Tensor, shots: int, classes: int, number: int) -> Tensor:
    """Places [n] in `labels` of draw `number`: `shots` of each class, or all of a class that has no more.

    They depend on the labels' order alone, which is the same for every method.
    """
    import torch

    from harness.rng import Rng

    order = Rng(DRAWS).at("fewshot", number).permutation("order", len(labels))
    return torch.cat([order[labels[order] == k][:shots] for k in range(classes)])


class Ridge:
    """One regression in float64, solved at the smaller of its two sides: n x n or (D + 1) x (D + 1)."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        import torch
        from torch.nn.functional import one_hot

        x = features.double()
        self.mean, self.scale = x.mean(dim=0), x.std(dim=0, correction=0) + EPSILON
        x, targets = self._prepared(features), 2 * one_hot(labels, classes).double() - 1
        n, width = x.shape
        if n < width:
            self.weights = x.T @ torch.linalg.solve(_ridged(x @ x.T), targets)
        else:
            self.weights = torch.linalg.solve(_ridged(x.T @ x), x.T @ targets)  # [D + 1, K]

    def _prepared(self, features: Tensor) -> Tensor:
        """float64 [n, D + 1]: standardised, and the constant."""
        import torch

        x = (features.double() - self.mean) / self.scale
        return torch.cat([x, x.new_full((len(x), 1), BIAS)], dim=1)

    def guess(self, features: Tensor, chunk: int = 4096) -> Tensor:
        """The class [m] of each of `features` [m, D]."""
        import torch

        return torch.cat([(self._prepared(rows) @ self.weights).argmax(dim=1) for rows in features.split(chunk)])


def _ridged(gram: Tensor) -> Tensor:
    gram.diagonal().add_(L2)
    return gram
