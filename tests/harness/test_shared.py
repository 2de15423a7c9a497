"""Methods that read one pre-training: trained once, evaluated again only where they would differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import methods
from harness.__main__ import main
from harness.errors import HarnessError
from harness.plugins import card
from harness.resolve import jobs
from harness.study import build

READER = """
from methods.mae.method import Mae
class {name}(Mae):
    pretrained_as = "mae"
    {body}
METHOD = {name}
"""
LAST_BLOCK_ONLY = "def taps(self): return super().taps()[:1]"
BUDGET = ["--budget", "6step", "train.batch_size=16", "train.snapshots=[0.5]"]


@pytest.fixture(autouse=True)
def readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods that read MAE's weights: one in the same way, one at another tap."""
    root = tmp_path / "methods"
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(root)])
    card.cache_clear()
    for name, body in {"alike": "pass", "other": LAST_BLOCK_ONLY}.items():
        (root / name).mkdir(parents=True)
        (root / name / "method.py").write_text(READER.format(name=name, body=body))
        (root / name / "card.toml").write_text(f'title = "{name}"\nnotes = ["of {name}"]\n')
    yield
    card.cache_clear()
    for name in [m for m in sys.modules if m.startswith(("methods.alike", "methods.other"))]:
        del sys.modules[name]


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def records(study: Path, pattern: str) -> dict[str, dict]:
    return {(r := json.loads(p.read_text()))["cell"]["method"]: r for p in study.glob(f"runs/*/{pattern}")}


def test_one_pre_training_serves_its_readers(tmp_path, monkeypatch, capsys):
    words = ["--methods", "alike,other,mae", "--evals", "knn,generation", "generation.samples=100", *BUDGET]
    words += ["--name", "s", "--out", str(tmp_path)]
    assert run_command(monkeypatch, "run", *words) == 0
    printed = capsys.readouterr().out
    study = tmp_path / "s"
    runs = records(study, "run.json")
    assert set(runs) == {"mae", "alike", "other"}
    assert runs["mae"]["shared"] is None and (study / "runs" / runs["mae"]["key"] / "checkpoints").exists()
    for name in ("alike", "other"):
        own = study / "runs" / runs[name]["key"]
        assert runs[name]["shared"] == runs["mae"]["key"]
        assert runs[name]["spend"] == runs["mae"]["spend"]  # in full
        assert not (own / "checkpoints").exists()  # nothing was trained here
        assert f"of {name}" in runs[name]["notes"]
    assert "trained once" in printed
    taken, done = records(study, "evals/1.0000/knn.json"), records(study, "evals/1.0000/generation.json")
    assert taken["alike"]["shared"] == runs["mae"]["key"] and taken["alike"]["numbers"] == taken["mae"]["numbers"]
    assert taken["other"]["shared"] is None and taken["other"]["trials"] == 1  # its own tap: evaluated for itself
    assert done["other"]["shared"] == done["alike"]["shared"] == runs["mae"]["key"]  # all three draw alike
    for picture in done["other"]["pictures"]:
        assert (study / "runs" / runs["other"]["key"] / "evals/1.0000" / picture).is_file()
    before = {p: p.stat().st_mtime_ns for p in study.glob("runs/**/*.json")}
    assert run_command(monkeypatch, "run", *words) == 0
    assert {p: p.stat().st_mtime_ns for p in study.glob("runs/**/*.json")} == before


def test_a_reader_alone_trains_what_it_reads(tmp_path, monkeypatch, capsys):
    words = ["--methods", "alike", "--evals", "knn", *BUDGET, "--name", "s", "--out", str(tmp_path)]
    assert run_command(monkeypatch, "run", *words) == 0
    assert set(records(tmp_path / "s", "run.json")) == {"mae", "alike"}
    assert set(records(tmp_path / "s", "evals/1.0000/knn.json")) == {"alike"}
    rows = (tmp_path / "s/tables/tables.csv").read_text()
    assert ",alike," in rows and ",MAE," not in rows  # only what was asked for has a row


def test_the_plan_charges_it_once(tmp_path, monkeypatch, capsys):
    words = ["--methods", "mae,alike,other", "--budget", "10min", "--out", str(tmp_path)]
    assert run_command(monkeypatch, "plan", *words) == 0
    printed = capsys.readouterr().out
    assert printed.count("shared with mae") == 2
    assert "still to charge: 10:00" in printed


def test_settings_of_what_is_read_hold_for_its_readers():
    asked = {"methods": "mae,alike,other", "budget": "6step", "mae": {"mask_ratio": 0.5}, "other": {"mask_ratio": 0.6}}
    mae, alike, other = jobs(build(asked))
    assert [job.config.mask_ratio for job in (mae, alike, other)] == [0.5, 0.5, 0.6]
    assert alike.source.key == mae.key
    assert other.source.key != mae.key  # other settings are another pre-training


def test_a_reader_with_a_config_of_its_own_is_refused(tmp_path):
    path = tmp_path / "methods" / "other" / "method.py"
    path.write_text(path.read_text() + "import dataclasses\nOther = METHOD\nOther.Config = type('C', (), {})\n")
    with pytest.raises(HarnessError, match="has a Config of its own"):
        jobs(build({"methods": "other", "budget": "6step"}))
