"""The end of a command: tables written, shown, and the way on named."""

from __future__ import annotations

from harness.errors import HarnessError
from harness.store import Study


def finish(study: Study) -> None:
    """Write the study's tables, print them, and say where the records, the pictures and the next command are."""
    from harness.report import console, tables

    paths = tables.write_all(study)
    console.show(study)
    pictures = sorted(study.path.glob("runs/*/evals/1.0000/*.png"))
    print(f"records   {study.path / 'runs'}")
    print(f"tables    {', '.join(str(p) for p in paths)}")
    for picture in pictures:
        print(f"samples   {picture}")
    print(f"next      python -m harness table {study.path} --format html > table.html")


def render_study(study: Study, format: str) -> str:
    """The study's tables in one format, from the records as they are now."""
    from harness.report.render import render
    from harness.report.tables import of_study

    if not (study.path / "runs").is_dir():
        raise HarnessError(f"no runs in {study.path}", "the folder of a study", "python -m harness run makes one")
    return render(of_study(study), format)
