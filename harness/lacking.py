"""What a study's runs and reference rows lack of their evals' records: looked for, and nothing done.

Here, and not beside what evaluates (evaluate_run.py), because a plan asks it and has no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import checkpoint, store
from harness.config import plain
from harness.plugins import load_eval
from harness.protocol import COMMON, REFERENCES
from harness.records import EvalRecord
from harness.resolve import eval_config
from harness.study import Study

if TYPE_CHECKING:
    from harness.data.dataset import Dataset
    from harness.data.glance import Glance
    from harness.plan.planned import Planned
    from harness.resolve import Job

FULL = (0.0, 1.0)
NOTHING = ".nothing"  # in place of a record: the eval has nothing to say of these weights, and is not asked again


def snapshots(job: Job | Planned) -> list[tuple[float, bool]]:
    """Share of each evaluation of the run, and whether it is a quick one."""
    shares = sorted({*FULL, *job.train.snapshots})
    return [(share, False) for share in FULL] + [(share, True) for share in shares]


def evaluated(
    job: Job | Planned, study: Study, study_folder: store.Study, only: float, data_dir: Path | None = None
) -> bool:
    """Whether the snapshot at the share `only` has all records of the study's evals; looks, and does nothing."""
    if checkpoint.find_snapshot(study_folder.run(job.key).snapshots, only) is None:
        return False
    return next(lacking(job, study, study_folder, only, data_dir), None) is None


def lacking(
    job: Job | Planned, study: Study, study_folder: store.Study, only: float, data_dir: Path | None = None
) -> Iterator[tuple[str, bool]]:
    """Each eval that the snapshot at the share `only` has no record of, and whether it is a quick one."""
    folder = study_folder.run(job.key)
    weights = checkpoint.find_snapshot(folder.snapshots, only)
    for share, cheap in snapshots(job):
        for name in study.evals if share == only else ():
            if not applies(name, job.verbs, share, cheap):
                continue
            path, config = folder.evals(share, cheap) / f"{name}.json", eval_config(study, name, job.cell.size)
            if weights is None or not is_done(path, name, config, job.data, weights.name, data_dir):
                yield name, cheap


def applies(name: str, verbs: Collection[str], share: float, cheap: bool) -> bool:
    """Samples are drawn from the final weights only: at the quick evals' count a distance says nothing.

    What never runs on snapshots is not asked there: it would leave no record, and be asked again by every command.
    """
    plugin = load_eval(name)
    if plugin.NEEDS not in verbs or (cheap and getattr(plugin, "FULL_ONLY", False)):
        return False
    if share < 1.0 and getattr(plugin, "TRAINED_ONLY", False):
        return False
    return plugin.NEEDS == "features" or (share == 1.0 and not cheap)


def is_done(
    path: Path,
    name: str,
    config: Any,
    data: Dataset | Glance,
    snapshot: str | None = None,
    data_dir: Path | None = None,
) -> bool:
    """Whether a record of the same weights, data, settings and protocol is there, or word that none is to be made."""
    if not path.exists():
        nothing = path.with_suffix(NOTHING)
        return nothing.exists() and nothing.read_text() == digest(*terms(name, config, data.revision, snapshot))
    found, plugin = store.read_as(EvalRecord, path), load_eval(name)
    same = (found.config, found.protocol, found.common, found.data_revision, found.snapshot)
    if same != terms(name, config, data.revision, snapshot):
        return False
    own = getattr(plugin, "revisions", None)  # of data sets of its own
    return own is None or found.cheap or own(config, data_dir).items() >= found.others.items()


def terms(name: str, config: Any, revision: str, snapshot: str | None) -> tuple[Any, ...]:
    """What a record has to agree with."""
    return plain(config), load_eval(name).PROTOCOL, COMMON.version, revision, snapshot


def digest(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def references_evaluated(
    data: Dataset | Glance, study: Study, place: store.Study, data_dir: Path | None = None
) -> bool:
    """Whether every reference row of the data set has its records; looks, and does nothing."""
    return next(references_lacking(data, study, place, data_dir), None) is None


def references_lacking(
    data: Dataset | Glance, study: Study, place: store.Study, data_dir: Path | None, force: bool = False
) -> Iterator[tuple[str, str, Path, dict[str, Any]]]:
    """Title, size, folder and the evals' settings of each reference row that lacks some; of all with `force`."""
    for (title, verbs), size in itertools.product(REFERENCES.items(), study.size):
        folder = place.reference(data.spec.name, title, size)
        configs = {n: eval_config(study, n, size) for n in study.evals if load_eval(n).NEEDS in verbs}
        configs = {n: c for n, c in configs.items() if not getattr(load_eval(n), "TRAINED_ONLY", False)}
        if not force:
            configs = {
                n: c for n, c in configs.items() if not is_done(folder / f"{n}.json", n, c, data, None, data_dir)
            }
        if configs:
            yield title, size, folder, configs
