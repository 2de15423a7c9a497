"""The commands of who writes a method: a rehearsal of kills, the check of its promises, and a new one to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.arguments import DataDir


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (rehearse, check, new):
        app.command()(command)


def rehearse(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="One method.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as for `run`.")] = None,
    steps: Annotated[int, typer.Option(help="Of the toy run.")] = 40,
    kills: Annotated[int, typer.Option(help="SIGKILLs, one in three a SIGTERM.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the steps at which it is killed.")] = 0,
    dataset: Annotated[str, typer.Option(help="A data set's name, or folder:PATH.")] = "digits",
    size: Annotated[str, typer.Option(help="nano, ti, s, b, l, xl.")] = "nano",
    out: Annotated[Path | None, typer.Option(help="Keep the runs here. [default: only where bits differ]")] = None,
    data_dir: DataDir = None,
) -> None:
    """Kill and resume a toy run of a method at random steps, and compare its bits with an undisturbed run's.

    Example: python -m harness rehearse lmd --kills 5
    """
    from harness.rehearse.command import rehearse as rehearse_

    where = {"dataset": dataset, "size": size, "out": out, "data_dir": data_dir}
    raise typer.Exit(rehearse_(method, words or [], steps=steps, kills=kills, seed=seed, **where))


def check(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="An installed method, or the folder of one.")],
    only: Annotated[str | None, typer.Option(help="Some promises, separated by commas. [default: all]")] = None,
    dataset: Annotated[str, typer.Option(help="A data set's name, or folder:PATH.")] = "digits",
    size: Annotated[str, typer.Option(help="nano, ti, s, b, l, xl.")] = "nano",
    data_dir: DataDir = None,
) -> None:
    """Check what a method promises: its loss falls, it resumes to the same bits, its card is true, and so on.

    Example: python -m harness check mae --only loss,samples
    """
    from harness.contract.command import run as check_

    raise typer.Exit(check_(method, only, dataset, size, data_dir))


def new(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Its name: a Python identifier in small letters.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where to make it. [default: methods/ of this checkout; a package: here]")
    ] = None,
    package: Annotated[bool, typer.Option("--package", help="An installable package, not a bare folder.")] = False,
) -> None:
    """Write a method to start from: a small denoising autoencoder that keeps every promise, with its card and a test.

    Example: python -m harness new simclr
    """
    from harness.new import write

    for line in write(method, folder, package):
        typer.echo(line)
