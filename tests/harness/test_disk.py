"""A full disk, and a folder that cannot be written: clear errors, and nothing half written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import CannotWrite
from harness.files import write_atomic


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; `mount` again with other options through the returned function."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(small_disk: Path):
    path = small_disk / "record.json"
    write_atomic(path, "old")
    with pytest.raises(CannotWrite, match="no space left to write"):
        write_atomic(path, bytes(1 << 20))
    assert path.read_text() == "old"
    assert [p.name for p in small_disk.iterdir()] == ["record.json"]


def test_a_folder_that_cannot_be_written(small_disk: Path):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CannotWrite, match="no permission to write") as caught:
        write_atomic(small_disk / "new/record.json", "x")
    assert "--out" in str(caught.value)


@pytest.mark.slow
def test_run_on_a_full_disk_stops_with_the_error(small_disk: Path):
    words = ["--methods", "mae", "--budget", "5step", "--evals", "knn", "train.batch_size=8", "--out", str(small_disk)]
    done = subprocess.run([sys.executable, "-m", "harness", "run", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no space left to write" in done.stderr and "Traceback" not in done.stderr
