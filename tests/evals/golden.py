"""The pseudo-random matrices of the evaluation card, section 7.5."""

from __future__ import annotations

import numpy as np


def h(rows, columns) -> np.ndarray:
    """h(i, j) = 2 frac(43758.5453 sin(12.9898 (i + 1) + 78.233 (j + 1))) - 1 for all i in `rows`, j in `columns`."""
    i, j = np.asarray(list(rows))[:, None], np.asarray(list(columns))[None, :]
    value = 43758.5453 * np.sin(12.9898 * (i + 1) + 78.233 * (j + 1))
    return 2 * (value - np.floor(value)) - 1


A = h(range(64), range(8))
B = 0.8 * h(range(1000, 1064), range(8)) + 0.3
