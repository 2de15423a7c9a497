"""The store: one folder per study, one folder per run in it, JSON records. The folder tree is the truth.

STUDY/study.json                    what was asked for
STUDY/runs/KEY/run.json             the run's record, rewritten as its state changes
STUDY/runs/KEY/log.jsonl            loss, rate and ledger every few seconds
STUDY/runs/KEY/track/               what trackers write, where there are any
STUDY/runs/KEY/checkpoints/         the last two, for resuming
STUDY/runs/KEY/snapshots/           weights at fixed shares of the budget, for evals
STUDY/runs/KEY/evals/SHARE/EVAL.json  and the pictures that eval made; SHARE-quick/ for the anytime curve
STUDY/runs/KEY/evals/SHARE/EVAL.nothing  the eval has nothing to say of these weights
STUDY/runs/KEY/evals/SHARE/earlier/EVAL-NUMBER/  what a later record replaced
STUDY/references/DATASET/NAME/EVAL.json  rows that are no run: raw pixels, real images
STUDY/tables/                       made from the records
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from harness.errors import HarnessError
from harness.files import link, write_atomic
from harness.records import EvalRecord, Record, RunRecord, StudyRecord

T = TypeVar("T", RunRecord, EvalRecord)
_RECORD: TypeAdapter[RunRecord | EvalRecord] = TypeAdapter(Record)


def write(path: Path, record: RunRecord | EvalRecord) -> None:
    """Write a record in one step; equal records give equal bytes."""
    write_atomic(path, record.model_dump_json(indent=1) + "\n")


def read(path: Path) -> RunRecord | EvalRecord:
    """Read and validate a record. Raises HarnessError that names the file and the field that does not fit."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise HarnessError(f"no record at {path}", "a run's or an eval's JSON record") from None
    try:
        return _RECORD.validate_json(raw)
    except ValidationError:
        return _read_again(path, raw)


def _read_again(path: Path, raw: bytes) -> RunRecord | EvalRecord:
    """Through Python's own reader of JSON, slower: it tells what is no JSON from what is no record."""
    try:
        return _RECORD.validate_python(json.loads(raw))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"is no JSON ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the record"
        raise _unreadable(path, f"does not fit the schema: {field}: {first['msg']}") from None


def read_as(kind: type[T], path: Path) -> T:
    """`read`, for a place where only one kind of record belongs."""
    record = read(path)
    if not isinstance(record, kind):
        raise _unreadable(path, f"is of the kind {record.kind!r}, which does not belong there")
    return record


def set_aside(path: Path, record: EvalRecord) -> None:
    """Keep the eval record at `path`, and its pictures, in `earlier/NAME-NUMBER/`: a new one is to take its place."""
    earlier = path.parent / "earlier"
    number = 1 + max((int(found.name.rpartition("-")[2]) for found in earlier.glob(f"{path.stem}-*")), default=0)
    place, making = earlier / f"{path.stem}-{number}", earlier / f".{path.stem}"
    shutil.rmtree(making, ignore_errors=True)
    for name in [path.name, *record.pictures]:
        if (path.parent / name).exists():
            link(path.parent / name, making / name)
    os.replace(making, place)


def _unreadable(path: Path, why: str) -> HarnessError:
    return HarnessError(
        f"the record {path} {why}",
        "a record as the harness wrote it; records are not to be edited by hand",
        f"delete {path} and repeat the command: only what is missing is made again",
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of garbage, which would walk thousands of living records again and again.

    There is none for it among records and tables: they have no cycles. That is a third of the time of a large study.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class RunFolder:
    """The places inside one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.json"
        self.log = path / "log.jsonl"
        self.track = path / "track"
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "snapshots"
        self.cache = path / "cache"
        self.jobs = path / "jobs"  # claims (launch/folders.py)
        self.error = path / "error.txt"  # the traceback, where the last attempt failed

    def evals(self, share: float, cheap: bool = False) -> Path:
        return self.path / "evals" / (f"{share:.4f}" + ("-quick" if cheap else ""))


class Study:
    """The places inside one study's folder, and every record under it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, key: str) -> RunFolder:
        return RunFolder(self.path / "runs" / key)

    def references(self, dataset: str) -> RunFolder:
        return RunFolder(self.path / "references" / dataset)

    def reference(self, dataset: str, name: str, size: str | None) -> Path:
        """Where a reference row lies that was evaluated with the settings of `size`."""
        return self.path / "references" / dataset / "-".join([*name.split(), *([size] if size else [])])

    def holding(self, record: EvalRecord) -> Path:
        """The folder in which the record and its pictures lie."""
        if record.reference is not None:
            return self.reference(record.dataset, record.reference, record.size)
        return self.run(record.key or "").evals(record.share or 0.0, record.cheap)

    def tables(self) -> Path:
        return self.path / "tables"

    def cache(self) -> Path:
        return self.path / "cache"

    def asked(self) -> StudyRecord:
        """What the last `run` in this folder asked for."""
        path = self.path / "study.json"
        try:
            return StudyRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise HarnessError(
                f"no study in {self.path}", "a folder with a study.json", "python -m harness run makes one"
            ) from None
        except ValidationError as error:
            raise _unreadable(path, f"does not fit the schema: {error.errors()[0]['msg']}") from None

    def runs(self) -> Iterator[RunRecord]:
        for path in self._found("runs/*/run.json"):
            yield read_as(RunRecord, path)

    def evals(self) -> Iterator[EvalRecord]:
        for pattern in ("runs/*/evals/*/*.json", "references/*/*/*.json"):
            for path in self._found(pattern):
                yield read_as(EvalRecord, path)

    def records(self) -> tuple[list[RunRecord], list[EvalRecord]]:
        """All of them at once: `runs` and `evals`."""
        with uncollected():
            return list(self.runs()), list(self.evals())

    def asked_for(self) -> tuple[list[RunRecord], list[EvalRecord]]:
        """Those of the runs that the study's last `run` asked for, and the reference rows.

        Runs of other settings may lie in the same folder; beside these they would pass for further seeds.
        """
        asked = set(self.asked().keys)
        runs, evals = self.records()
        return [run for run in runs if run.key in asked], [e for e in evals if e.key is None or e.key in asked]

    def _found(self, pattern: str) -> list[Path]:
        """The files of that pattern, sorted as paths are. Names are cheaper than paths: there may be 10,000."""
        names = glob(pattern, root_dir=self.path, include_hidden=True)
        return [self.path / name for name in sorted(names, key=lambda name: name.split(os.sep))]
