"""The end of a command: tables written, shown, and the way on named."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError
from harness.store import Study


def finish(study: Study) -> int:
    """Write the study's tables, print them, and say where the records, the pictures and the next command are.

    Returns the exit status: 1 when a run failed.
    """
    from harness.report import console, tables

    paths = tables.write_all(study)
    console.show(study)
    pictures = sorted(study.path.glob("runs/*/evals/1.0000/*.png"))
    print(f"\nrecords   {study.path / 'runs'}")
    print(f"tables    {study.tables()}/tables.{{{','.join(p.suffix[1:] for p in paths)}}}")
    for picture in pictures:
        print(f"samples   {picture}")
    failed = [run for run in study.runs() if run.state == "failed"]
    for run in failed:
        print(f"failed    {run.key}: {run.message} (see {study.run(run.key).path / 'error.txt'})")
    print(f"next      python -m harness status {study.path}" if failed else _next(study, paths))
    return 1 if failed else 0


def _next(study: Study, paths: list[Path]) -> str:
    page = next((p for p in paths if p.suffix == ".html"), study.tables())
    return f"next      open {page}, or: python -m harness table {study.path} --format csv"


def render_study(study: Study, format: str) -> str:
    """The study's tables in one format, from the records as they are now."""
    from harness.report.render import render
    from harness.report.tables import of_study

    if not (study.path / "runs").is_dir():
        raise HarnessError(f"no runs in {study.path}", "the folder of a study", "python -m harness run makes one")
    return render(of_study(study), format)
