"""`harness report`: the page of a study and its plots, from the records as they are now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from harness.errors import HarnessError
from harness.files import write_atomic
from harness.page.pictures import album
from harness.page.plots import draw
from harness.page.render import Content, page
from harness.records import RunRecord
from harness.report import anytime
from harness.report.tables import build
from harness.report.targets import Target
from harness.report.view import View
from harness.store import Study, uncollected


def content(study: Study, folder: Path, view: View | None = None, wanted: tuple[Target, ...] = ()) -> Content:
    """What the page of the study's last request is made of, for a page in `folder`."""
    if not (study.path / "runs").is_dir():
        raise HarnessError(f"no runs in {study.path}", "the folder of a study", "python -m harness run makes one")
    view = view or View()
    with uncollected():
        runs, evals = study.asked_for()
        runs = view.of_runs(runs)
        kept = {run.key for run in runs}
        evals = [record for record in evals if record.key is None or record.key in kept]
        tables = build(runs, evals, wanted=wanted, view=view)
        curve = anytime.points(runs, evals)
        name = study.path.resolve().name
        base = os.path.relpath(study.path.resolve(), folder.resolve()).replace(os.sep, "/")
        return Content(name, list(_summary(runs)), tables, curve, album(tables, study.path), base)


def report(study: Study, folder: Path, view: View | None = None, wanted: tuple[Target, ...] = ()) -> list[Path]:
    """Write index.html and plots/ to `folder`; returns the files, the page first."""
    made = content(study, folder, view, wanted)
    index = folder / "index.html"
    write_atomic(index, page(made))
    return [index, *draw(made.trades, made.curve, made.ledgers, folder / "plots")]


def _summary(runs: list[RunRecord]) -> Iterator[str]:
    """How much of what was asked for is there, and where it ran."""
    done = sum(run.state == "finished" for run in runs)
    methods = list(dict.fromkeys(run.cell.method for run in sorted(runs, key=lambda run: run.cell.method)))
    seeds = len({run.cell.seed for run in runs})
    yield f"{done} of {len(runs)} runs finished: {', '.join(methods) or 'no method'}; {seeds} seed{'s' * (seeds != 1)}."
    machines = {
        f"{env.devices} × {env.device}, {env.cpu_threads} CPU threads, {env.precision}"
        for run in runs
        if (env := run.environment)
    }
    if machines:
        yield f"Ran on {'; '.join(sorted(machines))}."
