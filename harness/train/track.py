"""Trackers: what a run logs, and what its evals find, also for TensorBoard, W&B or MLflow (accelerate's trackers).

None unless asked for with `--track`. All of them write below STUDY/runs/KEY/track/ and nothing leaves the machine, but
where the user's own environment says so (WANDB_MODE, MLFLOW_TRACKING_URI). A resumed run goes on in the same place. A
tracker that fails is told once and left out: it never stops a run. W&B holds lines back in memory, so that those of a
killed attempt may be missing there; the run's log has them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, said
from harness.files import write_atomic
from harness.train.settings import TRACKERS, UNKEYED

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from harness.records import EvalRecord, RunRecord
    from harness.store import RunFolder

MLFLOW_URI = "MLFLOW_TRACKING_URI"
OURS = "/track/mlflow"  # how the address of our own stores ends


def require(names: Iterable[str]) -> None:
    """Raise HarnessError where a tracker's package is missing; called before any work."""
    for name in names:
        if find_spec(TRACKERS[name]) is None:
            raise HarnessError(
                f"the tracker {name} needs the package {TRACKERS[name]!r}, which is not installed",
                f"it beside the harness, or no {name} in --track (train.track)",
                f"pip install {TRACKERS[name]}",
            )


class Tracking:
    """One run's trackers, started when they first have something to write. A context, which closes them."""

    def __init__(self, names: Iterable[str], folder: RunFolder, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say
        self._waiting = tuple(names)
        self._open: dict[str, GeneralTracker] = {}
        self._resumed_at: int | None = None

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            self._safely(name, self._open[name].finish)
        self._open.clear()

    def __bool__(self) -> bool:
        return bool(self._waiting or self._open)

    def line(self, line: dict[str, Any]) -> None:
        """A line of the run's log, as it is written there."""
        if line.get("event") == "resumed":
            self._resumed_at = line["step"]
        if "loss" not in line or not self:
            return
        phase = line["phase"]
        values = {f"{phase}/{name}": line[name] for name in ("loss", "lr", "img_s")}
        values |= {f"{phase}/{name}": value for name, value in line.get("terms", {}).items()}
        values |= {f"ledger/{name}": seconds for name, seconds in line["ledger"].items()}
        self._write(values | {"budget/share": line["share"]}, line["step"])

    def evaluated(self, record: EvalRecord, run: RunRecord) -> None:
        """An eval's numbers, at the step of the snapshot that they are of."""
        at = run.snapshots.get(f"{record.share:.4f}") if record.share is not None else None
        if at is not None:
            kind = "evals-quick" if record.cheap else "evals"
            self._write({f"{kind}/{record.eval}/{k}": n.value for k, n in record.numbers.items()}, int(at.step))

    def _write(self, values: dict[str, float], step: int) -> None:
        self._start()
        for name in list(self._open):
            self._safely(name, lambda name=name: _log(name, self._open[name], values, step))

    def _start(self) -> None:
        names, self._waiting = self._waiting, ()
        for name in names:
            self._safely(name, lambda name=name: self._open.update({name: self._started(name)}))

    def _started(self, name: str) -> GeneralTracker:
        from accelerate import PartialState

        from harness import machine

        if not PartialState._shared_state:  # a run's stage has made it; accelerate's own logger asks for it
            PartialState(cpu=machine.device().type == "cpu")
        place = self.folder.track / name
        place.mkdir(parents=True, exist_ok=True)
        tracker = _STARTS[name](place, self.folder.path, self._resumed_at)
        tracker.main_process_only = False  # whoever calls is the first process; asking would start a process group
        tracker.start()
        _AFTER.get(name, lambda tracker, place: None)(tracker, place)
        return tracker

    def _safely(self, name: str, do: Callable[[], Any]) -> None:
        try:
            do()
        except Exception as error:  # whatever a tracker raises, a run is worth more
            self._open.pop(name, None)
            self._say(f"no longer tracked by {name} ({said(error)}); the run goes on, its log has everything")


# -- each tracker -----------------------------------------------------------------------------------------------------


def _tensorboard(place: Path, run: Path, resumed_at: int | None) -> GeneralTracker:
    """Event files in one folder are one run; steps that are taken again hide what was written of them before."""
    from accelerate.tracking import TensorBoardTracker

    purge = {} if resumed_at is None else {"purge_step": resumed_at + 1}
    return TensorBoardTracker(run_name=place.name, logging_dir=place.parent, **purge)


def _wandb(place: Path, run: Path, resumed_at: int | None) -> GeneralTracker:
    """The run's key is its id; a later `wandb sync` of several attempts makes one run of them."""
    from accelerate.tracking import WandBTracker

    return WandBTracker(
        run_name=_study(run),
        id=run.name,
        name=run.name,
        resume="allow",
        dir=str(place),
        mode=os.environ.get("WANDB_MODE", "offline"),
        config=_about(run),
        settings={"console": "off", "silent": True},  # the display is ours
    )


def _mlflow(place: Path, run: Path, resumed_at: int | None) -> GeneralTracker:
    import mlflow
    from accelerate.tracking import MLflowTracker

    own_id = place / "run_id"
    if os.environ.get(MLFLOW_URI, OURS).endswith(OURS):  # MLflow itself sets it to what it was last told
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # plain files; a data base's locks break on NFS
        mlflow.set_tracking_uri(place.absolute().as_uri())
    return MLflowTracker(
        experiment_name=_study(run), run_id=own_id.read_text() if own_id.exists() else None, run_name=run.name
    )


def _after_mlflow(tracker: GeneralTracker, place: Path) -> None:
    write_atomic(place / "run_id", tracker.tracker.info.run_id)
    tracker.store_init_configuration(_about(place.parent.parent))


_STARTS: dict[str, Callable[[Path, Path, int | None], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
_AFTER = {"mlflow": _after_mlflow}


def _log(name: str, tracker: GeneralTracker, values: dict[str, float], step: int) -> None:
    if name == "wandb":  # drops what comes with an earlier step, as evals of earlier snapshots do
        tracker.log({**values, "step": step})
    else:
        tracker.log(values, step=step)


def _study(run: Path) -> str:
    return run.parent.parent.name


def _about(run: Path) -> dict[str, Any]:
    """The run's cell and settings, flat."""
    from harness import store
    from harness.records import RunRecord

    record = store.read_as(RunRecord, store.RunFolder(run).record)
    train = {f"train.{name}": value for name, value in record.train.items() if name not in UNKEYED}
    about = record.cell.model_dump() | {f"config.{name}": value for name, value in record.config.items()} | train
    return {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in about.items()}
