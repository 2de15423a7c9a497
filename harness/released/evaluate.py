"""`harness eval --checkpoint`: released weights through the evals, into a study's folder, beside or without runs.

What a run would spend on pre-training is unknown here, so such a row has no budget, stands in a section of its own and
says where its weights are from. Repeating the command redoes nothing; other weights are other rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import machine, store
from harness.data.dataset import Dataset
from harness.display import Display
from harness.errors import CannotWrite, said, told
from harness.evaluate_run import evaluate_as, evaluate_references
from harness.evaluation import Subject, can
from harness.files import write_atomic
from harness.fitted import Fitted, FittedDrawing, FittedLabelled
from harness.lock import only_writer
from harness.method import INTERFACE
from harness.plugins import load_eval
from harness.records import Borrowed, Cell, Cost, Released, RunRecord, StudyRecord
from harness.released import formats
from harness.released.formats import Asked, Loaded
from harness.resolve import dataset, eval_config, require
from harness.rng import Rng
from harness.study import RELEASED, Study, slug
from harness.train import flops


def evaluate_released(
    asked: Asked,
    study: Study,
    out: Path,
    display: Display,
    borrowed: str | None = None,
    data_dir: Path | None = None,
    force: bool = False,
) -> tuple[store.Study, list[str]]:
    """The checkpoint under the study's evals, on each of its data sets. Returns the folder and a line for each failure.

    `borrowed` is what the user declares that the weights cost elsewhere; with `force` what has a record is done again.
    """
    for name, size in itertools.product(study.evals, study.size):
        require(name, eval_config(study, name, size), data_dir)  # a mistake is answered before any work
    loaded = formats.load(asked)
    sets = [dataset(name, data_dir) for name in study.dataset]
    fitted = [_fitted(loaded, data) for data in sets]
    place = store.Study(out / study.folder_name())
    failures: list[str] = []
    with only_writer(place.path, "eval"):
        for data, method in zip(sets, fitted, strict=True):
            for size in study.size:
                row = _Row(loaded, method, data, study, place, display, data_dir, force)
                failures += row.evaluate(_record(loaded, method, data, size, borrowed))
            evaluate_references(data, study, place, display, data_dir, force)
    return place, failures


def _fitted(loaded: Loaded, data: Dataset) -> Fitted:
    if not loaded.draws:
        return Fitted(loaded.method, data.spec)
    learns = can(loaded.method, "labelled") and not loaded.method.sees_labels
    kind = FittedLabelled if learns else FittedDrawing
    return kind(loaded.method, data.spec, loaded.complete, data.fit.images)


@dataclass(frozen=True)
class _Row:
    """The weights on one data set, and where their records go."""

    loaded: Loaded
    method: Fitted
    data: Dataset
    study: Study
    place: store.Study
    display: Display
    data_dir: Path | None = None
    force: bool = False

    def evaluate(self, record: RunRecord) -> list[str]:
        """The row's record, then whatever evals it lacks; a line where that failed."""
        folder, label = self.place.run(record.key), f"{self.loaded.file} on {self.data.spec.name}"
        _join(self.place, self.study, record.key)
        self.display.start([label])
        try:
            before = store.read_as(RunRecord, folder.record).cost if folder.record.exists() else None
            store.write(folder.record, record.model_copy(update={"cost": before or _cost(self.loaded, self.method)}))
            self.display.done(label, self._evals(record, label))
            folder.error.unlink(missing_ok=True)
        except CannotWrite:
            raise
        except Exception as error:
            write_atomic(folder.error, "".join(traceback.format_exception(error)))
            self.display.done(label, f"failed: {said(error)}")
            return [f"{label}: {told(error)}\n            see {folder.error}"]
        finally:
            self.display.stop()
        return []

    def _evals(self, record: RunRecord, label: str) -> str:
        """What was done, in words."""
        wanted = {name: eval_config(self.study, name, record.cell.size) for name in self.study.evals}
        configs = {name: config for name, config in wanted.items() if can(self.method, load_eval(name).NEEDS)}
        snapshot = f"{self.loaded.file}-{self.loaded.sha256[:16]}"
        subject = Subject(record.cell, record.key, share=1.0, weights=self.loaded.kind, snapshot=snapshot)
        self.display.phase(label, f"evaluating {', '.join(configs) or 'nothing'}")
        folder, cache = self.place.run(record.key).evals(1.0), self.place.cache()
        run = store.read_as(RunRecord, self.place.run(record.key).record)
        done = evaluate_as(
            subject, lambda: self.method, self.data, configs, folder, cache, self.data_dir, run, self.force
        )
        cannot = ", ".join(wanted.keys() - configs.keys())
        text = f"evaluated {', '.join(done)}" if done else "nothing was left to do"
        return text + (f"; these weights cannot do: {cannot}" if cannot else "")


def _join(place: store.Study, study: Study, key: str) -> None:
    """Add the row to the study in the folder, whose own request stays; or begin one."""
    if (place.path / "study.json").exists():
        before = place.asked()
        asked = before.model_copy(update={"keys": [*before.keys, *([] if key in before.keys else [key])]})
    else:
        asked = StudyRecord(request=study.asked(), keys=[key])
    write_atomic(place.path / "study.json", asked.model_dump_json(indent=1) + "\n")


def _record(loaded: Loaded, method: Fitted, data: Dataset, size: str, borrowed: str | None) -> RunRecord:
    """The row's record; what it measures comes later."""
    spec = method.inner.data
    cell = Cell(method=loaded.name, dataset=data.spec.name, size=size, budget=RELEASED, seed=0)
    origin = Released(
        file=loaded.file,
        sha256=loaded.sha256,
        format=loaded.format,
        entry=loaded.entry,
        weights=loaded.kind,
        channels=spec.channels,
        image_size=spec.size,
        classes=loaded.classes,
        missing=loaded.missing,
        unexpected=loaded.unexpected,
    )
    cost = borrowed or loaded.recipe
    loan = Borrowed(what=f"released weights {loaded.file}", parameters=loaded.trained, cost=cost)
    said = [*method.remarks(), *loaded.notes]
    return RunRecord(
        key=_key(cell, loaded, method, data),
        cell=cell,
        config=loaded.config,
        train={},
        data_revision=data.revision,
        state="finished",
        borrowed=[loan, *(Borrowed(**item) for item in loaded.method.borrowed())],
        environment=machine.environment("bf16" if machine.device().type == "cuda" else "fp32", compiled=False),
        notes=[_note(loaded, size, cost), *(["; ".join(said)] if said else [])],
        released=origin,
        saw_labels=loaded.classes > 1 or method.inner.sees_labels,  # a table of one class says nothing of an image
    )


def _note(loaded: Loaded, size: str, cost: str | None) -> str:
    entry = f", entry {loaded.entry!r}" if loaded.entry else ""
    return (
        f"released weights {loaded.file} (format {loaded.format}{entry}, sha256 {loaded.sha256[:12]}): trained "
        f"elsewhere and on no budget of this study, so no rival of rows that were; compute borrowed: "
        f"{cost or 'not declared'}; evals as set for size {size}"
    )


def _key(cell: Cell, loaded: Loaded, method: Fitted, data: Dataset) -> str:
    """A name that changes whenever the numbers could: a readable part and a hash of everything."""
    content: list[Any] = [INTERFACE, cell.model_dump(), loaded.sha256, loaded.format, loaded.entry, loaded.config]
    content += [method.slice, data.revision, *filter(None, [loaded.described])]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    stem = Path(loaded.file).stem
    return f"{slug(f'{cell.method}-{stem}-{cell.dataset}-{cell.size}-released')}-{digest}"


def _cost(loaded: Loaded, method: Fitted) -> Cost:
    """The network as it stands, and what its first tap costs for an image of the data set."""
    device = machine.device()
    method.eval().to(device)
    flop_features, parameters_features = flops.feature_cost(method, method.taps()[0], Rng(0).to(device))
    return Cost(
        parameters=loaded.trained,
        parameters_features=parameters_features,
        parameters_frozen=loaded.frozen,
        flop_train_img=None,
        flop_features_img=flop_features,
    )
