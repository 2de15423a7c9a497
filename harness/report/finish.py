"""The end of a command: tables written, shown, and the way on named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.files import write_atomic
from harness.store import Study

if TYPE_CHECKING:
    from harness.report.view import View


def finish(study: Study, failures: Sequence[str] = ()) -> int:
    """Write the study's tables, print them, and say where the records, the pictures and the next command are.

    `failures` says what did not work, a line each. Returns the exit status: 1 when there is one.
    """
    from harness.report import console, tables

    paths = tables.write_all(study)
    console.show(study)
    asked = set(study.asked().keys)
    pictures = [p for p in sorted(study.path.glob("runs/*/evals/1.0000/*.png")) if p.parts[-4] in asked]
    print(f"\nrecords   {study.path / 'runs'}")
    print(f"tables    {study.tables()}/tables.{{{','.join(p.suffix[1:] for p in paths)}}}")
    for path in write_curve(study):
        print(f"curve     {path}")
    for picture in pictures:
        print(f"picture   {picture}")
    for line in failures:
        print(f"failed    {line}")
    again = "mend what failed and repeat the command: what is done stays done"
    print(f"next      {again}; python -m harness status {study.path}" if failures else _next(study, paths))
    return 1 if failures else 0


def write_curve(study: Study) -> list[Path]:
    """The anytime curve of the runs asked for, as CSV and PNG; nothing where no snapshot was evaluated."""
    from harness.report import anytime

    curve = anytime.points(*study.asked_for())
    if not curve:
        return []
    table = study.tables() / "anytime.csv"
    write_atomic(table, anytime.to_csv(curve))
    return [table, anytime.plot(curve, study.tables() / "anytime.png")]


def _next(study: Study, paths: list[Path]) -> str:
    page = next((p for p in paths if p.suffix == ".html"), study.tables())
    return f"next      open {page}, or: python -m harness table {study.path} --format csv"


def render_study(study: Study, format: str, target: str | None = None, view: View | None = None) -> str:
    """The study's tables in one format, from the records as they are now; `target` as in "linear=40,knn=35"."""
    from harness.report.render import render
    from harness.report.tables import of_study
    from harness.report.targets import parse

    wanted = () if target is None else parse(target)
    if not (study.path / "runs").is_dir():
        raise HarnessError(f"no runs in {study.path}", "the folder of a study", "python -m harness run makes one")
    return render(of_study(study, wanted=wanted, view=view), format)
