"""The plan: what `run` would do, with its price, without doing it."""

from __future__ import annotations

from pathlib import Path

from harness import store
from harness.display import duration
from harness.records import ENDED, RunRecord
from harness.resolve import Job, jobs
from harness.study import Study


def show_plan(study: Study, out: Path, data_dir: Path | None) -> None:
    """Print a row per cell and the sum."""
    from rich.console import Console
    from rich.table import Table

    place = store.Study(out / study.folder_name())
    todo = jobs(study, data_dir)
    table = Table("cell", "state", "batch", "parameters", "to charge", box=None, pad_edge=False)
    owed: dict[str, float] = {}  # seconds, once per pre-training, however many read it
    for job in todo:
        source = job.source or job
        state, share = _standing(place, job)
        if state not in ENDED:  # a reader's record says how its source stood when it was last asked
            state, share = _standing(place, source)
        owed_s = job.budget.limit * (1 - share) if job.budget.is_time else None
        price = _price(job, share, owed_s) if source.key not in owed else f"shared with {source.cell.method}"
        owed.setdefault(source.key, owed_s or 0.0)
        table.add_row(job.label, state, str(job.train.batch_size), f"{_trained(job):,}", price)
    left_s = sum(owed.values())
    console = Console()
    for column in table.columns:
        column.no_wrap = True
    console.print(table)
    console.print(_summary(study, todo, left_s, place), highlight=False, soft_wrap=True)


def _standing(place: store.Study, job: Job) -> tuple[str, float]:
    """State and share of the budget spent, as its record has them."""
    path = place.run(job.key).record
    if not path.exists():
        return "missing", 0.0
    record = store.read_as(RunRecord, path)
    return record.state, min(1.0, record.spend.share)


def _trained(job: Job) -> int:
    """Parameters trained in pre-training, counted on the meta device."""
    import torch

    with torch.device("meta"):
        method = job.method_class.create(job.config, job.data.spec)
    return sum(p.numel() for p in method.parameters() if p.requires_grad)


def _price(job: Job, share: float, owed_s: float | None) -> str:
    if owed_s is None:
        return f"{job.budget.amount * (1 - share):.6g} {job.budget.unit}"
    return f"{duration(owed_s)} {'GPU' if job.budget.reads == 'device_s' else 'wall'}"


def _summary(study: Study, todo: list[Job], left_s: float, place: store.Study) -> str:
    lines = [f"{len(todo)} run(s), evals: {', '.join(study.evals)}; folder {place.path}"]
    if left_s:
        lines.append(f"still to charge: {duration(left_s)}; evals, checkpoints and compilation are shown, not charged")
    for key in dict.fromkeys(job.source.key for job in todo if job.source):
        readers = [job.label for job in todo if job.source and job.source.key == key]
        lines.append(f"shared: {key} is pre-trained once, for {', '.join(readers)}")
    lines.append("nothing is downloaded")
    return "\n".join(lines)
