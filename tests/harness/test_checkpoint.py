"""Checkpoints and snapshots: whole or not there, known by their checksum, plain values only."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from harness import checkpoint
from harness.errors import HarnessError


def payload(step: int) -> dict:
    return {"weights": torch.arange(4) + step, "counters": [step, 0.5], "names": {"a": None, "b": "text"}}


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("step-*.pt"))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, payload(3))
    loaded, notices = checkpoint.load_latest(tmp_path, "cpu")
    assert torch.equal(loaded["weights"], torch.arange(4) + 3)
    assert (loaded["counters"], loaded["names"]) == ([3, 0.5], {"a": None, "b": "text"})
    assert notices == []


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "nothing", "cpu") == (None, [])
    assert checkpoint.find_snapshot(tmp_path / "nothing", 1.0) is None


def test_the_newest_two_are_kept_and_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    (tmp_path / ".step-000000001-0.pt.1234.tmp").write_bytes(b"half")
    for step in (8, 9, 10, 11):
        checkpoint.save(tmp_path, step, payload(step))
    assert steps(tmp_path) == [10, 11]
    assert not list(tmp_path.glob(".*"))
    checkpoint.prune(tmp_path, keep=1)
    assert steps(tmp_path) == [11]


def test_of_one_step_the_one_written_last_counts(tmp_path: Path) -> None:
    """A stage ends and the next begins at the same step: both save, and only the checksums differ."""
    checkpoint.save(tmp_path, 4, payload(4))
    for mark in range(8):
        checkpoint.save(tmp_path, 5, {"mark": mark})
        loaded, _ = checkpoint.load_latest(tmp_path, "cpu")
        assert loaded == {"mark": mark}
    assert steps(tmp_path) == [4, 5]


@pytest.mark.parametrize("damage", ["truncated", "edited", "empty"])
def test_a_damaged_newest_is_set_aside_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, 1, payload(1))
    newest = checkpoint.save(tmp_path, 2, payload(2))
    data = newest.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    newest.write_bytes({"truncated": data[:middle], "edited": flipped, "empty": b""}[damage])
    loaded, notices = checkpoint.load_latest(tmp_path, "cpu")
    assert loaded["counters"] == [1, 0.5]
    assert len(notices) == 1 and newest.name in notices[0] and "damaged" in notices[0]
    assert newest.with_suffix(".damaged").exists() and not newest.exists()
    assert checkpoint.load_latest(tmp_path, "cpu")[1] == [], "the user is told once"


def test_when_all_are_damaged_the_run_starts_again_and_says_so(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, payload(step)).write_bytes(b"gone")
    loaded, notices = checkpoint.load_latest(tmp_path, "cpu")
    assert loaded is None and len(notices) == 2


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("made-by-a-checkpoint",)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "c", 1, {"evil": Code()})
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_latest(tmp_path / "c", "cpu")
    assert not (tmp_path / "made-by-a-checkpoint").exists()


STATE = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.int64), "half": torch.ones(2).bfloat16()}


def test_a_snapshot_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    path = checkpoint.save_snapshot(tmp_path, 0.125, STATE | {"view": STATE["b"].T})
    assert path == checkpoint.find_snapshot(tmp_path, 0.125)
    loaded = checkpoint.load_snapshot(path)
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    assert torch.equal(loaded["view"], STATE["b"].T)
    assert loaded["half"].dtype == torch.bfloat16


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    one = checkpoint.save_snapshot(tmp_path / "1", 1.0, STATE)
    two = checkpoint.save_snapshot(tmp_path / "2", 1.0, {name: STATE[name].clone() for name in reversed(STATE)})
    other = checkpoint.save_snapshot(tmp_path / "3", 1.0, STATE | {"a": torch.zeros(3, dtype=torch.int64)})
    assert one.name == two.name and one.read_bytes() == two.read_bytes()
    assert other.name != one.name


def test_a_snapshot_replaces_that_of_its_share_alone(tmp_path: Path) -> None:
    checkpoint.save_snapshot(tmp_path, 0.5, STATE)
    kept = checkpoint.save_snapshot(tmp_path, 0.25, STATE)
    new = checkpoint.save_snapshot(tmp_path, 0.5, {"a": torch.zeros(1)})
    assert sorted(tmp_path.iterdir()) == sorted([kept, new])
    assert checkpoint.save_snapshot(tmp_path, 0.5, {"a": torch.zeros(1)}) == new and new.exists()


def test_a_tampered_snapshot_is_refused_by_name(tmp_path: Path) -> None:
    path = checkpoint.save_snapshot(tmp_path / "snapshots", 1.0, STATE)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(HarnessError, match="damaged") as caught:
        checkpoint.load_snapshot(path)
    assert str(path) in caught.value.found and str(tmp_path) in caught.value.next_step


def test_tied_weights_are_written_under_both_names(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    path = checkpoint.save_snapshot(tmp_path, 1.0, {"in": shared, "out": shared, "part": shared[:2]})
    loaded = checkpoint.load_snapshot(path)
    assert torch.equal(loaded["in"], shared) and torch.equal(loaded["out"], shared)
    assert torch.equal(loaded["part"], shared[:2])
