"""`harness check` as a user types it: of another package's method, of a folder, of parts of the contract."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import methods
from harness import new
from harness.plugins import card

BROKEN = Path(__file__).parents[1] / "contract/broken.py"
ABOUT = """
title = "Sound"
paper = "None"
year = 2024
arxiv = ""
idea = "Denoise."
space = "pixels"
sampling = "not from the paper"
notes = []
capabilities = { features = true, sample = true, labels = true }

[cost]
nano = { parameters = 884, forward_flop = 1_769_472, features_flop = 884_736 }
"""


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch) -> None:
    """A package with two methods, found by its entry points; `methods` has the places that it has now, afterwards."""
    package, site_info = tmp_path / "brought", tmp_path / "brought-1.0.dist-info"
    package.mkdir()
    site_info.mkdir()
    (package / "__init__.py").touch()
    (package / "README.md").touch()
    (package / "card.toml").write_text(ABOUT)
    shutil.copyfile(BROKEN, package / "method.py")
    (site_info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    names = ("Sound", "Bright", "Calls", "Unwritten", "Empty")
    points = "".join(f"{name.lower()} = brought.method:{name}\n" for name in names)
    (site_info / "entry_points.txt").write_text(f"[harness.methods]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__])
    monkeypatch.setenv("COLUMNS", "200")
    card.cache_clear()
    yield
    card.cache_clear()


def test_a_sound_method_of_another_package_passes(harness):
    status, out, _ = harness("check", "sound")
    assert status == 0
    assert "sound on digits at nano" in out and "20 kept, 0 broken, 1 skipped" in out
    (row,) = [line for line in out.splitlines() if line.startswith("loss ")]
    assert " kept " in row and "in 40 steps on one batch" in row
    (row,) = [line for line in out.splitlines() if line.startswith("settings ")]
    assert " skipped " in row and "the card names no setting" in row


def test_a_broken_promise_is_told_with_what_to_change(harness):
    status, out, _ = harness("check", "bright", "--only", "samples,loss")
    assert status == 1
    assert "1 kept, 1 broken, 0 skipped" in out
    said = out.partition("BROKEN    samples")[2]
    assert "promise: samples are images in range" in said
    assert "found:   samples lie in [-" in said and "change:  clamp them to [-1, 1]" in said


def test_one_error_that_breaks_many_promises_is_told_once(harness):
    status, out, _ = harness("check", "unwritten", "--only", "card,loss,gradients,odd-batches,cost")
    assert status == 1 and out.count("BROKEN") == 1 and out.count("NotImplementedError: later") == 1
    assert "BROKEN    cost, loss, gradients, odd-batches\n" in out
    assert "It is one error: the 4 promises" in out


def test_a_connection_that_another_check_met_is_told_by_the_last(harness):
    status, out, _ = harness("check", "calls", "--only", "network,samples")
    assert status == 1
    assert "1 kept, 1 broken" in out and "a connection to 192.0.2.1 (method.py:" in out


def test_a_folder_that_is_no_installed_method_is_checked(harness, tmp_path):
    new.write("lonely", tmp_path)
    status, out, _ = harness("check", tmp_path / "lonely", "--only", "card,settings,groups")
    assert status == 0 and "lonely on digits" in out and "2 kept" in out


@pytest.mark.parametrize(
    ("words", "complaint", "help_"),
    [
        (["sond"], "unknown method 'sond'", "did you mean 'sound'?"),
        (["empty"], "has no attribute 'Empty'", "leave 'empty' out"),
        (["sound", "--only", "los"], "unknown promise 'los'", "did you mean 'loss'?"),
        (["sound", "--only", ","], "--only names no promise", "--only loss"),
        (["sound", "--size", "b"], "sound has no size 'b'", "one of nano, ti"),
        (["sound", "--dataset", "digit"], "unknown data set 'digit'", "did you mean 'digits'?"),
        (["./nowhere/here"], "no method.py in the folder ./nowhere/here", "its name alone"),
    ],
)
def test_what_cannot_be_checked_is_refused(harness, words, complaint, help_):
    status, out, err = harness("check", *words)
    assert status == 2 and out == ""
    assert complaint in err and help_ in err


def test_a_folder_of_a_taken_name_is_refused(harness, tmp_path):
    new.write("passing", tmp_path / "one")
    shutil.copytree(tmp_path / "one/passing", tmp_path / "two/mae")
    status, _, err = harness("check", tmp_path / "two/mae")
    assert status == 2 and "there is another method mae" in err and "rename the folder" in err
