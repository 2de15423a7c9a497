"""What all evals have in common, as one versioned object: its version is in every record, and tables mix no versions.

An eval's own rule has a version of its own, `PROTOCOL` in its module.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    version: int = 1
    chunk: int = 256  # images per pass; the noise of a noisy tap is drawn per chunk
    candidates: int = 4  # taps that a choice is made from, for every method
    choice_images: int = 10_000  # of fit, at most, that a tap is chosen with
    ridge: float = 1e-2  # on the correlation matrix of standardised features; fixed, so that only the tap is tried
    seeds: int = 3  # repeats of what is random in an eval
    quick: tuple[tuple[str, int], ...] = (("fit", 5_000), ("select", 1_000), ("test", 2_000))  # images, on snapshots
    quick_choice: float = 1 / 3  # of select that choices on snapshots are made on; the rest is what is scored


COMMON = Protocol()

# The rows beside the methods (evals/_references.py), and the verbs that each has: it joins the evals that need one.
REFERENCES = {"raw pixels": ("features",), "real images": ("sample",), "mean image": ("sample",)}
