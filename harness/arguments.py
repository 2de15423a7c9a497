"""Arguments and options that commands of several modules take; `help` of one is that of all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUNS = Path("runs")

StudyDir = Annotated[Path, typer.Argument(metavar="STUDY", help="A study's folder, as `run` names it.")]
Dataset = Annotated[str | None, typer.Option(help="Names separated by commas, or folder:PATH. [default: digits]")]
Name = Annotated[str | None, typer.Option(help="The study's folder. [default: from data set, size and budget]")]
Out = Annotated[Path, typer.Option(help="Where studies are kept.")]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie. [default: $HARNESS_DATA, ./data]")]
