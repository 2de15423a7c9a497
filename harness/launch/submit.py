"""What SLURM is told, through submitit: scripts, arrays, what comes after what; and a job's own words to it."""

from __future__ import annotations

import errno
import math
import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.errors import HarnessError
from harness.files import explain
from harness.launch.folders import Attempts, Batch, Batches, Submitted
from harness.launch.options import Launch
from harness.launch.queue import UNREACHABLE, InQueue, Queue, Unreachable, seconds
from harness.launch.tasks import parse

if TYPE_CHECKING:
    from submitit import SlurmExecutor

    from harness.launch.job import Work

PREFIX = "harness-"  # of the names of our jobs, before the batch's
FOLDER = "%j"  # of each element, in that of its batch
REQUEUE_TRIES = 3
SIGNAL_EARLY_S = 90  # that SLURM may send the signal before its time (sbatch: up to a minute), and some to spare
TURNS = 3  # that sbatch is called, in an outage
LATE_S = 5.0  # that a controller may take to show a job whose sbatch it did not answer in time
FOREVER = 10**6  # requeues that submitit would count; we count attempts ourselves


@dataclass(frozen=True)
class Shape:
    """What one job of a stage asks for."""

    gpus: int = 0  # of each node
    nodes: int = 1
    processes: int = 1  # of each node
    cpus: int = 0  # of each process; 0: the cluster's default
    mem: str = ""  # of each node; the cluster's default

    @classmethod
    def of(cls, stage: str, launch: Launch, gpus: int) -> Shape:
        """Pre-training takes what was asked for, an evaluation one process of it, tables what the cluster gives."""
        if stage == "pretrain":
            return cls(gpus, launch.nodes, launch.processes or max(1, gpus), launch.cpus, launch.mem)
        if stage == "tables":
            return cls()
        return cls(min(gpus, 1), cpus=launch.cpus, mem=launch.mem)


@dataclass(frozen=True)
class After:
    """What a batch waits for: each element for that of the same index, or the whole for jobs however they end."""

    kind: str  # "aftercorr", "afterok" or "afterany"
    jobs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}:{':'.join(self.jobs)}"


def executor(
    folder: Path, batch: Batch, shape: Shape, launch: Launch, limit_s: int | None, after: After | None
) -> SlurmExecutor:
    """submitit's, with everything that the batch's script says."""
    import submitit

    python = launch.python or shlex.quote(sys.executable)
    # The signal may come while Python starts and nobody handles it yet: ignored until then.
    quiet = f'sh -c \'trap "" USR2; exec "$@"\' sh {python}'
    made = submitit.SlurmExecutor(folder / FOLDER, max_num_timeout=FOREVER, python=quiet)
    further: dict[str, Any] = {"requeue": True, **launch.slurm}
    if after is not None:
        further |= {"dependency": str(after), "kill-on-invalid-dep": "yes"}
    srun = ["--kill-on-bad-exit=1", *([f"--cpus-per-task={shape.cpus}"] if shape.cpus else [])]
    words: dict[str, Any] = {
        "job_name": PREFIX + batch.name,
        "comment": batch.name,
        "wckey": None,  # submitit's own, which a cluster that enforces keys refuses
        "nodes": shape.nodes,
        "ntasks_per_node": shape.processes,
        "signal_delay_s": launch.signal_s,
        "setup": setup(batch),
        "srun_args": srun,
        "additional_parameters": further,
    }
    if limit_s is not None:
        words["time"] = max(1, math.ceil(limit_s / 60))
    if launch.parallel:
        words["array_parallelism"] = launch.parallel
    else:
        words["array_parallelism"] = max(1, len(batch.tasks))
    if shape.gpus:
        words["gpus_per_node"] = f"{launch.gpu_type}:{shape.gpus}" if launch.gpu_type else shape.gpus
    words |= {"cpus_per_task": shape.cpus} if shape.cpus else {}
    words |= {
        k: v for k, v in {"mem": shape.mem, "partition": launch.partition, "account": launch.account}.items() if v
    }
    made.update_parameters(**words)
    return made


def setup(batch: Batch) -> list[str]:
    """Shell lines before the work: the frozen code goes before whatever is installed or lies in the folder at hand."""
    return [
        f'export PYTHONPATH={shlex.quote(batch.code)}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        "export PYTHONSAFEPATH=1",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
    ]


def script(made: SlurmExecutor, count: int) -> str:
    """The sbatch script of a batch of `count` jobs, as it would be submitted."""
    parameters = dict(made.parameters)
    if count > 1:
        made.parameters["map_count"] = count
    try:
        return made._make_submission_file_text(made._submitit_command_str, "")
    finally:
        made.parameters = parameters


def submit(place: store.Study, batch: Batch, attempts: Sequence[int], made: SlurmExecutor, queue: Queue) -> Submitted:
    """Submit the batch as one array, and write its id down.

    A submission that fails in an outage may have worked all the same: the queue is asked for its name first.
    Raises Unreachable, or HarnessError with what sbatch refused.
    """
    work = _work(place, batch, attempts)
    for turn in range(TURNS):
        with _outside():
            try:
                with made.batch():
                    jobs = [made.submit(item) for item in work]
                submitted = Submitted(job=jobs[0].job_id.partition("_")[0], array=len(jobs) > 1)
                if turn:
                    _end_others(queue, batch.name, submitted)
                break
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise explain(error, place.path / "jobs" / batch.name) from error
                said = _said(error)
                away = any(sign in said for sign in UNREACHABLE)
                if away:
                    time.sleep(LATE_S)
                # Unless sbatch itself refused, it may be in the queue all the same.
                found = None if not away and "sbatch: error" in said else named(queue, batch.name)
                if found is None and not away:
                    raise refused(said, batch) from error
                if found is None and turn + 1 == TURNS:
                    next_step = "repeat the command"
                    raise Unreachable(f"SLURM's controller does not answer: {said}", "", next_step) from error
                if found is not None:
                    submitted = found
                    break
    give(place, batch, attempts, submitted)
    Batches(place).write_submitted(batch.name, submitted)
    return submitted


def _work(place: store.Study, batch: Batch, attempts: Sequence[int]) -> list[Work]:
    from harness.launch.job import Work

    return [Work(str(place.path.resolve()), batch.name, index, attempt) for index, attempt in enumerate(attempts)]


def give(place: store.Study, batch: Batch, attempts: Sequence[int], submitted: Submitted) -> None:
    """Write the files that the jobs wait for and do not have: submitit writes them once sbatch has answered, which it
    may not, and its process may die before."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    for index, work in enumerate(_work(place, batch, attempts)):
        job = f"{submitted.job}_{index}" if submitted.array else submitted.job
        path = JobPaths(Batches(place).path(batch.name) / FOLDER, job_id=job).submitted_pickle
        if path.exists():
            continue
        delayed = DelayedSubmission(work)
        delayed.set_timeout(1, FOREVER)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        delayed.dump(temporary)
        temporary.replace(path)


def attempts_of(place: store.Study, batch: Batch) -> list[int]:
    """The attempts that the batch makes, by index: of one that was claimed by another command, none, told as 0."""
    found = []
    for index, name in enumerate(batch.tasks):
        claims = [] if name == "tables" else reversed(Attempts(place, parse(name)).all())
        ours = (claim.attempt for claim in claims if (claim.batch, claim.index) == (batch.name, index))
        found.append(1 if name == "tables" else next(ours, 0))
    return found


def _end_others(queue: Queue, batch: str, submitted: Submitted) -> None:
    """Of an sbatch that was not answered and taken all the same, later than it was asked for."""
    rows = queue.jobs().values()
    others = {row.id.partition("_")[0] for row in rows if row.name == PREFIX + batch and row.alive} - {submitted.job}
    queue.cancel(sorted(others))


def named(queue: Queue, batch: str) -> Submitted | None:
    """The job of that batch in the queue, whoever submitted it."""
    return of_name(batch, queue.jobs().values())


def of_name(batch: str, rows: Iterable[InQueue]) -> Submitted | None:
    """The job of that batch among the queue's rows."""
    rows = [row for row in rows if row.name == PREFIX + batch]
    if not rows:
        return None
    job, _, index = rows[0].id.partition("_")
    return Submitted(job=job, array=bool(index))


@contextmanager
def _outside() -> Iterator[None]:
    """Submitting from inside a job: what the job's environment says is not for the new one."""
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:  # a user's own SBATCH_ACCOUNT and the like hold
        yield
        return
    configuration = os.environ.get("SLURM_CONF")
    with clean_env(extra_names=["PYTHONSAFEPATH", "HARNESS_RENDEZVOUS"]):
        if configuration is not None:
            os.environ["SLURM_CONF"] = configuration
        yield
        os.environ.pop("SLURM_CONF", None)


def _said(error: BaseException) -> str:
    """What the command wrote, out of submitit's error about it."""
    found = re.search(r"(sbatch: error:.*|slurm_load.*|.*[Uu]nable to contact.*)", str(error), re.DOTALL)
    return (found[1] if found else str(error)).strip()


REFUSALS = (
    ("partition", "Invalid partition|invalid partition", "--partition NAME: sinfo lists them"),
    (
        "submit",
        "MaxSubmitJob|MaxJobCount|AssocMaxJobs|QOSMaxJobs",
        "fewer cells a command: the rest when these are done",
    ),
    (
        "policy",
        "accounting/QOS policy",
        "`sacctmgr show qos` and `sacctmgr show associations` list what you may ask for",
    ),
    (
        "account",
        "Invalid account|InvalidAccount",
        "--account NAME: `sacctmgr show associations user=$USER` lists yours",
    ),
    ("memory", "Memory specification", "a smaller cluster.mem"),
    ("limit", "time limit|TimeLimit", "--time, at most the partition's limit (sinfo)"),
    ("node", "node configuration is not available|more processors|Node count", "fewer --gpus, --nodes or cluster.cpus"),
    ("qos", "[Qq][Oo][Ss]", "slurm.qos=NAME, or fewer jobs at a time with --parallel"),
)


def refused(said: str, batch: Batch) -> HarnessError:
    """sbatch's refusal, with what to change."""
    next_step = next(
        (step for _, sign, step in REFUSALS if re.search(sign, said)), "harness run --dry-run shows the script"
    )
    return HarnessError(f"sbatch refused {batch.name}: {said}", "a request that the cluster accepts", next_step)


# -- inside a job -----------------------------------------------------------------------------------------------------


def inside_job(study: Path, batch: str) -> None:
    """What comes first in a job: leftovers of an earlier run of it removed, processes told of each other."""
    import submitit
    from submitit.helpers import TorchDistributedEnvironment

    environment = submitit.JobEnvironment()
    paths = environment.paths
    for path in (paths.result_pickle, paths.submitted_pickle):  # else submitit would fail on them at the end
        path.with_name(path.name + ".save_tmp").unlink(missing_ok=True)
    if environment.num_tasks > 1:
        # Which GPUs are this job's, SLURM has said; submitit would overwrite it.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        stored = Batches(store.Study(study)).read(batch)
        if stored is not None and stored.rendezvous == "file":
            turn = os.environ.get("SLURM_RESTART_COUNT", "0")
            name = f"rendezvous-{environment.job_id}-{turn}"
            os.environ["HARNESS_RENDEZVOUS"] = str(Batches(store.Study(study)).path(batch) / name)


def by_time_limit(signal_s: int) -> bool:
    """Whether this job has used up its time but for what the signal comes before; not so where nobody can say."""
    import submitit

    id = submitit.JobEnvironment().job_id
    try:
        used, _, limit = Queue().run(["squeue", "-h", "-j", id, "-o", "%M|%l"], patience_s=0).strip().partition("|")
    except HarnessError:
        return False
    used_s, limit_s = seconds(used), seconds(limit)
    return used_s is not None and limit_s is not None and used_s >= limit_s - signal_s - SIGNAL_EARLY_S


def requeue_self() -> bool:
    """Put this job back into the queue; False where the cluster does not let it, and somebody else has to."""
    import submitit

    environment = submitit.JobEnvironment()
    if environment.global_rank != 0:
        return True
    for left in reversed(range(REQUEUE_TRIES)):  # the controller may be away for a moment
        try:
            subprocess.run(["scontrol", "requeue", environment.job_id], check=True, timeout=60)
            break
        except (OSError, subprocess.SubprocessError) as error:
            if not left:
                print(f"cannot go back into the queue ({error}): the next `run` or `resume` submits it", flush=True)
                return False
            time.sleep(2)
    return True
