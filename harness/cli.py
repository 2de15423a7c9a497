"""The commands. Each imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="harness",
    help="Pre-train methods on one budget, evaluate them alike, print tables that can be regenerated.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[STUDY.toml] [KEY=VALUE]...", help="A study file, and settings.")
]
Methods = Annotated[str | None, typer.Option(help="Names separated by commas: umd,lmd,mae.")]
Budget = Annotated[str | None, typer.Option(help="Per method and seed: 1min, 100gpu-h, 300step, 1e15flop, 10epoch.")]
Dataset = Annotated[str | None, typer.Option(help="Names separated by commas, or folder:PATH. [default: digits]")]
Size = Annotated[str | None, typer.Option(help="nano, ti, s, b, l. [default: nano]")]
Seeds = Annotated[int | None, typer.Option(help="How many seeds: 0 to N-1. [default: 1]")]
Evals = Annotated[str | None, typer.Option(help="Names separated by commas. [default: linear,knn,generation]")]
Name = Annotated[str | None, typer.Option(help="The study's folder. [default: from data set, size and budget]")]
Out = Annotated[Path, typer.Option(help="Where studies are kept.")]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie. [default: $HARNESS_DATA, ./data]")]
StudyDir = Annotated[Path, typer.Argument(metavar="STUDY", help="A study's folder, as `run` names it.")]

RUNS = Path("runs")


def _study(words, methods, budget, dataset, size, seeds, evals, name):
    """The study that a study file, the options and the KEY=VALUE words ask for; what comes later wins."""
    from harness.config import parse_words
    from harness.errors import HarnessError
    from harness.study import build, merge, read_file

    words = words or []
    files = [w for w in words if w.endswith(".toml") and "=" not in w]
    if len(files) > 1:
        raise HarnessError(f"{len(files)} study files: {' '.join(files)}", "one", "settings follow as KEY=VALUE")
    asked = read_file(Path(files[0])) if files else {}
    options = {
        "methods": methods,
        "budget": budget,
        "dataset": dataset,
        "size": size,
        "seeds": seeds,
        "evals": evals,
        "name": name,
    }
    asked = merge(asked, {k: v for k, v in options.items() if v is not None})
    return build(merge(asked, parse_words([w for w in words if w not in files])))


@app.command()
def run(
    words: Words = None,
    methods: Methods = None,
    budget: Budget = None,
    dataset: Dataset = None,
    size: Size = None,
    seeds: Seeds = None,
    evals: Evals = None,
    name: Name = None,
    out: Out = RUNS,
    data_dir: DataDir = None,
) -> None:
    """Pre-train, evaluate, print the tables. Repeat the command to go on where it stopped.

    Example: python -m harness run --methods umd,lmd,mae --budget 1min
    """
    study = _study(words, methods, budget, dataset, size, seeds, evals, name)
    from harness.display import choose
    from harness.driver import run_study
    from harness.report.finish import finish
    from harness.signals import Stopper

    with Stopper().installed() as stopper:
        place, failures = run_study(study, out, choose(), stopper, data_dir)
        raise typer.Exit(finish(place, failures))


@app.command()
def plan(
    words: Words = None,
    methods: Methods = None,
    budget: Budget = None,
    dataset: Dataset = None,
    size: Size = None,
    seeds: Seeds = None,
    evals: Evals = None,
    name: Name = None,
    out: Out = RUNS,
    data_dir: DataDir = None,
) -> None:
    """What `run` would do: cells, their price, what is done already. Starts nothing.

    Example: python -m harness plan --methods umd,lmd,mae --budget 10min --dataset cifar10
    """
    study = _study(words, methods, budget, dataset, size, seeds, evals, name)
    from harness.plan import show_plan

    show_plan(study, out, data_dir)


@app.command()
def status(study: StudyDir) -> None:
    """How far each run of a study is.

    Example: python -m harness status runs/digits-nano-1min
    """
    from harness.report.status import show
    from harness.store import Study

    show(Study(study))


@app.command("eval")
def evaluate(
    study: StudyDir,
    evals: Annotated[str | None, typer.Option(help="Names separated by commas. [default: the study's]")] = None,
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Eval settings.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Evaluate a study's finished runs again: whatever evals (or settings of evals) have no record yet.

    Example: python -m harness eval runs/digits-nano-1min --evals knn knn.k=5
    """
    from harness.config import parse_words
    from harness.display import choose
    from harness.driver import evaluate_study
    from harness.report.finish import finish
    from harness.signals import Stopper
    from harness.store import Study

    with Stopper().installed():
        place = Study(study)
        failures = evaluate_study(place, evals, parse_words(words or []), choose(), data_dir)
        raise typer.Exit(finish(place, failures))


@app.command()
def table(
    study: StudyDir,
    format: Annotated[str, typer.Option(help="md, csv, tex or html.")] = "md",
) -> None:
    """Make the tables from the stored records; equal records give equal bytes.

    Example: python -m harness table runs/digits-nano-1min --format csv > table.csv
    """
    from harness.report.finish import render_study
    from harness.store import Study

    typer.echo(render_study(Study(study), format), nl=False)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, evals, data or sizes; the first three by default.")] = "all",
    sizes: Annotated[bool, typer.Option("--sizes", help="The same as `list sizes`.")] = False,
) -> None:
    """What is installed: methods, evals, data sets; parameters and FLOPs of every method at every size.

    Example: python -m harness list --sizes
    """
    from harness.listing import show

    show("sizes" if sizes else what)


@app.command()
def data(
    action: Annotated[str, typer.Argument(help="list, fetch or verify.")] = "list",
    name: Annotated[str | None, typer.Argument(help="A data set, for fetch and verify.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Which data sets are here; fetch one (nothing else ever downloads); verify checksums.

    Example: python -m harness data fetch cifar10
    """
    from harness.data.command import run_action

    run_action(action, name, data_dir)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="train, evals or startup.")] = "startup",
    method: Annotated[str, typer.Option(help="train: mae, dit or ddae.")] = "mae",
    reference: Annotated[Path | None, typer.Option(help="train: a checkout of the method's own code.")] = None,
    size: Annotated[str | None, typer.Option(help="train: names separated by commas. [default: nano,ti]")] = None,
    data_dir: DataDir = None,
) -> None:
    """Speed as ratios, each pair measured side by side in one run.

    Example: python -m harness bench evals
    """
    from harness.bench import run_bench

    run_bench(what, reference, data_dir, method, size)
