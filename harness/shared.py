"""Methods that read one pre-training (`Method.pretrained_as`): trained once, its price in every reader's row.

A reader has a folder and records of its own, so that tables and plans need not know: its run record is the source's
under its own cell, its snapshots are links to the source's, and evals that would find the same are taken over.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness import store
from harness.files import explain
from harness.plugins import card, load_eval
from harness.records import Borrowed, EvalRecord, RunRecord
from harness.resolve import Job

VERBS = {"features": ("taps", "features"), "sample": ("sample",)}


def adopt(job: Job, place: store.Study, source: RunRecord) -> RunRecord:
    """The run record of `job` made of its source's, with the source's snapshots in its folder."""
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
            "borrowed": list({loan.what: loan for loan in [*source.borrowed, *own]}.values()),
            "notes": [*about.get("notes", []), note],
        }
    )
    store.write(folder.record, record)
    return record


def reads_alike(name: str, job: Job) -> bool:
    """Whether the eval `name` would find the same on `job` as on its source.

    It does where both have the same code for everything the eval asks of a method: its module's READS, by default
    what its verb needs.
    """
    plugin = load_eval(name)
    asked = getattr(plugin, "READS", VERBS[plugin.NEEDS])
    mine, theirs = job.method_class, job.source.method_class
    return all(getattr(mine, verb) is getattr(theirs, verb) for verb in asked)


def take_over(path: Path, job: Job, folder: Path) -> None:
    """Write the source's eval record at `path` into `folder` under `job`'s cell, with its pictures."""
    record = store.read_as(EvalRecord, path)
    for picture in record.pictures:
        _link(path.parent, folder, picture)
    note = f"the weights and features of {job.source.cell.method}, evaluated once"
    update = {"key": job.key, "cell": job.cell, "shared": job.source.key, "notes": [*record.notes, note]}
    store.write(folder / path.name, record.model_copy(update=update))


def _link(there: Path, here: Path, pattern: str) -> None:
    """Every file of `there` that fits, in `here` too: a hard link, or a copy where the file system has none."""
    try:
        here.mkdir(parents=True, exist_ok=True)
        for path in sorted(there.glob(pattern)):
            target = here / path.name
            if target.exists():
                continue
            temporary = here / f".{path.name}.tmp"
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
            os.replace(temporary, target)
    except OSError as error:
        raise explain(error, here) from error
