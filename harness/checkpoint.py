"""Checkpoints: tensors and plain values only, whole or not there, with their checksum in their name.

`step-000000300-1f0c9a….pt`: the digits are the start of the content's SHA-256, so name and content arrive in one rename
and a truncated or edited file is known when it is read. The previous one stays until the next is whole.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.files import write_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DIGITS = 16


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def save(folder: Path, step: int, payload: dict[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint and drop all but the newest `keep`."""
    import torch

    buffer = io.BytesIO()
    torch.save(payload, buffer)
    data = buffer.getvalue()
    path = folder / f"step-{step:09d}-{_digest(data)}.pt"
    older = [p for p in folder.glob(f"step-{step:09d}-*.pt") if p != path]
    write_atomic(path, data)
    for stale in older:  # a stage ends and the next begins at one step: the name cannot say which came last
        stale.unlink(missing_ok=True)
    prune(folder, keep)
    return path


def prune(folder: Path, keep: int) -> None:
    """Drop all but the newest `keep` checkpoints, and what killed writers left behind."""
    for path in sorted(folder.glob("step-*.pt"))[:-keep]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint; whole where `load_latest` has just looked."""
    return max(folder.glob("step-*.pt"), default=None)


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """The checkpoint that another process of the job found whole. Raises HarnessError where it is not so from here."""
    data = path.read_bytes() if path.exists() else b""
    if path.stem.rpartition("-")[2] != _digest(data):
        raise HarnessError(
            f"the checkpoint {path} is not the same file for every process of the job",
            "one folder that all nodes see alike",
            "choose a folder on a file system that all nodes share with --out",
        )
    return _loaded(data, device)


def load_latest(folder: Path, device: torch.device | str) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest whole checkpoint, and a line for each damaged one that was set aside (renamed `.damaged`)."""
    notices = []
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # an earlier copy of this job, about to stop, has just pruned it
            continue
        if path.stem.rpartition("-")[2] == _digest(data):
            return _loaded(data, device), notices
        aside = path.with_suffix(".damaged")
        path.rename(aside)
        notices.append(
            f"checkpoint {path.name} is damaged (its content does not match the checksum in its name); "
            f"it was set aside as {aside.name} and the one before it is used"
        )
    return None, notices


def _loaded(data: bytes, device: torch.device | str) -> dict[str, Any]:
    import torch

    return torch.load(io.BytesIO(data), map_location=device, weights_only=True)


def save_snapshot(folder: Path, share: float, state: dict[str, Tensor]) -> Path:
    """Write the weights that evals read, at a share of the budget; replaces an earlier one of that share."""
    from safetensors.torch import save as to_bytes

    data = to_bytes(apart(state))
    path = folder / f"{share:.4f}-{_digest(data)}.safetensors"
    older = [p for p in folder.glob(f"{share:.4f}-*.safetensors") if p != path]
    write_atomic(path, data)
    for stale in older:
        stale.unlink(missing_ok=True)
    return path


def apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on CPU, each in memory of its own, which the format asks for: tied weights are written twice."""
    alone: dict[str, Tensor] = {}
    taken = set()
    for name, tensor in state.items():
        whole = tensor.detach().cpu().contiguous()
        memory = whole.untyped_storage().data_ptr()
        alone[name] = whole.clone() if memory in taken else whole
        taken.add(memory)
    return alone


def find_snapshot(folder: Path, share: float) -> Path | None:
    return next(iter(sorted(folder.glob(f"{share:.4f}-*.safetensors"))), None)


def load_snapshot(path: Path) -> dict[str, Tensor]:
    """A snapshot's tensors, on CPU. Raises HarnessError when the file is damaged."""
    from safetensors.torch import load

    data = path.read_bytes()
    if path.stem.rpartition("-")[2] != _digest(data):
        raise HarnessError(
            f"the snapshot {path} is damaged (its content does not match the checksum in its name)",
            "the file as the run wrote it",
            f"delete the run's folder {path.parent.parent} and repeat the command",
        )
    return load(data)
