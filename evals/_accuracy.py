"""Accuracies of guessed classes, as Numbers: top-1, and the mean over classes where the data set's papers report it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.dataset import Dataset
    from harness.records import Number

# Shapes: n test images.


def accuracies(
    key: str, title: str, guesses: Sequence[Tensor], labels: Tensor, data: Dataset, **about: Any
) -> dict[str, Number]:
    """Of `guesses` [n], one for each of the eval's seeds, against `labels` [n]; `about` is the rest of a Number.

    `KEY_top1`, and `KEY_mean_class` where that is the data set's metric.
    """
    from harness.evaluation import measured
    from harness.hits import packed

    kinds = {f"{key}_top1": ("top-1", top1)}
    if data.metric == "mean-per-class":
        kinds[f"{key}_mean_class"] = ("mean per class", mean_per_class)
    return {
        name: measured(
            [score(guess, labels) for guess in guesses],
            title=f"{title} {said} %",
            better="higher",
            n=len(labels),
            hits=packed([guess == labels for guess in guesses]) if score is top1 else None,
            **about,
        )
        for name, (said, score) in kinds.items()
    }


def top1(guess: Tensor, labels: Tensor) -> float:
    """In per cent."""
    return 100.0 * (guess == labels).double().mean().item()


def mean_per_class(guess: Tensor, labels: Tensor) -> float:
    """In per cent: each class that is among the labels counts alike, however many images it has."""
    import torch

    images = torch.bincount(labels).double()
    right = torch.bincount(labels[guess == labels], minlength=len(images)).double()
    there = images > 0
    return 100.0 * (right[there] / images[there]).mean().item()
