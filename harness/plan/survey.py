"""Where the jobs of a study would run, and what the cluster has to say about it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from harness import gpus
from harness.errors import HarnessError
from harness.launch.options import Launch
from harness.launch.preflight import Fits
from harness.launch.queue import Partition
from harness.launch.where import refuse_idle, where
from harness.study import Study


@dataclass(frozen=True)
class Survey:
    """What `run` would find. `problems` are what it would refuse."""

    launch: Launch  # `auto` settled
    why: str = ""
    gpus: int = 0  # of each node of a pre-training job
    fits: Fits | None = None  # of SLURM: what a job asks for
    partitions: list[Partition] = field(default_factory=list)
    problems: list[HarnessError] = field(default_factory=list)
    room: int = 1  # jobs that there is room for at a time

    @property
    def devices(self) -> int:
        """Processes of a pre-training job, one device each; a second of its wall time is so many device seconds."""
        if self.launch.cluster != "slurm":
            return 1
        return self.launch.nodes * (self.launch.processes or max(1, self.gpus))

    @property
    def width(self) -> int:
        return self.launch.parallel or self.room

    def links(self, wall_s: float) -> int:
        """Jobs, one after another, that so much work is done in."""
        if self.fits is None:
            return 1
        return max(1, -int(-wall_s // max(1, self.fits.limit_s - self.launch.signal_s)))


def survey(launch: Launch, given: Collection[str], study: Study) -> Survey:
    """Ask this machine and its cluster. `given` are the launch's options on the command line."""
    try:
        launch, why = where(launch)
    except HarnessError as error:  # a cluster that is set up wrongly
        return Survey(launch, problems=[error])
    if launch.cluster == "slurm":
        return _of_slurm(launch, why, study)
    if launch.cluster == "local":
        return _local(launch, why, given)
    return Survey(launch, why, int(gpus.count() > 0), problems=_idle(launch, given))


def _idle(launch: Launch, given: Collection[str]) -> list[HarnessError]:
    try:
        refuse_idle(launch, given)
    except HarnessError as error:
        return [error]
    return []


def _local(launch: Launch, why: str, given: Collection[str]) -> Survey:
    from harness.launch import local

    problems = _idle(launch, given)
    try:
        devices = local.devices(launch.gpus)
    except HarnessError as error:
        return Survey(launch, why, problems=[*problems, error])
    return Survey(launch, why, int(any(devices)), problems=problems, room=len(devices))


def _of_slurm(launch: Launch, why: str, study: Study) -> Survey:
    from harness.launch import preflight, queue
    from harness.launch.queue import Queue

    try:
        queue.require()
        partitions = Queue(patience_s=0).partitions()
    except HarnessError as error:
        return Survey(launch, why, launch.gpus or 0, problems=[error])
    problems = list(preflight.problems(launch, partitions, study))
    try:
        fits = preflight.fits(launch, partitions)
    except HarnessError:  # among the problems already
        return Survey(launch, why, launch.gpus or 0, None, partitions, problems)
    return Survey(launch, why, fits.gpus, fits, partitions, problems, _room(launch, fits))


def _room(launch: Launch, fits: Fits) -> int:
    """Pre-training jobs that an empty partition holds."""
    processes = launch.processes or max(1, fits.gpus)
    rooms = 0
    for nodes in fits.nodes:
        by_cpus = nodes.cpus // max(1, processes * launch.cpus)
        rooms += nodes.count * (nodes.gpus_of(launch.gpu_type) // fits.gpus if fits.gpus else by_cpus)
    return max(1, rooms // launch.nodes)
