"""What the README says is so: its commands exist, its settings are accepted, its table is the records'."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import typer

import methods
from harness import new
from harness.cli import app
from harness.config import parse_words
from harness.report.render import render
from harness.report.tables import of_study
from harness.store import Study
from harness.study import build, merge

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_readme_is_short_enough_to_read():
    assert len(README.splitlines()) < 150


def test_every_command_named_is_one():
    named = set(re.findall(r"harness ([a-z]+)", README.replace("python -m ", "")))
    known = set(typer.main.get_command(app).commands)
    assert named - known - {"table"} <= {"run"} and {"run", "table", "data", "status"} <= named


def test_make_targets_named_are_there():
    targets = set(re.findall(r"^    make ([a-z]+)", README, re.M))
    assert targets and all(re.search(rf"^{t}:", (ROOT / "Makefile").read_text(), re.M) for t in targets)


def test_the_run_lines_and_the_study_file_are_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    for name in re.findall(r"harness new ([a-z_]+)", README):
        new.write(name, tmp_path)
    lines = re.findall(r"harness run (--methods [^`\n]+)", README)
    assert len(lines) >= 2
    for line in lines:
        words = line.split()
        options = dict(zip((w.removeprefix("--") for w in words[::2]), words[1::2], strict=True))
        build(options | {"seeds": int(options.get("seeds", 1))})
    (file,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    (override,) = re.findall(r"harness run study.toml ([^`]+)`", README)
    build(merge(tomllib.loads(file), parse_words(override.split())))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_table_is_made_from_the_records():
    """To mend it: python -m harness table results/NAME, and paste the named table between the marks."""
    found = re.findall(r"<!-- table: (\S+) (\w+) -->\n(.*?)<!-- /table -->", README, re.S)
    assert found
    for folder, title, text in found:
        (table,) = [t for t in of_study(Study(ROOT / folder)) if t.title.lower() == title]
        assert text.strip() == render([table], "md").strip()
