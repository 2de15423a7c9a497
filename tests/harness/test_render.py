"""The tables in their formats: page, terminal, plain text; and the words a command ends with."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.report import console, finish, render
from harness.report.layout import Cell, Column, Row, Section, Table
from harness.report.tables import build, write_all
from harness.store import Study
from tests.harness.made_study import (
    GOLDEN,
    made_run,
    made_study,
    write_study,
)


def test_hostile_text_is_escaped() -> None:
    bad = "a|b_c <img src=x> & 100 % [bold]"
    tables = build([made_run("umd", 0, notes=[bad])], [], {"umd": bad})
    assert "<img src=x>" not in render.render(tables, "html")
    assert "&lt;img src=x&gt; &amp; 100 %" in render.render(tables, "html")
    assert r"a\|b\_c \<img src=x\>" in render.render(tables, "md")
    assert r"a|b\_c $<$img src=x$>$ \& 100 \% [bold]" in render.render(tables, "tex")
    assert bad in printed(tables, 200)


def test_the_page_asks_for_nothing_but_its_pictures(tmp_path: Path) -> None:
    runs, evals = made_study()
    study = write_study(tmp_path, runs, evals)
    for record in (e for e in evals if e.pictures):  # where the evals put them
        place = study.reference("digits", "real images", "nano")
        place = place if record.reference else study.run(record.key or "").evals(1.0)
        (place / record.pictures[0]).write_bytes(b"png")
    page = next(p for p in write_all(study) if p.suffix == ".html")
    text = page.read_text(encoding="utf-8")
    assert "http" not in text and "<script" not in text
    sources = re.findall(r'src="([^"]+)"', text)
    assert (page.parent / sources[0]).resolve() in {
        study.run(run.key).evals(1.0).resolve() / "samples.png" for run in runs
    }
    assert len(sources) == 5 and all((page.parent / source).is_file() for source in sources)


def printed(tables: list[Table], width: int, terminal: bool = False) -> str:
    from rich.console import Console

    file = io.StringIO()
    console.print_tables(tables, Console(file=file, width=width, force_terminal=terminal, color_system="truecolor"))
    return file.getvalue()


def test_a_terminal_of_100_columns_holds_the_tables() -> None:
    tables = build(*made_study())
    said = re.sub(r"\x1b\[[0-9;]*m", "", printed(tables, 100, terminal=True))
    assert max(map(len, said.splitlines())) <= 100
    for word in ("92.0 ± 7.6", "diverged", "raw pixels", "real images", "train (charged), s", "59.8"):
        assert word in said


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_nothing_is_cut_off_on_a_narrow_terminal(width: int) -> None:
    runs, evals = made_study()
    long = {"title": "a number of a long name, with a bracket (k = 20, T = 0.07) top-1 %"}
    for i, record in enumerate(evals):
        if record.eval == "knn":
            second = record.numbers["value"].model_copy(update=long)
            evals[i] = record.model_copy(update={"numbers": record.numbers | {"second": second}})
    tables = build(runs, evals)
    said = re.sub(r"\x1b\[[0-9;]*m", "", printed(tables, width, terminal=True))
    assert max(map(len, said.splitlines())) <= width
    there = Counter(re.findall(r"[^\s─]+", said))
    words = Counter(
        word for t in tables for s in t.sections for row in s.rows for c in row.cells for word in c.text.split()
    )
    assert not {word for word in words if there[word] < words[word] and word != "—"}


def test_no_terminal_gets_plain_text() -> None:
    said = printed(build(*made_study()), 80)
    assert "\x1b" not in said
    assert "92.0 ± 7.6" in said
    assert "≤ pixels" in said and "≤: no better than its own untrained network, or raw pixels" in said


def test_a_goal_of_less_is_better_is_no_mark() -> None:
    goal = Section("digits", "", (Column("method"), Column("FD, target")), (Row("method", (Cell("umd"), Cell("≤ 6"))),))
    said = printed([Table("Price to target", "", (goal,))], 80)
    assert "≤ 6" in said and "no better than its own untrained network" not in said


def test_finish_shows_the_tables_and_the_way_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study", *made_study())
    finish.finish(study)
    said = capsys.readouterr().out
    assert "92.0 ± 7.6" in said
    assert "python -m harness table" in said
    golden = (GOLDEN / "tables.md").read_text(encoding="utf-8")
    assert finish.render_study(study, "md") == golden
    with pytest.raises(HarnessError, match="no runs in"):
        finish.render_study(Study(tmp_path / "stduy"), "md")
