"""One cell's pre-training, from its folder and back into its record."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness import checkpoint, energy, machine, peak, store
from harness.budget import Meter
from harness.config import plain
from harness.display import Display
from harness.distributed import ALONE, Ranks, lost_another
from harness.errors import CannotWrite, Diverged, said
from harness.method import Method
from harness.plugins import card
from harness.records import Borrowed, Cost, RunRecord, Spec, Spend
from harness.resolve import Job
from harness.rng import Rng
from harness.signals import Stopper
from harness.store import RunFolder
from harness.train import flops
from harness.train.pretraining import Interrupted, Pretraining
from harness.train.track import Tracking


def pretrain_run(
    job: Job,
    folder: RunFolder,
    before: RunRecord | None,
    display: Display,
    stopper: Stopper,
    guard: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
    waited_s: float = 0.0,
) -> RunRecord:
    """Pre-train from wherever the folder stands; the record says how it ended. Raises Interrupted when stopped.

    `guard` is called before anything is written, and may raise: then nothing more is. `waited_s` is the time that the
    run has stood in queues, over all attempts. With several `ranks` all of them
    call this function; the first one decides, asks its guard and writes, and all return its record.
    """
    names = job.train.track if ranks.first else ()
    with Tracking(names, folder, lambda line: display.say(f"{job.label}: {line}")) as tracking:
        track = tracking.line if tracking else None
        return _tracked(job, folder, before, display, stopper, guard, ranks, track, waited_s)


def _tracked(
    job: Job,
    folder: RunFolder,
    before: RunRecord | None,
    display: Display,
    stopper: Stopper,
    guard: Callable[[], None],
    ranks: Ranks,
    track: Callable[[dict[str, Any]], None] | None,
    waited_s: float,
) -> RunRecord:
    peak.stated()  # a setting that is no number is refused before any work
    ranks.check_batch(job.train.batch_size, "train.batch_size")
    keep = _Writer(folder, guard, ranks)
    record = opening(job, ranks.told(before))
    keep(record)
    machine.forget_peak_memory()
    try:
        method = job.build()
        record = _known(record, method)
        preparation = method.preparation()
        if preparation is not None and preparation.batch_size:
            ranks.check_batch(preparation.batch_size, "the preparation's batch size")
    except Exception as error:
        keep(record.model_copy(update={"state": "failed", "message": said(error)}))
        raise
    keep(record)
    work = _pretraining(job, folder, method, display, stopper, guard, ranks, track)
    work.waited_s = waited_s
    if ranks.first:
        display.phase(job.label, "starting" if before is None else "going on")
    state, message = "finished", None
    try:
        with stopper.graceful():
            work.run()
    except Diverged as error:
        state, message = "diverged", str(error)
    except Interrupted:
        keep(_closing(record, work, method, "interrupted", None))
        raise
    except CannotWrite:
        raise
    except Exception as error:
        keep(_closing(record, work, method, "failed", LOST if lost_another(error) else said(error)))
        raise
    record = _closing(record, work, method, state, message)
    keep(record)
    if state == "finished" and ranks.first:
        checkpoint.prune(folder.checkpoints, keep=1)
        shutil.rmtree(folder.cache, ignore_errors=True)  # latents that only training needs
    record, stopped = ranks.told((record.model_dump(), stopper.asked))
    if stopped:  # during the last step: nothing is left to save
        raise Interrupted
    return RunRecord.model_validate(record)


LOST = "another process of the job ended or fell silent; its log says why"


@dataclass(frozen=True)
class _Writer:
    """Writes the run's record, from the first of the ranks and where its guard lets it."""

    folder: RunFolder
    guard: Callable[[], None]
    ranks: Ranks

    def __call__(self, record: RunRecord) -> None:
        if self.ranks.first:
            self.guard()
            store.write(self.folder.record, record)


def _pretraining(
    job: Job,
    folder: RunFolder,
    method: Method,
    display: Display,
    stopper: Stopper,
    guard: Callable[[], None],
    ranks: Ranks,
    track: Callable[[dict[str, Any]], None] | None,
) -> Pretraining:
    def tell(what: Callable[[], None]) -> None:
        if ranks.first:
            what()

    return Pretraining(
        method=method,
        fit=job.data.fit,
        mirror=job.data.mirror,
        budget=job.budget,
        settings=job.train,
        batch_size=job.train.batch_size,
        folder=folder,
        rng=Rng(job.cell.seed),
        device=ranks.device,
        ranks=ranks,
        notify=lambda tick: tell(lambda: display.tick(job.label, tick)),
        say=lambda line: tell(lambda: display.say(f"{job.label}: {line}")),
        should_stop=lambda: stopper.asked,
        guard=guard,
        track=track,
        energy=energy.EnergyMeter(energy.counters(ranks.device, packages_too=ranks.local == 0)),
    )


def opening(job: Job, before: RunRecord | None) -> RunRecord:
    """The record as an attempt begins; what an earlier attempt measured stays until this one knows better."""
    images = job.data.spec
    spec = Spec(channels=images.channels, size=images.size, classes=images.classes)
    if before is not None:
        update = {"state": "running", "message": None, "attempts": before.attempts + 1, "spec": spec}
        return before.model_copy(update=update)
    return RunRecord(
        key=job.key,
        cell=job.cell,
        config=plain(job.config),
        train=plain(job.train),
        data_revision=job.data.revision,
        spec=spec,
        state="running",
        notes=card(job.cell.method).get("notes", []),
    )


def _known(record: RunRecord, method: Method) -> RunRecord:
    """The record with what the method says of itself before it is trained."""
    about, preparation = card(record.cell.method), method.preparation()
    borrowed = [Borrowed(**item) for item in [*about.get("borrowed", []), *method.borrowed()]]
    saw = method.sees_labels or (preparation is not None and preparation.objective.sees_labels)
    return record.model_copy(update={"borrowed": borrowed, "saw_labels": saw})


def _closing(record: RunRecord, work: Pretraining, method: Method, state: str, message: str | None) -> RunRecord:
    """The record with everything that was measured."""
    meter = work.meter()
    stage = work.stage
    update = {
        "state": state,
        "message": message,
        "spend": Spend(**vars(meter), share=work.budget.spent(meter)),
        "snapshots": {
            f"{share:.4f}": Spend(**at, share=work.budget.spent(Meter(**at)))
            for share, at in sorted(work.snapshots.items())
        },
        "ledger": {name: round(seconds, 3) for name, seconds in work.ledger.snapshot().items()},
        "environment": machine.environment(stage.precision, stage.compiled, work.devices) if stage else None,
        "final_loss": stage.loss if stage else None,
        "cost": _cost(work, method, record.cost) if stage and state != "failed" else record.cost,
    }
    return RunRecord.model_validate(record.model_dump() | update)


def _cost(work: Pretraining, method: Method, before: Cost | None) -> Cost:
    """What the run cost all ranks together; its peak memory is that of the rank that took most."""
    trained = [p for p in method.parameters() if p.requires_grad]
    train_s = work.ledger.snapshot()["train"]
    img_s = work.train_img / train_s if train_s > 0 else None
    flop_train = work.flop_per_image.get("train", work.flop_per_image[work.stage.name])
    peak_flop_s = _peak_flop_s(work)
    method.eval()
    flop_features, parameters_features = flops.feature_cost(method, method.taps()[0], work.rng.to(work.device))
    most = max(taken for (taken,) in work.ranks.gather(machine.peak_memory_bytes()))
    return Cost(
        parameters=sum(p.numel() for p in trained),
        parameters_features=parameters_features,
        parameters_frozen=sum(p.numel() for p in method.parameters() if not p.requires_grad),
        flop_train_img=flop_train,
        flop_features_img=flop_features,
        img_s=img_s,
        mfu=flop_train * img_s / peak_flop_s if img_s and peak_flop_s else None,
        peak_flop_s=peak_flop_s,
        peak_memory_bytes=max(int(most), before.peak_memory_bytes or 0 if before else 0),
        energy_j=work.joules(),
        energy_source=work.energy.source,
        outside_share=work.outside_share(),
    )


def _peak_flop_s(work: Pretraining) -> float | None:
    """Of all the run's devices; a processor has one only where the user states it."""
    one = peak.peak_flop_s(machine.device_name(), work.stage.precision, peak.rounds_to_tf32())
    return None if one is None else one * work.devices
