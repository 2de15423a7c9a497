"""kNN: a vote of the k most similar training images, with nothing to choose (card evaluation, section 2).

The rule is DINOv2's: L2-normalised features, cosine similarity, votes weighted by exp(similarity / T), k = 20,
T = 0.07. Features of masked and diffusion models share a large common direction, so a second number subtracts the
training mean before normalising. The tap is the one that the linear probe reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness.evaluation import Context, Outcome

# Shapes: n training images, m queries, D feature width, K classes.

TITLE = "k nearest neighbours"
PROTOCOL = 2
NEEDS = "features"


@dataclass(frozen=True)
class Config:
    taps: int = 4  # as for the linear probe, whose choice this eval shares
    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.taps < 1 or self.k < 1 or self.temperature <= 0:
            raise ValueError("taps and k must be at least 1, temperature positive")


def recipe(size: str) -> Config:
    """The same for every size."""
    return Config()


def evaluate(context: Context, config: Config) -> Outcome:
    from harness.evaluation import Outcome

    choice = context.choose_tap(config.taps)
    reference, labels = context.train_features(choice.tap)
    queries, truth = context.features([choice.tap], "test")[choice.tap], context.labels("test")
    mean = reference.double().mean(dim=0).float()
    classes = context.data.spec.classes
    numbers = {}
    for key, title, shift in (
        ("knn_top1", "kNN top-1 %", mean * 0),
        ("knn_centred_top1", "kNN (centred) top-1 %", mean),
    ):
        shares = votes(
            reference - shift, labels, queries - shift, classes, config.k, config.temperature, context.device
        )
        numbers[key] = _number(title, shares.argmax(dim=1) == truth, config, context.cheap)
    return Outcome(numbers, {"tap": str(choice.tap), "tap_scores": choice.scores}, choice.trials)


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


def _number(title: str, right: Tensor, config: Config, cheap: bool):
    from harness.records import Number

    return Number(
        value=100.0 * right.double().mean().item(),
        title=title,
        table="representation",
        better="higher",
        n=len(right),
        note=f"k = {config.k}, cosine, T = {config.temperature:g}" + ("" if cheap else "; reference: all of train"),
    )
