"""Rehearsals of methods that another package brings: one that resumes to the bit, and some that do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.plugins import card

METHOD = """
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from harness.method import Loss, Method, Optim, Tap


@dataclass(frozen=True)
class Config:
    width: int = 8


class Sound(Method):
    Config = Config
    sizes = ("nano",)

    def __init__(self, config, data):
        super().__init__()
        self.config, self.data = config, data
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(data.channels * data.size**2, config.width))
        self.seen = 0

    @classmethod
    def recipe(cls, size, data):
        return Config()

    def target(self, batch, rng):
        return rng.normal("target", (len(batch.images), 1))

    def pretrain(self, batch, progress, rng):
        time.sleep(0.01)
        loss = F.mse_loss(self.net(batch.images), self.target(batch, rng).expand(-1, self.net[1].out_features))
        return Loss(loss, {"mse": loss.detach()})

    def optim(self, batch_size):
        return Optim(1e-2)

    def taps(self):
        return [Tap("net")]

    def features(self, images, taps, rng, dense=False):
        return [self.net(images) for _ in taps]


class Hidden(Sound):
    def target(self, batch, rng):
        self.seen += 1
        return super().target(batch, rng) * self.seen


class Drawn(Sound):
    def target(self, batch, rng):
        return torch.randn(len(batch.images), 1)


class Forgetful(Sound):
    def load_state_dict(self, state, *words, **options):
        raise RuntimeError("these weights are not mine")


class Sizeless(Sound):
    sizes = ("s", "b")
"""
NAMES = ("sound", "hidden", "drawn", "forgetful", "sizeless")


@pytest.fixture(autouse=True)
def installed(tmp_path_factory, monkeypatch) -> None:
    """A package with five methods, found by its entry points in this process and in those that it starts."""
    root = tmp_path_factory.mktemp("installed")
    (root / "rehearsed").mkdir()
    (root / "rehearsed/__init__.py").touch()
    (root / "rehearsed/method.py").write_text(METHOD)
    (root / "rehearsed/card.toml").write_text('title = "Rehearsed"\n')
    points = "".join(f"{name} = rehearsed.method:{name.title()}\n" for name in NAMES)
    about = root / "rehearsed-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rehearsed\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[harness.methods]\n{points}")
    monkeypatch.syspath_prepend(root)
    monkeypatch.setenv("PYTHONPATH", str(root), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    card.cache_clear()


def rehearse(harness, *words: object) -> tuple[int, str, str]:
    return harness("rehearse", *words, "--steps", 16, "train.batch_size=8", "train.snapshots=[0.5]")


def rows(out: str) -> list[tuple[int, int, str]]:
    """From which step to which each attempt went, and what ended it."""
    found = re.findall(r"^ +\d+ +(\d+) +\d+\.\d\d +(\d+)  (.+) in train$", out, re.M)
    return [(int(began), int(reached), ended_by) for began, reached, ended_by in found]


@pytest.mark.slow
def test_a_method_that_resumes_is_bit_equal_and_nothing_is_left(harness, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, out, _ = rehearse(harness, "sound", "--kills", 2, "sound.width=6")
    assert status == 0, (out, _)
    assert "bit-equal 1.0000-" in out and "16 steps, 128 img" in out and "in 3 attempts" in out
    first, second, last = rows(out)
    assert {first[2], second[2]} == {"SIGKILL", "SIGTERM"} and last[2] == "its end"
    assert first[0] == 0 and 0 <= second[0] <= first[1] + 1 and first[1] < second[1] < last[1] == 16
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_state_outside_the_checkpoint_is_caught_and_named(harness, tmp_path):
    status, out, _ = rehearse(harness, "hidden", "--kills", 1, "--out", tmp_path / "kept")
    assert status == 1, (out, _)
    assert "snapshots that differ: at" in out and re.search(r"net\.1\.weight: \d+ of 512 values differ, by up to", out)
    assert "hidden keeps something that no checkpoint holds" in out and "Hidden.seen: 0 became 1" in out
    assert "register_buffer" in out
    assert f"kept      {tmp_path / 'kept'}" in out and list(tmp_path.glob("kept/killed/runs/*/run.json"))


def test_hidden_state_is_found_by_looking(installed):
    from harness.rehearse import hidden
    from harness.resolve import jobs
    from harness.study import build

    def found(method: str) -> list[str]:
        asked = {"methods": method, "budget": "8step", "train": {"batch_size": 8}}
        return hidden.state(jobs(build(asked))[0])

    assert found("sound") == []
    assert [line.partition(":")[0] for line in found("hidden")] == ["Hidden.seen"]
    assert found("drawn") == ["torch's global generator, drawn from in training"]


@pytest.mark.slow
def test_an_attempt_that_cannot_resume_is_told_with_its_reason(harness, tmp_path):
    status, out, _ = rehearse(harness, "forgetful", "--kills", 1, "--out", tmp_path / "kept")
    assert status == 1, (out, _)
    assert "ended as failed: RuntimeError: these weights are not mine" in out


@pytest.mark.parametrize(
    ("words", "complaint", "help_"),
    [
        (["sizeless"], "sizeless has no size 'nano'", "--size s"),
        (["sound", "budget=1min"], "the clock decides how many steps", "--steps 40"),
        (["sound", "seeds=2"], "2 runs in a rehearsal", "one at a time"),
        (["sound", "evals=knn"], "evals in a rehearsal", "leave it out"),
        (["sound", "train.log_s=1"], "train.log_s in a rehearsal", "leave it out"),
        (["sound", "--kills", "0"], "--kills 0", "at least 1"),
        (["sond"], "unknown method 'sond'", "did you mean 'sound'?"),
        (["sound", "sound.widht=3"], "'sound.widht'", "sound.width"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused_before_any_work(harness, tmp_path, words, complaint, help_):
    status, _, err = harness("rehearse", *words, "--out", tmp_path / "out")
    assert status == 2
    assert complaint in err and help_ in err
    assert not (tmp_path / "out").exists()


def test_more_kills_than_steps_are_refused():
    from harness.errors import HarnessError
    from harness.rehearse.command import _blows

    with pytest.raises(HarnessError, match="4 kills in 4 steps"):
        _blows(4, 4, 0.1, 0)


def test_blows_follow_from_the_seed_and_go_forward():
    from harness.rehearse.command import _blows

    blows = _blows(40, 6, 0.1, 3)
    steps = [blow.step for blow in blows]
    assert steps == sorted(set(steps)) and steps[0] >= 1 and steps[-1] < 40
    assert [blow.number.name for blow in blows].count("SIGTERM") == 2
    assert all(0 <= blow.late_s < 0.1 for blow in blows)
    assert blows == _blows(40, 6, 0.1, 3) != _blows(40, 6, 0.1, 4)


def test_a_torn_line_and_lines_of_earlier_attempts_do_not_aim_a_blow(tmp_path):
    from harness.rehearse.process import _lines

    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 9, "loss": 1}\n{"step": 10, "lo')
    start = log.stat().st_size
    with log.open("a") as file:
        file.write('\n{"step": 4, "event": "resumed"}\n{"step": 5, "loss": 2}\n{"st')
    assert [line["step"] for line in _lines(log, start)] == [4, 5]
    assert [line["step"] for line in _lines(log, 0)] == [9, 4, 5]
