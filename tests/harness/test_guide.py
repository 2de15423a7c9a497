"""docs/adding-a-method.md, followed literally: its commands work, and its code is all of the example's."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import methods
from harness import new
from harness.plugins import card

DOCS = Path(new.__file__).resolve().parents[1] / "docs"
GUIDE = (DOCS / "adding-a-method.md").read_text()
EXAMPLE = DOCS / "simclr"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, flags=re.DOTALL)


def followed(starter: str) -> str:
    """method.py of `harness new`, after each edit that sections 2 and 3 ask for, where they ask for it."""
    imports, fields, projection, verbs, mirrored, taps = blocks("python")
    draw = r"    # -- draw(.|\n)*(?=METHOD = Simclr)"
    edits = (
        (r"from backbones\.tokens .*\nfrom harness\.errors .*\n", imports),
        (r"(    \w+: .* = .*\n)+(?=\n\nclass Simclr)", fields),
        (r"        self\.predict = .*\n", projection),
        (r"    def pretrain(.|\n)*(?=    def states)", f"{verbs}\n"),
        (r"        return Augment\(.*\n", mirrored),
        (re.escape(taps), taps),  # there already
        (draw, "\n"),
    )
    for place, text in edits:
        starter, many = re.subn(place, lambda _, text=text: text, starter)
        assert many == 1, place
    return starter


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder of methods that takes the place of the checkout's, and an empty folder to type in."""
    place = tmp_path / "methods"
    place.mkdir()
    monkeypatch.setattr(new, "_checkout", lambda: place)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(place)])
    monkeypatch.chdir(tmp_path)
    _forget()
    yield place
    _forget()


def _forget() -> None:
    card.cache_clear()
    for name in [name for name in sys.modules if name.startswith("methods.simclr")]:
        del sys.modules[name]


def typed(harness, line: str) -> str:
    python, module, program, *words = shlex.split(line)
    assert (python, module, program) == ("python", "-m", "harness")
    status, out, err = harness(*words)
    assert status == 0, f"{line}\n{out}\n{err}"
    return out


@pytest.mark.slow
def test_typed_line_by_line_it_leads_to_a_row(harness, checkout):
    first, *checks, row = blocks("sh")
    for line in first.splitlines():
        said = typed(harness, line)
    assert re.search(r"^simclr ", said, flags=re.MULTILINE), "a row already"
    folder = checkout / "simclr"
    (folder / "method.py").write_text(followed((folder / "method.py").read_text()))
    (folder / "card.toml").write_text(blocks("toml")[0])
    assert "`cp docs/simclr/README.md docs/simclr/test_method.py methods/simclr/`" in GUIDE
    for name in ("README.md", "test_method.py"):
        shutil.copy(EXAMPLE / name, folder / name)
    _forget()
    assert len(checks) == 2
    for line in checks:
        assert "0 broken" in typed(harness, line)
    for line in row.splitlines():
        said = typed(harness, line)
    assert re.search(r"^simclr \[[a-z]\] +1 ", said, flags=re.MULTILINE) and "SimCLR cannot draw." in said
    assert sorted(path.name for path in checkout.iterdir()) == ["simclr"], "nothing outside its folder"


def test_the_examples_own_test_passes(checkout):
    shutil.copytree(EXAMPLE, checkout / "simclr")
    module = importlib.import_module("methods.simclr.test_method")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_its_edits_make_the_example():
    made = followed(new._folder("simclr")["method.py"])
    assert _code(made) == _code((EXAMPLE / "method.py").read_text())
    assert blocks("toml") == [(EXAMPLE / "card.toml").read_text()], "the card is shown in whole"


def _code(text: str) -> str:
    """Without comments, and without the first docstring, which the guide leaves to the reader."""
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    return "\n".join(map(ast.unparse, tree.body[1:]))


def test_what_it_says_to_type_in_earnest_is_understood():
    from harness.study import build

    lines = blocks("text")[0].splitlines()
    words = shlex.split(lines[0])[4:]
    options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    study = build({**options, "methods": "mae", "seeds": int(options["seeds"])})
    assert lines[1].endswith(f"runs/{study.folder_name()}")
