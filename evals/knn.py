"""kNN: a vote of the k most similar training images, with nothing to choose (card evaluation, section 2).

The rule is DINOv2's: L2-normalised features, cosine similarity, votes weighted by exp(similarity / T), k = 20,
T = 0.07. Features of masked and diffusion models share a large common direction, so a second number subtracts the
training mean before normalising. The tap is the one that the linear probe reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.protocol import COMMON

if TYPE_CHECKING:
    from torch import Tensor

    from harness.evaluation import Context, Outcome
    from harness.method import Tap

# Shapes: n training images, m queries, D feature width, K classes.

TITLE = "k nearest neighbours"
PROTOCOL = 3  # noisy taps are read under three draws
NEEDS = "features"


@dataclass(frozen=True)
class Config:
    taps: int = COMMON.candidates  # as for the linear probe, whose choice this eval shares
    k: int = 20
    temperature: float = 0.07
    seeds: int = COMMON.seeds  # of the noise at a noisy tap; a clean one has nothing to repeat

    def __post_init__(self) -> None:
        if min(self.taps, self.k, self.seeds) < 1 or self.temperature <= 0:
            raise ValueError("taps, k and seeds must be at least 1, temperature positive")


def recipe(size: str) -> Config:
    """The same for every size."""
    return Config()


def evaluate(context: Context, config: Config) -> Outcome:
    from harness.evaluation import Outcome, measured
    from harness.hits import packed

    choice = context.choose_tap(config.taps)
    pairs = [_right(repeat, choice.tap, config) for repeat in context.repeats(config.seeds, [choice.tap])]
    titles = {"knn_top1": "kNN top-1 %", "knn_centred_top1": "kNN (centred) top-1 %"}
    note = f"k = {config.k}, cosine, T = {config.temperature:g}" + (
        "" if context.cheap else "; reference: all of train"
    )
    numbers = {
        key: measured(
            [100.0 * right.double().mean().item() for right in repeats],
            title=title,
            table="representation",
            better="higher",
            n=len(context.labels("test")),
            note=note,
            hits=packed(repeats),
        )
        for (key, title), repeats in zip(titles.items(), zip(*pairs, strict=True), strict=True)
    }
    return Outcome(numbers, {"tap": str(choice.tap), "tap_scores": choice.scores}, choice.trials)


def _right(context: Context, tap: Tap, config: Config) -> tuple[Tensor, Tensor]:
    """Which test images are guessed right [m], with features as they are and less the mean of train."""
    reference, labels = context.train_features(tap)
    queries, truth = context.features([tap], "test")[tap], context.labels("test")
    mean = reference.double().mean(dim=0).float()
    found = []
    for shift in (mean * 0, mean):
        shares = votes(
            reference - shift,
            labels,
            queries - shift,
            context.data.spec.classes,
            config.k,
            config.temperature,
            context.device,
        )
        found.append(shares.argmax(dim=1) == truth)
    return found[0], found[1]


def votes(
    reference: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    device="cpu",
    chunk: int = 512,
) -> Tensor:
    """Each class's share [m, K] of the votes of the `k` rows of `reference` [n, D] nearest to `queries` [m, D]."""
    import torch
    from torch.nn.functional import normalize, one_hot

    k = min(k, len(reference))
    known = normalize(reference, dim=1).to(device)
    labels = labels.to(device)
    shares = []
    for asked in queries.split(chunk):
        near = (normalize(asked, dim=1).to(device) @ known.T).topk(k, dim=1)
        weight = (near.values / temperature).softmax(dim=1)
        # A sum over one-hot rows, not a scatter: on a GPU that would add in no fixed order.
        shares.append((one_hot(labels[near.indices], classes) * weight[..., None]).sum(dim=1).cpu())
    return torch.cat(shares)
