"""The commands that read records and train nothing: tables, and who trains more efficiently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.launch.cli import StudyDir


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (table, report, compare, diff):
        app.command()(command)


def table(
    study: StudyDir,
    format: Annotated[str, typer.Option(help="md, csv, tex or html.")] = "md",
    target: Annotated[str | None, typer.Option(help="What reaching targets cost: linear=40,knn=35.")] = None,
    only: Annotated[str | None, typer.Option(help="Tables: overall,representation. [default: all]")] = None,
    filter: Annotated[
        list[str] | None, typer.Option(help="Runs: method=umd,mae, or dataset, size, budget, seed; once for each.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns, by the beginning of their heads.")] = None,
    sort: Annotated[str | None, typer.Option(help="A column, the best first; -COLUMN the other way round.")] = None,
    mix: Annotated[str | None, typer.Option(help="What rows may differ in, marked: device, protocol, n, ...")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Published numbers where they are comparable.")
    ] = False,
) -> None:
    """Make the tables from the stored records; equal records give equal bytes.

    Example: python -m harness table runs/digits-nano-1min --format csv > table.csv

    Example: python -m harness table results/cifar10-nano-10min --only representation --sort linear --published
    """
    from harness.report.finish import render_study
    from harness.report.view import view
    from harness.store import Study

    shown = view(only, filter or (), columns, sort, mix, published)
    typer.echo(render_study(Study(study), format, target, shown), nl=False)


def report(
    study: StudyDir,
    out: Annotated[Path | None, typer.Option(help="Folder for the page. [default: STUDY/report]")] = None,
    target: Annotated[str | None, typer.Option(help="What reaching targets cost: linear=40,knn=35.")] = None,
    filter: Annotated[
        list[str] | None, typer.Option(help="Runs: method=umd,mae, or dataset, size, budget, seed; once for each.")
    ] = None,
    mix: Annotated[str | None, typer.Option(help="What rows may differ in, marked: device, protocol, n, ...")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Published numbers where they are comparable.")
    ] = False,
) -> None:
    """Make a page of the study: tables to sort and filter, plots, samples, every number with its records.

    One file that asks nobody for anything, and plots as PNG and SVG beside it; equal records give equal bytes.

    Example: python -m harness report results/cifar10-nano-10min
    """
    from harness.page.command import report as report_
    from harness.report.targets import parse
    from harness.report.view import view
    from harness.store import Study

    wanted = () if target is None else parse(target)
    folder = out or study / "report"
    page, *plots = report_(Study(study), folder, view(keep=filter or (), mix=mix, published=published), wanted)
    typer.echo(f"page      {page} ({page.stat().st_size / 2**20:.1f} MiB, one file)")
    for plot in plots:
        typer.echo(f"plot      {plot}")
    typer.echo(f"next      open {page} in a browser; a click on a number shows the records behind it")


def compare(
    methods: Annotated[list[str], typer.Argument(metavar="METHOD...", help="Two or more; speed-ups are the first's.")],
    study: Annotated[
        list[Path] | None, typer.Option(help="A study's folder, once for each. [default: all in runs/]")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Qualities to reach: linear=55,linear=60.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="An eval or a number: linear, fid. [default: the target's]")
    ] = None,
    axis: Annotated[str, typer.Option(help="Of the picture: time, gpu-h, flop, energy, img.")] = "gpu-h",
    curve: Annotated[str | None, typer.Option(help="snapshots, or ladder: each budget a run of its own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for tables and picture. [default: in the study]")] = None,
) -> None:
    """Which method trains more efficiently: price to target, speed-up, area under the curve, equal cost, profile.

    Example: python -m harness compare umd mae --study runs/cifar10-s-100gpu-h --target linear=60
    """
    from harness.compare.command import compare as compare_
    from harness.compare.command import found_studies

    compare_(methods, found_studies(study or [], Path("runs")), target, metric, axis, curve, out)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A study's folder, or FOLDER@REVISION of a git repository.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same, newer.")],
    format: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Why a table changed: records new, gone or different, and the cells by each. Exit status 1 where they differ.

    Example: python -m harness diff results/cifar10-nano-10min@HEAD~1 results/cifar10-nano-10min
    """
    from harness.report.diff import diff as diff_

    raise typer.Exit(diff_(a, b, format))
