"""Speed as ratios: each pair of things measured side by side in one run, so that only their ratio has to be trusted.

Absolute figures of a shared machine move with its neighbours; interleaved rounds put the same neighbours on both sides.
Nothing here is a test, and no test asserts a time.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import unknown

BENCHES = ("train", "evals", "grid", "startup", "tables", "page")
# Threads that spin while they wait turn a busy neighbour into steps of seconds. Read once, when torch is loaded.
PASSIVE = ("OMP_WAIT_POLICY", "passive")


def run_bench(
    what: str,
    reference: Path | None = None,
    data_dir: Path | None = None,
    method: str = "mae",
    sizes: str | None = None,
    runs: int | None = None,
) -> None:
    """Measure and print one of BENCHES; `train` needs a checkout of the `method`'s own code, `reference`.

    Raises HarnessError for an unknown bench and for one whose needs (a checkout, a data set, a browser) are not here.
    """
    if what == "train":
        from harness.bench.train import SIZES, bench

        bench(reference, data_dir, method, tuple(sizes.split(",")) if sizes else SIZES)
    elif what == "evals":
        os.environ.setdefault(*PASSIVE)
        from harness.bench.evals import bench

        bench(data_dir)
    elif what == "grid":
        os.environ.setdefault(*PASSIVE)
        from harness.bench.grid import bench

        bench(data_dir)
    elif what == "startup":
        from harness.bench.startup import bench

        bench()
    elif what == "tables":
        from harness.bench.tables import bench

        bench()
    elif what == "page":
        from harness.bench.page import RUNS, bench

        bench(RUNS if runs is None else runs)
    else:
        raise unknown("bench", what, BENCHES, "python -m harness bench startup")
