"""How tests of pre-training read what a run left."""

from __future__ import annotations

import json

import torch

from harness import checkpoint
from harness.train.pretraining import Pretraining


def snapshot(run: Pretraining, share: float = 1.0) -> dict[str, torch.Tensor]:
    path = checkpoint.find_snapshot(run.folder.snapshots, share)
    assert path is not None, f"no snapshot at {share}"
    return checkpoint.load_snapshot(path)


def snapshots(run: Pretraining) -> list[str]:
    """Their names, which hold the checksums of their contents."""
    return sorted(path.name for path in run.folder.snapshots.iterdir())


def log_lines(run: Pretraining) -> list[dict]:
    return [json.loads(text) for text in run.folder.log.read_text().splitlines()]


def trained(run: Pretraining) -> list[float]:
    """The progress of every step of the last stage, those that measured its cost and warmed up left out."""
    return run.method.progresses[-run.stage.step :]
