"""Fixtures that every test may use: one thread for torch, no cluster from outside, a factory of small training runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tests' tensors are small: more threads only wait for each other

# Whether pytest runs in a job of a cluster or on a login node, no test may see that cluster, let alone submit to it:
# with an empty configuration file every command of SLURM's fails at once. The fixtures of tests/cluster set their own.
OUTSIDE = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SUBMITIT_", "PMI")
for name in [name for name in os.environ if name.startswith(OUTSIDE)]:
    del os.environ[name]
os.environ["SLURM_CONF"] = os.devnull


@pytest.fixture
def toy_run(tmp_path: Path) -> Callable:
    """`toy_run("30step", Toy, folder="a", ...)`: a Pretraining of a toy method in a folder of its own."""
    from tests.toys import training

    return lambda budget, method=None, folder="run", **settings: training(tmp_path / folder, budget, method, **settings)
