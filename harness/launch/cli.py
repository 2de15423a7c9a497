"""The commands of launched studies: resume, cancel, logs, and what `run` does where its work is jobs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.arguments import StudyDir

if TYPE_CHECKING:
    from harness.launch.options import Launch
    from harness.study import Study


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (resume, cancel, logs):
        app.command()(command)
    app.command(hidden=True)(work)


def run_where(
    study: Study, launch: Launch, given: Collection[str], out: Path, data_dir: Path | None, detach: bool, dry_run: bool
) -> int:
    """The study brought to its end, wherever it runs; the exit status. `given` are the options on the command line."""
    from harness.launch.where import refuse_idle, where

    launch, why = where(launch)
    if why:
        typer.echo(why)
    if dry_run:
        from harness.launch.dry_run import dry_run as scripts

        typer.echo(scripts(study, launch, out, data_dir))
        return 0
    from harness.launch import command
    from harness.report.finish import finish
    from harness.signals import Stopper

    refuse_idle(launch, given)
    with Stopper().installed() as stopper:
        done = command.launch_study(study, out, command.Asked(launch, data_dir, detach), stopper)
        return 0 if done is None else finish(*done)


def resume(
    study: StudyDir,
    detach: Annotated[bool, typer.Option(help="Submit what is missing and return.")] = False,
) -> None:
    """Go on with a study that was launched: submit what was lost, failed or was cancelled, and wait for its end.

    Example: python -m harness resume runs/cifar10-s-100gpu-h
    """
    from harness.launch import command
    from harness.report.finish import finish
    from harness.signals import Stopper
    from harness.store import Study

    with Stopper().installed() as stopper:
        done = command.resume(Study(study), detach, stopper)
        raise typer.Exit(0 if done is None else finish(*done))


def cancel(
    study: StudyDir,
    cells: Annotated[list[str] | None, typer.Argument(help="Runs, by the start of their key. [default: all]")] = None,
) -> None:
    """End the jobs of a study, or of some of its runs; what they saved stays, and `resume` goes on from it.

    Example: python -m harness cancel runs/cifar10-s-100gpu-h mae
    """
    from harness.launch import command
    from harness.store import Study

    lines = command.cancel(Study(study), cells or [])
    typer.echo("\n".join(lines) or "no job of it is waiting or running")


def logs(
    study: StudyDir,
    cell: Annotated[str, typer.Argument(help="A run, by its key's start; a data set, for its references; or tables.")],
    lines: Annotated[int, typer.Option(help="Of each file, from its end; 0 for all.")] = 40,
) -> None:
    """What the jobs of a run printed, of the newest attempt at each task that printed anything.

    Example: python -m harness logs runs/cifar10-s-100gpu-h umd
    """
    from harness.launch import command
    from harness.store import Study

    for path in command.log_files(Study(study), cell):
        text = path.read_text(errors="replace").splitlines()
        typer.echo(f"==> {path}")
        typer.echo("\n".join(text[-lines:] if lines else text))


def work(study: StudyDir, batch: str, index: int, attempt: int, parent: int = 0) -> None:
    """One task of a study: what a local worker does."""
    from harness.launch import local, worker
    from harness.launch.job import Work
    from harness.signals import Stopper

    if parent:
        local.end_with(parent)
    with Stopper().installed(in_job=True) as stopper:
        state = worker.work(Work(str(study), batch, index, attempt), stopper)
    raise typer.Exit({"done": 0, "stopped": worker.AGAIN}.get(state, 1))
