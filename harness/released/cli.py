"""The commands on trained weights: `eval`, of our runs or of what others released, and `export`, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.arguments import RUNS, DataDir, Dataset, Name, Out


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("eval")(evaluate)
    app.command()(export)


def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]... [KEY=VALUE]...",
            help="Folders of studies, or of single runs (STUDY/runs/KEY), unless --checkpoint; settings.",
        ),
    ] = None,
    evals: Annotated[str | None, typer.Option(help="Names separated by commas. [default: the study's]")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="PATH", help="Weights trained elsewhere; or timm:NAME, diffusers:NAME.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="mae, dit, adm, ddae, umd, lmd, timm, diffusers, harness.")] = None,
    weights: Annotated[str | None, typer.Option(help="ema or raw. [default: ema where the file has it]")] = None,
    force: Annotated[bool, typer.Option(help="Also what has a record, which is kept in earlier/.")] = False,
    allow_unexpected: Annotated[bool, typer.Option(help="Leave out tensors that the method has no place for.")] = False,
    borrowed: Annotated[str | None, typer.Option(help="What the weights cost elsewhere, for the tables.")] = None,
    dataset: Dataset = None,
    size: Annotated[
        str | None, typer.Option(help="Whose eval settings: nano, ti, s, b, l, xl. [default: nano]")
    ] = None,
    name: Name = None,
    out: Out = RUNS,
    data_dir: DataDir = None,
) -> None:
    """Evaluate finished runs again, without training: what has no record yet; or weights that were trained elsewhere.

    Example: python -m harness eval runs/digits-nano-1min --evals knn,fid knn.k=5

    Example: python -m harness eval --checkpoint mae_pretrain_vit_base.pth --format mae --dataset cifar10
    """
    from harness.display import choose
    from harness.evaluate_study import evaluate_study
    from harness.report.finish import finish
    from harness.signals import Stopper

    places, values = _split(words)
    with Stopper().installed():
        if checkpoint is not None:
            about = (format, weights, allow_unexpected, borrowed)
            asked = {"evals": evals, "dataset": dataset, "size": size, "name": name}
            raise typer.Exit(finish(*_released(checkpoint, about, asked, places, values, out, data_dir, force)))
        _only_with_checkpoint(
            format=format, weights=weights, borrowed=borrowed, dataset=dataset, size=size, name=name,
            allow_unexpected=allow_unexpected or None,
        )  # fmt: skip
        codes = [
            finish(place, evaluate_study(place, evals, values, choose(), data_dir, keys, force))
            for place, keys in _studies(places)
        ]
        raise typer.Exit(max(codes))


def _split(words: list[str] | None):
    """Folders, and the KEY=VALUE words as nested tables."""
    from harness.config import parse_words

    places = [word for word in words or [] if "=" not in word]
    return places, parse_words([word for word in words or [] if "=" in word])


def _studies(places: list[str]):
    """Each study that the folders belong to, and the keys of its runs that are meant: none where all of them are."""
    from harness.errors import HarnessError
    from harness.store import Study

    if not places:
        raise HarnessError("no study and no run", "folders of studies or runs, or --checkpoint PATH", "eval --help")
    meant: dict[Path, list[str]] = {}
    whole = set()
    for word in places:
        path = Path(word)
        if (path / "run.json").exists() and path.resolve().parent.name == "runs":
            meant.setdefault(path.resolve().parent.parent, []).append(path.resolve().name)
        else:
            Study(path).asked()  # a wrong word is answered before any work
            whole.add(path.resolve())
            meant.setdefault(path.resolve(), [])
    return [(Study(path), () if path in whole else keys) for path, keys in meant.items()]


def _only_with_checkpoint(**options) -> None:
    from harness.errors import HarnessError

    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise HarnessError(f"{', '.join(given)} without --checkpoint", "weights to evaluate", "--checkpoint PATH")


def _released(
    checkpoint: str, about: tuple, asked: dict, places: list[str], values: dict, out: Path, data_dir, force: bool
):
    """Evaluate released weights; the study's folder and a line for each thing that failed."""
    from harness.display import choose
    from harness.errors import HarnessError
    from harness.released.formats import Asked, section
    from harness.study import build_released, merge

    if places:
        raise HarnessError(f"{' '.join(places)} beside --checkpoint", "settings only", "--name and --out name a study")
    format, weights, allow_unexpected, borrowed = about
    wanted = Asked(checkpoint, format, weights, allow_unexpected, values)
    study = build_released(merge({k: v for k, v in asked.items() if v is not None}, values), section(wanted))
    from harness.released.evaluate import evaluate_released

    return evaluate_released(wanted, study, out, choose(), borrowed, data_dir, force)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, STUDY/runs/KEY; or a study of one run.")],
    to: Annotated[str, typer.Option(help="safetensors, timm or diffusers.")] = "safetensors",
    out: Annotated[
        Path | None, typer.Option(help="The file or folder to write. [default: named after the run]")
    ] = None,
    share: Annotated[float, typer.Option(help="Which snapshot: the share of the budget.")] = 1.0,
    tap: Annotated[str | None, typer.Option(help="timm: the features to give. [default: the method's first]")] = None,
) -> None:
    """Write a run's weights for timm, for diffusers, or for `eval --checkpoint`, and say how they are loaded.

    Example: python -m harness export runs/digits-nano-1min/runs/KEY --to timm
    """
    from harness.export.run import export_run

    done = export_run(run, to, out, share, tap)
    typer.echo(f"written   {done.path}")
    for line in done.lines:
        typer.echo(f"          {line}")
