"""Methods that read one pre-training (`Method.pretrained_as`): trained once, its price in every reader's row.

A reader has a folder and records of its own, so that tables and plans need not know: its run record is the source's
under its own cell, its snapshots are links to the source's, and evals that would find the same are taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import getattr_static
from pathlib import Path
from typing import TYPE_CHECKING

from harness import store
from harness.files import explain, link
from harness.plugins import card, load_eval, load_method, method_plugins
from harness.records import Borrowed, Cost, EvalRecord, RunRecord

if TYPE_CHECKING:
    from harness.method import Method
    from harness.plan.planned import Planned
    from harness.resolve import Job

# What an eval asks of a method that has the verb it needs; one that asks for something else says so in its READS.
VERBS = {
    "features": ("taps", "features"),
    "sample": ("sample",),
    "labelled": ("labelled", "sample", "pretrain", "optim", "augment", "param_groups", "cached", "sees_labels"),
}


def adopt(job: Job, place: store.Study, source: RunRecord) -> RunRecord:
    """The run record of `job` made of its source's, however that ended, with the source's snapshots in its folder."""
    folder = place.run(job.key)
    _link(place.run(job.source.key).snapshots, folder.snapshots, "*.safetensors")
    about = card(job.cell.method)
    title = card(job.source.cell.method).get("title", job.source.cell.method)
    note = f"reads the pre-training of {title}, trained once; its whole price stands in every row that reads it"
    own = [Borrowed(**item) for item in about.get("borrowed", [])]
    record = source.model_copy(
        update={
            "key": job.key,
            "cell": job.cell,
            "shared": job.source.key,
            "cost": _cost(job, source.cost),
            "borrowed": list({loan.what: loan for loan in [*source.borrowed, *own]}.values()),
            "notes": [*about.get("notes", []), note],
        }
    )
    store.write(folder.record, record)
    return record


def _cost(job: Job, cost: Cost | None) -> Cost | None:
    """The source's; what features cost is measured where the reader's are others."""
    if cost is None or alike(job.method_class, job.source.method_class, VERBS["features"]):
        return cost
    from harness.rng import Rng
    from harness.train import flops

    method = job.build().eval()
    flop, parameters = flops.feature_cost(method, method.taps()[0], Rng(job.cell.seed))
    return cost.model_copy(update={"flop_features_img": flop, "parameters_features": parameters})


def reads_alike(name: str, job: Job | Planned) -> bool:
    """Whether the eval `name` would find the same on `job` as on its source.

    It does where both have the same code for everything the eval asks of a method: its module's READS, by default
    what its verb needs.
    """
    return _within(job.departs, _asked(name))


def _asked(name: str) -> Sequence[str]:
    plugin = load_eval(name)
    return getattr(plugin, "READS", VERBS[plugin.NEEDS])


def peers(name: str, job: Job, place: store.Study) -> list[str]:
    """Keys of the runs on which the eval `name` finds what it would on `job`: its source, and readers alike to it."""
    if not reads_alike(name, job):
        return []
    known, source = method_plugins(), job.source  # the plugin of an old record may be gone
    readers = [
        run.key
        for run in place.runs()
        if run.shared == source.key and run.key != job.key and run.cell.method in known
        if alike(load_method(run.cell.method), source.method_class, _asked(name))
    ]
    return [source.key, *readers]


def alike(reader: type[Method], source: type[Method], asked: Sequence[str]) -> bool:
    """Whether the two share the code of what is `asked`; of the interface the reader may have the rest to itself."""
    return _within(departures(reader, source), asked)


def _within(departs: frozenset[str] | None, asked: Sequence[str]) -> bool:
    return departs is not None and departs.isdisjoint(asked)


def departures(reader: type[Method], source: type[Method]) -> frozenset[str] | None:
    """What of the interface the reader does by code of its own; None where it has not kept a helper of the source's.

    Such a helper counts as asked for by everything: nothing tells who calls it.
    """
    from harness.method import Method, Objective

    names = [name for name in dir(source) if name == "__init__" or not name.startswith("__")]
    own = {name for name in names if getattr_static(reader, name, None) is not getattr_static(source, name)}
    return frozenset(own) if own <= {*vars(Method), *vars(Objective)} else None


def take_over(path: Path, job: Job, folder: Path) -> None:
    """Write the source's eval record at `path` into `folder` under `job`'s cell, with its pictures.

    Every look at the test split stays on record, also that of an eval of the reader's own that it replaces.
    """
    record, own, before = store.read_as(EvalRecord, path), folder / path.name, []
    if own.exists():
        replaced = store.read_as(EvalRecord, own)
        before = replaced.test_opened
        store.set_aside(own, replaced)
    for picture in record.pictures:
        _link(path.parent, folder, picture)
    note = f"the weights and features of {job.source.cell.method}, evaluated once"
    update = {
        "key": job.key,
        "cell": job.cell,
        "shared": job.source.key,
        "test_opened": [*(look for look in before if look not in record.test_opened), *record.test_opened],
        "notes": [*(said for said in record.notes if said != note), note],
    }
    store.write(own, record.model_copy(update=update))


def _link(there: Path, here: Path, pattern: str) -> None:
    """Make the files of `here` that fit those of `there`: by hard links, or copies where the file system has none."""
    try:
        here.mkdir(parents=True, exist_ok=True)
        files = {path.name: path for path in sorted(there.glob(pattern))}
        for name, path in files.items():
            link(path, here / name)
        for stale in set(here.glob(pattern)) - {here / name for name in files}:
            stale.unlink()
    except OSError as error:
        raise explain(error, here) from error
