"""Which test images were guessed right, as a record keeps it: a bit for each, so that tables can compare two methods
image by image (card evaluation, section 9)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import HarnessError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

# Shapes: n test images, in the order of the data set; r repeats of an eval, one for each of its own seeds.


def packed(right: Sequence[Tensor]) -> str:
    """Bools [n], one tensor for each repeat, as base64 of their bits; each repeat begins with a new byte."""
    rows = np.stack([one.cpu().numpy().astype(bool) for one in right])
    return base64.b64encode(np.packbits(rows, axis=1).tobytes()).decode()


def share(text: str, n: int) -> NDArray[np.float64]:
    """[n] in [0, 1]: over how many of the repeats each image was guessed right.

    Raises HarnessError where the text is not that of `n` images.
    """
    width = -(-n // 8)
    try:
        raw = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
        rows = raw.reshape(-1, width)
    except (binascii.Error, ValueError):
        rows = np.empty((0, width), dtype=np.uint8)
    if not len(rows):
        raise HarnessError(f"hits of {len(text)} characters, and n is {n}", "a bit for each test image")
    return np.unpackbits(rows, axis=1, count=n).mean(axis=0)
