"""Killed at any moment and started again, a run ends in the bits of the unbroken one, and nothing is kept twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = [
    "--methods", "lmd", "--budget", "120step", "--evals", "knn", "--name", "kill",
    "train.batch_size=32", "train.snapshots=[0.5]", "train.checkpoint_s=0.2", "train.log_s=0.2",
]  # fmt: skip


# In the preparation, with the latents just cached, in training, past half of it, and between two evals.
MOMENTS = [f"kill/runs/*/{place}" for place in (
    "run.json", "cache/*.safetensors", "checkpoints/step-*.pt", "snapshots/0.5*", "evals/1.0000/knn.json",
)]  # fmt: skip


def start(out: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "harness", "run", *WORDS, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def final_weights(out: Path) -> str:
    """The final snapshot's file name, which carries the checksum of its content."""
    (path,) = out.glob("kill/runs/*/snapshots/1.0000-*.safetensors")
    return path.name


def wait_for(out: Path, pattern: str) -> None:
    """Until a file is there; the moment a kill is aimed at."""
    deadline = time.monotonic() + 120
    while not any(out.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in two minutes"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    process = start(out)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_killed_and_repeated_is_the_unbroken_run(unbroken, tmp_path):
    aim = random.Random(11)
    for moment in MOMENTS:
        process = start(tmp_path)
        wait_for(tmp_path, moment)
        time.sleep(aim.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = start(tmp_path)
    _, err = last.communicate()
    assert last.returncode == 0, err
    assert final_weights(tmp_path) == final_weights(unbroken)
    (record,) = tmp_path.glob("kill/runs/*/run.json")
    run = json.loads(record.read_text())
    assert run["spend"]["step"] == 120 and run["spend"]["img"] == 120 * 32
    names = sorted(p.relative_to(tmp_path).parts[-2:] for p in tmp_path.glob("kill/runs/*/evals/*/*.json"))
    assert names == sorted(p.relative_to(unbroken).parts[-2:] for p in unbroken.glob("kill/runs/*/evals/*/*.json"))
    assert not list(tmp_path.glob("kill/**/.*.tmp")) and not list(tmp_path.glob("kill/runs/*/cache"))


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(unbroken, tmp_path):
    process = start(tmp_path)
    wait_for(tmp_path, "kill/runs/*/checkpoints/step-*.pt")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "Go on with:" in err and "python -m harness run --methods lmd" in err
    (record,) = tmp_path.glob("kill/runs/*/run.json")
    assert json.loads(record.read_text())["state"] in ("interrupted", "finished")
    (newest, *_) = sorted(tmp_path.glob("kill/runs/*/checkpoints/*.pt"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-100])  # and the last checkpoint is torn
    again = start(tmp_path)
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "is damaged" in out
    assert final_weights(tmp_path) == final_weights(unbroken)
