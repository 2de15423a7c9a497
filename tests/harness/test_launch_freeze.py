"""The copy of the code that jobs run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness import machine
from harness.errors import CannotWrite
from harness.launch.freeze import freeze

PRINT = "import harness.budget as b, {name} as p; print(b.__file__); print(p.__file__); print(p.ANSWER)"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package outside of the project, as a plugin may be."""
    folder = tmp_path / "site" / "their_plugin"
    (folder / "deep" / "__pycache__").mkdir(parents=True)
    (folder / "__init__.py").write_text("ANSWER = 42\n")
    (folder / "deep" / "card.toml").write_text('title = "x"\n')
    (folder / "deep" / "__pycache__" / "x.pyc").write_text("old")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield folder
    sys.modules.pop("their_plugin", None)


def run(code, text: str, cwd) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", text], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_copy_is_what_runs_whatever_becomes_of_the_original(tmp_path, plugin):
    code = freeze(tmp_path / "code", ["their_plugin.deep.method"])
    (plugin / "__init__.py").write_text("raise SystemExit('the original runs')\n")
    ours, theirs, answer = run(code, PRINT.format(name="their_plugin"), cwd=tmp_path / "site")
    assert ours.startswith(str(code)) and theirs.startswith(str(code)) and answer == "42"
    assert (code / "their_plugin" / "deep" / "card.toml").exists()
    assert not (code / "their_plugin" / "deep" / "__pycache__").exists()


def test_equal_code_is_one_copy_and_other_code_another(tmp_path, plugin):
    first = freeze(tmp_path / "code", ["their_plugin"])
    (plugin / "deep" / "__pycache__" / "y.pyc").write_text("compiled meanwhile")
    (plugin / ".#__init__.py").symlink_to("nobody@nowhere")  # as an editor leaves beside a file that is open
    assert freeze(tmp_path / "code", ["their_plugin"]) == first
    (plugin / "__init__.py").write_text("ANSWER = 43\n")
    second = freeze(tmp_path / "code", ["their_plugin"])
    assert second != first
    assert (first / "their_plugin" / "__init__.py").read_text() == "ANSWER = 42\n"
    assert sorted(tmp_path.glob("code/*")) == sorted([first, second]), "nothing is left over"


def test_a_plugin_in_a_single_module_is_in_it(tmp_path, plugin):
    (tmp_path / "site" / "one_file.py").write_text("ANSWER = 7\n")
    code = freeze(tmp_path / "code", ["one_file"])
    assert run(code, PRINT.format(name="one_file"), cwd="/")[2] == "7"


def test_a_method_in_a_folder_of_its_own_is_found_in_the_copy(tmp_path, toyform):
    code = freeze(tmp_path / "code", ["methods.toyform.method"])
    found = run(code, "from harness.plugins import method_plugins; print(*method_plugins())", cwd="/")
    assert {"toyform", "mae"} <= set(found[0].split())


def test_the_commit_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "commit", lambda: "0123456789ab+")
    code = freeze(tmp_path / "code")
    monkeypatch.undo()
    monkeypatch.setattr(machine, "__file__", str(code / "harness" / "machine.py"))
    assert machine.commit.__wrapped__() == "0123456789ab+", "a copy is no checkout, and knows its commit all the same"


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "code").write_text("a file is in the way")
    with pytest.raises(CannotWrite, match="cannot write"):
        freeze(tmp_path / "code")
