"""One cell's pre-training, from its folder and back into its record."""

from __future__ import annotations

from harness import checkpoint, machine, store
from harness.budget import Meter
from harness.config import plain
from harness.display import Display
from harness.errors import Diverged
from harness.method import Method
from harness.plugins import card
from harness.records import Borrowed, Cost, RunRecord, Spend
from harness.resolve import Job
from harness.rng import Rng
from harness.signals import Stopper
from harness.store import RunFolder
from harness.train import flops
from harness.train.pretraining import Interrupted, Pretraining


def pretrain_run(
    job: Job, folder: RunFolder, before: RunRecord | None, display: Display, stopper: Stopper
) -> RunRecord:
    """Pre-train from wherever the folder stands; the record says how it ended. Raises Interrupted when stopped."""
    record = _opening(job, before)
    store.write(folder.record, record)
    machine.forget_peak_memory()
    device = machine.device()
    method = job.build()
    work = Pretraining(
        method=method,
        fit=job.data.fit,
        mirror=job.data.mirror,
        budget=job.budget,
        settings=job.train,
        batch_size=job.train.batch_size,
        folder=folder,
        rng=Rng(job.cell.seed),
        device=device,
        notify=lambda tick: display.tick(job.label, tick),
        say=lambda line: display.say(f"{job.label}: {line}"),
        should_stop=lambda: stopper.asked,
    )
    state, message = "finished", None
    display.phase(job.label, "starting" if before is None else "going on")
    try:
        with stopper.graceful():
            work.run()
    except Diverged as error:
        state, message = "diverged", str(error)
    except Interrupted:
        store.write(folder.record, _closing(record, work, method, "interrupted", None))
        raise
    record = _closing(record, work, method, state, message)
    store.write(folder.record, record)
    if state == "finished":
        checkpoint.prune(folder.checkpoints, keep=1)
    return record


def _opening(job: Job, before: RunRecord | None) -> RunRecord:
    about = card(job.cell.method)
    return RunRecord(
        key=job.key,
        cell=job.cell,
        config=plain(job.config),
        train=plain(job.train),
        data_revision=job.data.revision,
        state="running",
        attempts=1 if before is None else before.attempts + 1,
        borrowed=[Borrowed(**item) for item in about.get("borrowed", [])],
        notes=about.get("notes", []),
    )


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
        "environment": machine.environment(stage.precision, stage.compiled) if stage else None,
        "final_loss": stage.loss if stage else None,
        "cost": _cost(work, method) if stage else None,
    }
    return RunRecord.model_validate(record.model_dump() | update)


def _cost(work: Pretraining, method: Method) -> Cost:
    trained = [p for p in method.parameters() if p.requires_grad]
    train_s = work.ledger.snapshot()["train"]
    method.eval()
    flop_features, parameters_features = flops.feature_cost(method, method.taps()[0], work.rng.to(work.device))
    return Cost(
        parameters=sum(p.numel() for p in trained),
        parameters_features=parameters_features,
        parameters_frozen=sum(p.numel() for p in method.parameters() if not p.requires_grad),
        flop_train_img=work.flop_per_image.get("train", work.flop_per_image[work.stage.name]),
        flop_features_img=flop_features,
        img_s=work.train_img / train_s if train_s > 0 else None,
        peak_memory_bytes=machine.peak_memory_bytes(),
        outside_share=work.stage.timing.outside_share(),
    )
