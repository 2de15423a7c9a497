"""Two runs of one cell, compared: every snapshot tensor by tensor, and what each has spent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from harness import checkpoint
from harness.errors import HarnessError
from harness.records import RunRecord
from harness.store import RunFolder

SHOWN = 8  # tensors
COUNTED = ("step", "img", "epoch", "flop")  # what a count budget fixes


def differences(one: RunRecord, one_folder: RunFolder, two: RunRecord, two_folder: RunFolder) -> list[str]:
    """A line for whatever of the second run is not the first's, to the bit; none where all is equal.

    Seconds are not compared: they differ between any two runs.
    """
    found = []
    for name in COUNTED:
        mine, theirs = getattr(one.spend, name), getattr(two.spend, name)
        if mine != theirs:
            found.append(f"spend: {mine:.12g} {name} became {theirs:.12g}")
    if one.snapshots.keys() != two.snapshots.keys():
        found.append(f"snapshots at {', '.join(one.snapshots)} became snapshots at {', '.join(two.snapshots)}")
    shares = sorted(one.snapshots.keys() & two.snapshots.keys())
    unlike = [share for share in shares if weights(one_folder, share).name != weights(two_folder, share).name]
    if unlike:
        found.append(
            f"snapshots that differ: at {', '.join(unlike)}; equal: at {', '.join(set(shares) - {*unlike}) or 'none'}"
        )
        found += tensors(weights(one_folder, unlike[-1]), weights(two_folder, unlike[-1]))
    return found


def weights(folder: RunFolder, share: str) -> Path:
    """The snapshot's file, whose name carries the checksum of its content."""
    path = checkpoint.find_snapshot(folder.snapshots, float(share))
    if path is None:
        raise HarnessError(f"no snapshot at {share} in {folder.snapshots}", "the file that the run's record names")
    return path


def tensors(one: Path, two: Path) -> list[str]:
    """What differs between two files of weights: a line for each tensor, the widest apart first."""
    mine, theirs = checkpoint.load_snapshot(one), checkpoint.load_snapshot(two)
    lines = [f"{name}: in one of the two only" for name in sorted(mine.keys() ^ theirs.keys())]
    apart = dict(_apart(mine, theirs))
    for name in sorted(apart, key=lambda name: -apart[name][1])[:SHOWN]:
        count, most = apart[name]
        lines.append(f"{name}: {count} of {mine[name].numel()} values differ, by up to {most:.3g}")
    if len(apart) > SHOWN:
        lines.append(f"and {len(apart) - SHOWN} tensors more, of {len(mine)}")
    return lines


def _apart(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> Iterator[tuple[str, tuple[int, float]]]:
    """Of each tensor that both have and that is not equal: how many values differ, and by how much at most."""
    for name in sorted(mine.keys() & theirs.keys()):
        a, b = mine[name], theirs[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            yield name, (a.numel(), float("inf"))
            continue
        unlike = (a != b) & ~(a.isnan() & b.isnan()) if a.is_floating_point() else a != b
        if unlike.any():
            yield name, (int(unlike.sum()), float((a.double() - b.double())[unlike].abs().max()))
