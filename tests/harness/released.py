"""What tests of released weights share."""

from __future__ import annotations

from pathlib import Path

QUICK = ["--evals", "knn,generation", "generation.samples=100", "generation.kernel_size=50"]


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)
