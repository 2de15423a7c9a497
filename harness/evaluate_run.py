"""Evaluating a finished run's snapshots, and the reference rows that stand in every table.

The final weights and the untrained ones (share 0) get the full evals; every snapshot gets the cheap ones, which make
the anytime curve. What has a record with the same settings and protocol is not done again. An eval that fails is told
at the end, when the others are done.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness import checkpoint, machine, store
from harness.data.dataset import Dataset
from harness.display import Display
from harness.errors import CannotWrite, HarnessError, told
from harness.evaluation import Context, Subject, evaluate
from harness.evaluation.looks import Looks
from harness.files import move, write_atomic
from harness.fitted import Fitted
from harness.lacking import NOTHING, applies, digest, is_done, references_lacking, snapshots, terms
from harness.ledger import Ledger
from harness.method import Method
from harness.records import EvalRecord, RunRecord
from harness.resolve import Job, dataset, eval_config
from harness.rng import Rng
from harness.shared import peers, take_over
from harness.store import RunFolder
from harness.study import Study
from harness.train.track import Tracking

STAGING = ".pictures"  # below the records, until their eval has come to its end


def evaluate_run(
    job: Job,
    study: Study,
    study_folder: store.Study,
    display: Display,
    data_dir: Path | None = None,
    force: bool = False,
    done: set[Path] | None = None,
    only: float | None = None,
    guard: Callable[[], None] = lambda: None,
) -> None:
    """Whatever evals of the study this run lacks; all of them anew with `force`, which keeps the old records.

    `done` holds the records that this command has written, and gets those of this run. `only` is the share of the one
    snapshot meant, where not all of them are; `guard` is called before a record is written, and may raise.

    Raises HarnessError, naming them, where some fail.
    """
    failed: dict[str, Exception] = {}
    new: set[Path] = set() if done is None else done
    before = set(new)
    folder = study_folder.run(job.key)
    configs = {name: eval_config(study, name, job.cell.size) for name in study.evals}
    for share, cheap in snapshots(job):
        if only is not None and share != only:
            continue
        place, weights = folder.evals(share, cheap), _snapshot(job, folder, share)
        subject = Subject(
            job.cell, job.key, share=share, weights="ema" if job.train.ema else "raw", snapshot=weights.name
        )
        missing = [name for name in configs if applies(name, job.verbs, share, cheap)]
        same = (weights.name, data_dir)
        if not force:
            missing = [n for n in missing if not is_done(place / f"{n}.json", n, configs[n], job.data, *same)]
        if job.source is not None:
            fresh = done if force else None
            missing = [n for n in missing if not _taken_over(n, configs[n], job, study_folder, place, fresh, *same)]
        if not missing:
            continue
        quick = " (quick)" if cheap else ""
        display.phase(job.label, f"evaluating {', '.join(missing)} at {share:g} of budget{quick}")
        method = job.build()
        method.load_state_dict(checkpoint.load_snapshot(weights))
        run = store.read_as(RunRecord, folder.record)
        about = _About(subject, job.data, place, study_folder.cache(), data_dir, run, cheap, guard)
        where = f" at {share:g} of the budget{quick}"
        failed |= _run_evals({name: configs[name] for name in missing}, about, method, job.cell.seed, where, new)
    with Tracking(job.train.track, folder, lambda line: display.say(f"{job.label}: {line}")) as tracking:
        for path in sorted(new - before) if tracking else ():
            tracking.evaluated(store.read_as(EvalRecord, path), store.read_as(RunRecord, folder.record))
    _tell(failed)


def _taken_over(
    name: str,
    config: Any,
    job: Job,
    study_folder: store.Study,
    place: Path,
    fresh: set[Path] | None,
    snapshot: str,
    data_dir: Path | None,
) -> bool:
    """Take the eval's record into `place` from a run on which it found what it would on `job`; whether there is one.

    With `fresh`, only a record that is among them.
    """
    for key in peers(name, job, study_folder):
        there = study_folder.run(key).path / place.relative_to(study_folder.run(job.key).path) / f"{name}.json"
        if not there.exists() or (fresh is not None and there not in fresh):
            continue
        if is_done(there, name, config, job.data, snapshot, data_dir):
            take_over(there, job, place)
            return True
    return False


def _snapshot(job: Job, folder: RunFolder, share: float) -> Path:
    """The file of the weights at a share of the budget."""
    path = checkpoint.find_snapshot(folder.snapshots, share)
    if path is None:
        raise HarnessError(
            f"the run {job.key} has no snapshot at {share:g} of its budget",
            f"a file {share:.4f}-*.safetensors in {folder.snapshots}",
            f"delete {folder.path} and repeat the command",
        )
    return path


@dataclass(frozen=True)
class _About:
    """What evals of one checkpoint are told, and where what they find goes."""

    subject: Subject
    data: Dataset
    place: Path  # of the records
    cache: Path
    data_dir: Path | None = None
    run: RunRecord | None = None
    cheap: bool = False
    guard: Callable[[], None] = lambda: None  # before a record is written

    @property
    def looks(self) -> Looks:
        return Looks(self.place)

    def context(self, method: Method, seed: int) -> Context:
        device = machine.device()
        precision = "bf16" if device.type == "cuda" else "fp32"
        return Context(
            method.requires_grad_(False).eval().to(device),
            self.data,
            Rng(seed).at("evaluate"),
            pictures=self.place / STAGING,
            cache=self.cache,
            device=device,
            cheap=self.cheap,
            precision=precision,
            ledger=Ledger(),
            run=self.run,
            load=partial(dataset, data_dir=self.data_dir),
            data_dir=self.data_dir,
            kept=self._kept(method, seed, [str(device), precision]),
            told=self.looks.add,
        )

    def _kept(self, method: Method, seed: int, how: list[str]) -> Path:
        """Where features are kept until all evals are done: another folder whenever they could be others.

        What an older code or another precision left there is removed.
        """
        s = self.subject
        whose = digest(s.key, s.reference, s.snapshot, s.size, self.cheap)
        kinds = [type(method), *([type(method.inner)] if isinstance(method, Fitted) else [])]
        state = digest(self.data.revision, seed, *how, machine.versions(), *map(machine.code, kinds))
        folder = self.cache / "features" / whose
        for stale in folder.glob("*"):
            if stale.name != state:
                shutil.rmtree(stale, ignore_errors=True)
        return folder / state


def _run_evals(
    configs: dict[str, Any], about: _About, method: Method, seed: int, where: str = "", done: set[Path] | None = None
) -> dict[str, Exception]:
    """Every eval of `configs`; the error of each that failed, by its name and `where`. `done` gets the new records."""
    failed: dict[str, Exception] = {}
    context = about.context(method, seed)
    for name, config in configs.items():
        try:
            _run_eval(name, context, config, about)
        except CannotWrite:
            raise
        except Exception as error:
            _let_go(error)
            failed[f"{name}{where}"] = error
        else:
            if done is not None:
                done.add(about.place / f"{name}.json")
    shutil.rmtree(context.pictures, ignore_errors=True)
    if not failed:  # what a repeated command would go on from
        shutil.rmtree(context.kept.parent, ignore_errors=True)
    return failed


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of a failure hold, gigabytes at times; where it happened can still be printed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tell(failed: dict[str, Exception]) -> None:
    """Raise what failed as one error: a line for each, all of them in its traceback."""
    if not failed:
        return
    lines = "\n".join(f"{name}: {told(error)}" for name, error in failed.items()).splitlines()
    if len(failed) > 1:
        lines[0] += f" (and {len(failed) - 1} more)"
    raise HarnessError("\n".join(lines)) from ExceptionGroup("evals that failed", list(failed.values()))


def _run_eval(name: str, context: Context, config: Any, about: _About) -> None:
    environment = machine.environment(context.precision, compiled=False)
    path, pending = about.place / f"{name}.json", about.looks.of(name)
    record = evaluate(name, context, config, subject=about.subject, environment=environment)
    if record is None:
        about.guard()
        agreed = terms(name, config, about.data.revision, about.subject.snapshot)
        write_atomic(path.with_suffix(NOTHING), digest(*agreed))
        return
    about.guard()
    # Every look at the test split stays on record: of the eval that this one replaces, and of attempts that failed.
    before = store.read_as(EvalRecord, path) if path.exists() else None  # a job beside this one may have written it
    replaced = before.test_opened if before else []
    earlier = [*replaced, *(look for look in pending if look not in replaced)]
    record = record.model_copy(update={"test_opened": [*earlier, *record.test_opened]})
    if before is not None:
        store.set_aside(path, before)
    for picture in record.pictures:
        move(context.pictures / picture, about.place / picture)
    store.write(path, record)
    about.looks.recorded(record.test_opened)


def evaluate_as(
    subject: Subject,
    build: Callable[[], Method],
    data: Dataset,
    configs: dict[str, Any],
    place: Path,
    cache: Path,
    data_dir: Path | None = None,
    run: RunRecord | None = None,
    force: bool = False,
) -> list[str]:
    """The evals of `configs` in full that `place` lacks, all with `force`; returns the names of those it ran.

    `build` is called only when there is something to do. Raises HarnessError, naming them, where some fail.
    """
    done = (
        () if force else [n for n, c in configs.items() if is_done(place / f"{n}.json", n, c, data, subject.snapshot)]
    )
    missing = [name for name in configs if name not in done]
    if missing:
        about = _About(subject, data, place, cache, data_dir, run)
        seed = subject.cell.seed if subject.cell else 0
        _tell(_run_evals({name: configs[name] for name in missing}, about, build(), seed))
    return missing


def evaluate_references(
    data: Dataset,
    study: Study,
    place: store.Study,
    display: Display,
    data_dir: Path | None = None,
    force: bool = False,
    guard: Callable[[], None] = lambda: None,
) -> None:
    """The rows every table needs beside the methods: raw pixels, and real images drawn instead of samples."""
    from evals._references import REFERENCES

    failed: dict[str, Exception] = {}
    for title, size, folder, configs in references_lacking(data, study, place, data_dir, force):
        display.phase(f"{title} {data.spec.name}", f"evaluating {', '.join(configs)}")
        about = _About(Subject(reference=title, size=size), data, folder, place.cache(), data_dir, guard=guard)
        failed |= _run_evals(configs, about, REFERENCES[title](data), 0, f" of {title}, {size}")
    _tell(failed)
