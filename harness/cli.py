"""The commands. Each imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.arguments import RUNS, DataDir, Dataset, Name, Out, StudyDir
from harness.contract import cli as writing
from harness.launch import cli as launched
from harness.released import cli as weights
from harness.report import cli as reporting

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
Size = Annotated[str | None, typer.Option(help="nano, ti, s, b, l, xl. [default: nano]")]
Seeds = Annotated[int | None, typer.Option(help="How many seeds: 0 to N-1. [default: 1]")]
Evals = Annotated[str | None, typer.Option(help="Names separated by commas. [default: linear,knn,generation]")]
Cluster = Annotated[
    str | None, typer.Option(help="auto, inline (this process), local (a worker per GPU), slurm. [default: auto]")
]
Gpus = Annotated[int | None, typer.Option(help="GPUs of each node of a job. [default: 1 if any]")]
Nodes = Annotated[int | None, typer.Option(help="Nodes of a pre-training job. [default: 1]")]
Partition = Annotated[str | None, typer.Option(help="SLURM's partition. [default: the cluster's]")]
Account = Annotated[str | None, typer.Option(help="SLURM's account. [default: yours]")]
Time = Annotated[str | None, typer.Option(help="Limit of a job: 30min, 4h; longer runs are chained.")]
Parallel = Annotated[int | None, typer.Option(help="Jobs of one array at the same time. [default: all]")]
Profile = Annotated[str | None, typer.Option(help="Your own cluster settings: a table of cluster.toml.")]
Track = Annotated[str | None, typer.Option(help="tensorboard, wandb, mlflow, separated by commas.")]


def _study(words, methods, budget, dataset, size, seeds, evals, name, launch=None, profile=None):
    """The study that a file, the options and the KEY=VALUE words ask for, its launch, and what of that was typed.

    The last word wins.
    """
    from harness.config import parse_words
    from harness.errors import HarnessError
    from harness.launch import options as launching
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
    study, filed = launching.split(merge(asked, {k: v for k, v in options.items() if v is not None}))
    own, worded = launching.split(parse_words([w for w in words if w not in files]))
    settings = launching.build(launching.profile(profile), filed, launch or {}, worded)
    given = [name for name, value in (launch or {}).items() if value is not None]
    return build(merge(study, own)), settings, [*given, *worded]


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
    track: Track = None,
    cluster: Cluster = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
    partition: Partition = None,
    account: Account = None,
    time: Time = None,
    parallel: Parallel = None,
    profile: Profile = None,
    detach: Annotated[bool, typer.Option(help="Submit and return; the last job makes the tables.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the sbatch scripts; submit nothing.")] = False,
) -> None:
    """Pre-train, evaluate, print the tables. Repeat the command to go on where it stopped.

    Example: python -m harness run --methods umd,lmd,mae --budget 1min

    Example: python -m harness run --methods umd,lmd,mae --budget 100gpu-h --cluster slurm --gpus 4 slurm.qos=normal
    """
    from harness.launch.cli import run_where
    from harness.train.track import require

    options = {
        "cluster": cluster, "gpus": gpus, "nodes": nodes, "partition": partition, "account": account, "time": time,
        "parallel": parallel,
    }  # fmt: skip
    words = [*(words or []), *_tracked(track)]
    study, launch, given = _study(words, methods, budget, dataset, size, seeds, evals, name, options, profile)
    require(study.train.track)
    given += ["detach"] if detach else []
    raise typer.Exit(run_where(study, launch, given, out, data_dir, detach, dry_run))


def _tracked(names: str | None) -> list[str]:
    """`--track` as the setting that it is; one that names none turns off what the study file turned on."""
    return [] if names is None else [f"train.track={json.dumps([name for name in names.split(',') if name])}"]


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
    track: Track = None,
    cluster: Cluster = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
    partition: Partition = None,
    account: Account = None,
    time: Time = None,
    parallel: Parallel = None,
    profile: Profile = None,
) -> None:
    """What `run` would do: its price, what is done already, what would be refused and why. Starts nothing.

    Example: python -m harness plan --methods umd,lmd,mae --budget 10min --dataset cifar10

    Example: python -m harness plan --methods umd,lmd,mae --budget 100gpu-h --cluster slurm --gpus 4
    """
    options = {
        "cluster": cluster, "gpus": gpus, "nodes": nodes, "partition": partition, "account": account, "time": time,
        "parallel": parallel,
    }  # fmt: skip
    words = [*(words or []), *_tracked(track)]
    study, launch, given = _study(words, methods, budget, dataset, size, seeds, evals, name, options, profile)
    from harness.plan.show import show_plan

    raise typer.Exit(show_plan(study, launch, given, out, data_dir))


@app.command()
def status(
    study: StudyDir,
    watch: Annotated[bool, typer.Option("--watch", help="Again every few seconds, until Ctrl-C.")] = False,
) -> None:
    """How far each run of a study is, and its jobs.

    Example: python -m harness status runs/digits-nano-1min --watch
    """
    from harness.report.status import show
    from harness.store import Study

    show(Study(study), watch)


launched.add(app)
reporting.add(app)
weights.add(app)


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


writing.add(app)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="train, evals, grid, startup, tables or page.")] = "startup",
    method: Annotated[str, typer.Option(help="train: mae, dit or ddae.")] = "mae",
    reference: Annotated[Path | None, typer.Option(help="train: a checkout of the method's own code.")] = None,
    size: Annotated[str | None, typer.Option(help="train: names separated by commas. [default: nano,ti]")] = None,
    runs: Annotated[int | None, typer.Option(help="page: runs of its study. [default: 1000]")] = None,
    data_dir: DataDir = None,
) -> None:
    """Speed as ratios, each pair measured side by side in one run.

    Example: python -m harness bench evals
    """
    from harness.bench import run_bench

    run_bench(what, reference, data_dir, method, size, runs)
