"""Fixtures that every test may use: one thread for torch, and a factory of small training runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tests' tensors are small: more threads only wait for each other


@pytest.fixture
def toy_run(tmp_path: Path) -> Callable:
    """`toy_run("30step", Toy, folder="a", ...)`: a Pretraining of a toy method in a folder of its own."""
    from tests.toys import training

    return lambda budget, method=None, folder="run", **settings: training(tmp_path / folder, budget, method, **settings)
