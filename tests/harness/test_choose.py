"""The ridge that chooses taps beside its closed form, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.evaluation.choose import Ridge, ridge_top1
from harness.method import Tap
from harness.protocol import COMMON
from tests.evals.golden import h

CLASSES = 4


def case() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Correlated features [n, 9] far from zero, whose last column never changes, and labels; to fit, and to ask."""
    labels = np.arange(150) % (CLASSES - 1), np.arange(80) % (CLASSES - 1)  # the last class has no image
    mixing = h(range(500, 509), range(9))
    fit, asked = (
        1000 + (h(range(start, start + len(y)), range(9)) + 0.6 * np.eye(CLASSES, 9)[y]) @ mixing
        for start, y in zip((0, 1000), labels, strict=True)
    )
    fit[:, -1] = asked[:, -1] = 3.0
    return fit, labels[0], asked, labels[1]


def scores(fit: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[m, K]: one-hot targets on standardised features, (Z'Z / n + ridge I)^-1 Z'(Y - mean Y) / n, by an inverse."""
    mean, scale = fit.mean(0), fit.std(0)
    scale[scale < 1e-9 * np.abs(mean)] = 1.0
    z, q, y = (fit - mean) / scale, (asked - mean) / scale, np.eye(CLASSES)[labels]
    inverse = np.linalg.inv(z.T @ z / len(z) + COMMON.ridge * np.eye(z.shape[1]))
    return q @ (inverse @ z.T @ (y - y.mean(0)) / len(z)) + y.mean(0)


@pytest.mark.parametrize("chunk", [150, 32])
def test_the_ridge_is_its_closed_form(chunk):
    fit, labels, asked, _ = case()
    ridge = Ridge(CLASSES)
    for start in range(0, len(fit), chunk):
        stop = start + chunk
        ridge.add(torch.from_numpy(fit[start:stop]), torch.from_numpy(labels[start:stop]))
    ridge.solve()
    expected = scores(fit, labels, asked)
    found = (torch.from_numpy(asked) - ridge._mean) @ ridge._weights + ridge._prior
    assert found.numpy() == pytest.approx(expected, abs=1e-10)
    assert (ridge.guess(torch.from_numpy(asked)).numpy() == expected.argmax(1)).all()


def test_the_score_of_a_tap_is_how_often_the_closed_form_is_right():
    fit, labels, asked, truth = case()
    taps = [Tap("whole"), Tap("less")]
    known, questions = ({taps[0]: torch.from_numpy(a), taps[1]: torch.from_numpy(a[:, 5:])} for a in (fit, asked))
    chunks = [
        [{tap: f[i : i + 40] for tap, f in a.items()} for i in range(0, n, 40)]
        for a, n in ((known, 150), (questions, 80))
    ]
    found = ridge_top1(taps, chunks[0], torch.from_numpy(labels), chunks[1], torch.from_numpy(truth), CLASSES)
    expected = [100 * (scores(fit[:, k:], labels, asked[:, k:]).argmax(1) == truth).mean() for k in (0, 5)]
    assert found == pytest.approx(expected) and expected[0] != expected[1]
