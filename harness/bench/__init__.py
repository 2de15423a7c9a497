"""Speed as ratios: each pair of things measured side by side in one run, so that only their ratio has to be trusted.

Absolute figures of a shared machine move with its neighbours; interleaved rounds put the same neighbours on both sides.
Nothing here is a test, and no test asserts a time.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import unknown

BENCHES = ("train", "evals", "startup")
# Threads that spin while they wait turn a busy neighbour into steps of seconds. Read once, when torch is loaded.
PASSIVE = ("OMP_WAIT_POLICY", "passive")


def run_bench(what: str, reference: Path | None = None, data_dir: Path | None = None) -> None:
    """Measure and print one of BENCHES; `reference` is a checkout of the reference MAE, which `train` needs."""
    if what == "train":
        from harness.bench.train import bench

        bench(reference, data_dir)
    elif what == "evals":
        os.environ.setdefault(*PASSIVE)
        from harness.bench.evals import bench

        bench(data_dir)
    elif what == "startup":
        from harness.bench.startup import bench

        bench()
    else:
        raise unknown("bench", what, BENCHES, "python -m harness bench startup")
