"""`run --dry-run`: the scripts that it would submit, made as a plan is (harness/plan)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from harness import store
from harness.errors import HarnessError
from harness.launch import preflight, queue, submit
from harness.launch.folders import Batch
from harness.launch.options import Launch
from harness.launch.queue import Queue
from harness.launch.slurm import Slurm
from harness.launch.tasks import Task, graph
from harness.plan.planned import jobs
from harness.study import Study


def dry_run(study: Study, launch: Launch, out: Path, data_dir: Path | None) -> str:
    """The sbatch scripts that `run` would submit first, as text. Writes and submits nothing."""
    if launch.cluster != "slurm":
        raise HarnessError("--dry-run shows sbatch scripts", "--cluster slurm", "harness plan shows what would be done")
    queue.require()
    place, asking = store.Study(out / study.folder_name()), Queue()
    fits = preflight.check(launch, asking.partitions(), study)
    executor = Slurm(place, launch, fits.gpus, fits.limit_s, asking)
    tasks = graph(study, jobs(study, data_dir, fits.gpus))
    levels = Counter(task.level for task in tasks)
    first = {task.level: task for task in reversed(tasks)}
    closing = _script(place, Task("tables", needs=("all",)), 1, executor, "afterany")
    return "\n".join([*(_script(place, first[level], count, executor) for level, count in levels.items()), closing])


def _script(place: store.Study, task: Task, count: int, executor: Slurm, after: str = "aftercorr") -> str:
    code = str(place.path.resolve() / "code" / "DIGEST")
    batch = Batch(name=f"{task.kind}-DRY-RUN", tasks=["x"] * count, request={}, code=code, executor="slurm")
    kind = "afterok" if count == 1 and after == "aftercorr" else after
    waits = submit.After(kind, ("JOBID",)) if task.needs else None
    shape = submit.Shape.of(task.stage, executor.launch, executor.gpus)
    made = submit.executor(
        place.path.resolve() / "jobs" / batch.name, batch, shape, executor.launch, executor.limit_s, waits
    )
    return f"# ---- {task.kind}: {count} job(s)\n{submit.script(made, count)}"
