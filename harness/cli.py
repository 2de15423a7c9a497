"""The commands. Each imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.launch import cli as launched
from harness.launch.cli import StudyDir
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
Dataset = Annotated[str | None, typer.Option(help="Names separated by commas, or folder:PATH. [default: digits]")]
Size = Annotated[str | None, typer.Option(help="nano, ti, s, b, l, xl. [default: nano]")]
Seeds = Annotated[int | None, typer.Option(help="How many seeds: 0 to N-1. [default: 1]")]
Evals = Annotated[str | None, typer.Option(help="Names separated by commas. [default: linear,knn,generation]")]
Name = Annotated[str | None, typer.Option(help="The study's folder. [default: from data set, size and budget]")]
Out = Annotated[Path, typer.Option(help="Where studies are kept.")]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie. [default: $HARNESS_DATA, ./data]")]
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

RUNS = Path("runs")


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


@app.command("eval")
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
    from harness.driver import evaluate_study
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="train, evals, grid, startup or tables.")] = "startup",
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
