"""`harness new`: what it writes passes every check, here and as a package in an environment of its own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import methods
from harness import new
from harness.plugins import card, load_method

ROOT = Path(new.__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder of methods, found beside ours for the length of a test."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.setenv("COLUMNS", "200")
    card.cache_clear()
    yield tmp_path
    card.cache_clear()


def test_a_folder_is_a_method_that_keeps_every_promise(harness, place):
    status, out, _ = harness("new", "fresh_start", "--folder", place)
    assert status == 0
    assert "python -m harness check fresh_start" in out
    assert "python -m harness run --methods fresh_start,mae --budget 1min" in out
    assert {p.name for p in (place / "fresh_start").iterdir()} == {
        "__init__.py", "method.py", "card.toml", "README.md", "test_method.py",
    }  # fmt: skip
    status, out, _ = harness("check", "fresh_start")
    assert status == 0, out
    assert load_method("fresh_start").__name__ == "FreshStart" and card("fresh_start")["title"] == "FreshStart"
    assert "tarter" not in "".join(p.read_text() for p in (place / "fresh_start").glob("*.*"))


def test_its_test_passes_and_can_fail(place, monkeypatch):
    new.write("tested", place)
    module = importlib.import_module("methods.tested.test_method")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    cls = load_method("tested")
    monkeypatch.setattr(cls, "states", lambda self, images: [torch.zeros(len(images), 16, 96)] * 4)
    monkeypatch.setattr(cls, "pretrain", lambda self, batch, *_: module.torch.zeros(()))
    for test in tests:
        with pytest.raises((AssertionError, AttributeError)):
            test()


def test_without_a_folder_it_goes_to_the_methods_of_the_checkout(harness, tmp_path, monkeypatch):
    monkeypatch.setattr(new, "_checkout", lambda: tmp_path / "methods")
    status, out, _ = harness("new", "here")
    assert status == 0 and (tmp_path / "methods/here/method.py").is_file()
    assert "move the folder into methods/" in out  # this one is no folder that Python looks in
    monkeypatch.undo()
    assert new._checkout() == ROOT / "methods"


def test_an_installed_harness_asks_for_a_place(harness, tmp_path, monkeypatch):
    (tmp_path / "site/harness/starter").mkdir(parents=True)
    monkeypatch.setattr(new, "STARTER", tmp_path / "site/harness/starter")
    status, _, err = harness("new", "nowhere")
    assert status == 2 and "no checkout" in err and "--package" in err


@pytest.mark.parametrize(
    ("name", "complaint", "help_"),
    [
        ("my-method", "'my-method' is no name for a method", "a Python identifier in small letters"),
        ("2d", "'2d' is no name", "simclr"),
        ("SimCLR", "'SimCLR' is no name", "small letters"),
        ("class", "'class' is no name", "simclr"),
        ("_mine", "'_mine' is no name", "simclr"),
        ("", "'' is no name", "simclr"),
        ("mae", "a method named 'mae' is installed", "harness list"),
        ("linear", "an eval named 'linear' is installed", "harness list"),
        ("random", "'random' is the name of a module", "random_method"),
        ("taken", "taken is there already", "--folder ELSEWHERE"),
    ],
)
@pytest.mark.parametrize("package", [False, True])
def test_names_that_cannot_be_are_refused_and_nothing_is_written(harness, tmp_path, name, complaint, help_, package):
    (tmp_path / "taken").mkdir()
    status, _, err = harness("new", name, "--folder", tmp_path, *(["--package"] if package else []))
    assert status == 2
    assert complaint in err and help_ in err
    assert [p.name for p in tmp_path.rglob("*")] == ["taken"]


def test_a_folder_that_cannot_be_written_is_told(harness, tmp_path):
    (tmp_path / "file").touch()
    status, _, err = harness("new", "mine", "--folder", tmp_path / "file")
    assert status == 2 and f"cannot write {tmp_path / 'file/mine'}" in err


# -- as a package, in an environment of its own -----------------------------------------------------------------------


def environment(folder: Path) -> Path:
    """The python of a fresh environment that sees this one's packages and this checkout, and has none of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    places = [Path(importlib.util.find_spec(name).origin) for name in ("torch", "pip", "setuptools")]
    parents = dict.fromkeys(str(place.parents[1]) for place in places)
    (site / "parent.pth").write_text("\n".join([str(ROOT), *parents]) + "\n")
    return folder / "bin/python"


@pytest.mark.slow
def test_a_package_is_installed_checked_and_run_in_a_fresh_environment(tmp_path):
    python, outside = environment(tmp_path / "env"), tmp_path / "outside"
    outside.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def typed(*words: object) -> str:
        done = subprocess.run(
            [str(python), "-m", *map(str, words)], cwd=outside, env=clean | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = typed("harness", "new", "brand_new", "--package")
    assert "pip install --editable brand_new" in said and "harness check brand_new" in said
    package = outside / "brand_new"
    assert tomllib.loads((package / "pyproject.toml").read_text())["project"]["name"] == "brand_new"
    typed("pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", package)
    package.rename(outside / "moved_away")  # what is installed stands on its own

    assert "0 broken" in typed("harness", "check", "brand_new")
    words = ("--methods", "brand_new", "--budget", "20step", "--evals", "knn", "--name", "first", "train.batch_size=32")
    said = typed("harness", "run", *words, "train.snapshots=[]")
    assert "brand_new" in said
    table = (outside / "runs/first/tables/tables.md").read_text()
    assert r"| brand\_new" in table and r"| brand\_new, untrained" in table and "kNN top-1 %" in table
    assert "BrandNew's sampler is not from its paper." in table
    (record,) = outside.glob("runs/first/runs/*/run.json")
    found = json.loads(record.read_text())
    assert found["state"] == "finished" and found["spend"]["step"] == 20 and found["cell"]["method"] == "brand_new"

    # What is printed, typed where it was printed: the folder there, which has the package's name, is not the package.
    typed("harness", "new", "beside", "--package")
    typed("pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--editable", "beside")
    assert "2 kept" in typed("harness", "check", "beside", "--only", "card,seed")
