"""What every method promises of a run: it resumes to the same bits, and never sees the test split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.budget import parse_budget
from harness.checkpoint import find_snapshot
from harness.data.dataset import Dataset
from harness.rng import Rng
from harness.store import RunFolder
from harness.train.pretraining import Interrupted, Pretraining
from harness.train.settings import TrainConfig
from tests.contract.conftest import build

STEPS = 12
SETTINGS = TrainConfig(precision="fp32", checkpoint_s=1e9, log_s=1e9)


def pretraining(method, digits, folder: Path, stop_at: int | None = None) -> Pretraining:
    work = Pretraining(
        method=method,
        fit=digits.fit.subset(torch.arange(96)),
        mirror=digits.mirror,
        budget=parse_budget(f"{STEPS}step"),
        settings=replace(SETTINGS),
        batch_size=16,
        folder=RunFolder(folder),
        rng=Rng(3),
        device=torch.device("cpu"),
    )
    if stop_at is not None:
        work.should_stop = lambda: work.step >= stop_at
    return work


@pytest.mark.parametrize("stop_at", [1, 7])
def test_a_stopped_run_goes_on_to_the_same_bits(method_class, digits, tmp_path, stop_at):
    pretraining(build(method_class, digits), digits, tmp_path / "whole").run()
    with pytest.raises(Interrupted):
        pretraining(build(method_class, digits), digits, tmp_path / "broken", stop_at).run()
    pretraining(build(method_class, digits), digits, tmp_path / "broken").run()
    whole, broken = (find_snapshot(tmp_path / name / "snapshots", 1.0) for name in ("whole", "broken"))
    assert whole.name == broken.name  # the name carries the content's checksum


def test_training_never_opens_the_test_split(method_class, digits, tmp_path, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("training asked for the test split")

    monkeypatch.setattr(Dataset, "open_test", opened)  # of any data set, also of one that a method loads by itself
    pretraining(build(method_class, digits), digits, tmp_path).run()
