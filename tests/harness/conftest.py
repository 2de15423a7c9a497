"""Commands as a user types them, and a method whose folder brings a format of released weights along."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from harness.__main__ import main
from harness.bench import browser
from harness.errors import HarnessError, said

METHOD = "from tests.toys import Toy\n\n\nclass Toyform(Toy):\n    pass\n\n\nMETHOD = Toyform\n"
WEIGHTS = """
import torch

from harness.released import Official
from tests.toys import SPEC, Toy, ToyConfig

DRAWING = ("last.",)
RECIPE = "two epochs of toys"
NAMES = {"enc.": "first.", "dec.": "last.", "mean": "mean"}


def from_official(state):
    config = ToyConfig(width=len(state["enc.weight"]))
    state = {next((b + n[len(a):] for a, b in NAMES.items() if n.startswith(a)), n): v for n, v in state.items()}
    with torch.device("meta"):
        places = set(Toy(config, SPEC).state_dict()) - {"calls"}
    taken = {n: v for n, v in state.items() if n in places}
    missing, unexpected = sorted(places - set(state)), sorted(set(state) - places)
    return Official(config, SPEC.channels, SPEC.size, 0, taken, missing, unexpected)
"""


@pytest.fixture
def harness(monkeypatch, capsys):
    """Type a command; returns (exit status, what it printed, what it complained)."""

    def type_(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as done:
            status = int(done.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return type_


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program; the test is skipped where there is none."""
    try:
        return browser.chromium()
    except HarnessError as absent:
        pytest.skip(f"{said(absent)} (apt-get install chromium)")


@pytest.fixture
def toyform(tmp_path_factory, monkeypatch):
    """The method `toyform`, found for the length of a test: `harness eval --format toyform` reads its weights."""
    import methods

    folder = tmp_path_factory.getbasetemp() / "toyform-methods"
    for name, text in (("method.py", METHOD), ("weights.py", WEIGHTS), ("card.toml", 'title = "Toyform"\n')):
        (folder / "toyform").mkdir(parents=True, exist_ok=True)
        (folder / "toyform" / name).write_text(text)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])


@pytest.fixture
def saved(tmp_path):
    """Save an object with torch; returns the file."""

    def save(content: object, name: str = "toy.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save
