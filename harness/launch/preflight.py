"""Whether the cluster can run what is asked for, before anything is submitted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.budget import parse_budget
from harness.display import duration
from harness.errors import HarnessError, unknown
from harness.launch.options import Launch
from harness.launch.queue import Nodes, Partition
from harness.study import Study

USUAL_LIMIT_S = 4 * 3600  # of a job where nobody says otherwise: short enough to fit gaps in the queue
LEAST_WORK_S = 10.0  # before the signal, beside one checkpoint interval


@dataclass(frozen=True)
class Fits:
    partition: Partition
    gpus: int  # of each node
    limit_s: int
    nodes: tuple[Nodes, ...]  # of the partition, those that have as many GPUs of the type asked for


def check(launch: Launch, partitions: list[Partition], study: Study | None = None) -> Fits:
    """What the jobs get. Raises HarnessError, naming what to change, where the partition cannot give it."""
    for problem in problems(launch, partitions, study):
        raise problem
    return fits(launch, partitions)


def fits(launch: Launch, partitions: list[Partition]) -> Fits:
    """What the jobs ask for, whether or not the partition can give it. Raises HarnessError where there is none."""
    partition = _partition(launch, partitions)
    gpus = min(1, partition.gpus()) if launch.gpus is None else launch.gpus
    limit_s = launch.limit_s or min(USUAL_LIMIT_S, partition.limit_s or USUAL_LIMIT_S)
    return Fits(partition, gpus, limit_s, tuple(partition.with_gpus(gpus, launch.gpu_type)))


def problems(launch: Launch, partitions: list[Partition], study: Study | None = None) -> Iterator[HarnessError]:
    """Everything that the cluster cannot run of it, each with what to change."""
    try:
        asked = fits(launch, partitions)
    except HarnessError as error:
        yield error
        return
    partition, gpus = asked.partition, asked.gpus
    if not asked.nodes:
        yield _too_many_gpus(launch, asked, partitions)
    else:
        yield from _nodes(launch, asked)
    if study is not None and gpus == 0:
        yield from _gpu_time(study, partition)
    yield from _time(launch, asked, study)


def _too_many_gpus(launch: Launch, asked: Fits, partitions: list[Partition]) -> HarnessError:
    partition, kind = asked.partition, launch.gpu_type
    if kind and not partition.gpus(kind):
        having = [p.name for p in partitions if p.gpus(kind)]
        where = f"--partition {having[0]}, or " if having else ""
        types = ", ".join(partition.gpu_types) or "no type that sinfo names"
        return HarnessError(
            f"cluster.gpu_type={kind}, and the partition {partition.name!r} has no such GPU",
            types,
            f"{where}leave it out",
        )
    most, best = partition.gpus(kind), max(partitions, key=lambda p: p.gpus(kind))
    elsewhere = f"; {best.name} has {best.gpus(kind)}" if best.gpus(kind) > most else ""
    of = f" of type {kind}" if kind else ""
    return HarnessError(
        f"--gpus {asked.gpus}{of} on each node, and the nodes of the partition {partition.name!r} have {most}",
        f"at most {most}{elsewhere}",
        f"--gpus {most}, or --nodes for more than one node has",
    )


def _nodes(launch: Launch, asked: Fits) -> Iterator[HarnessError]:
    """Nodes that have the GPUs, counted, and their CPUs."""
    name, gpus = asked.partition.name, asked.gpus
    processes, cpus = launch.processes or max(1, gpus), max(nodes.cpus for nodes in asked.nodes)
    if max(1, launch.cpus) * processes > cpus:  # sbatch takes it, and it waits for ever
        yield HarnessError(
            f"{processes} process(es) of {max(1, launch.cpus)} CPU(s) on each node, "
            f"and the nodes of {name!r} have {cpus}",
            "as many as one node has",
            "a smaller cluster.cpus or cluster.processes",
        )
    there = sum(nodes.count for nodes in asked.nodes)
    if launch.nodes > there:
        able = f" {there} with as many GPUs" if len(asked.nodes) < len(asked.partition.kinds) else f" {there}"
        yield HarnessError(
            f"--nodes {launch.nodes}, and the partition {name!r} has{able}",
            f"at most {there}",
            f"--nodes {there}, or another --partition",
        )


def _partition(launch: Launch, partitions: list[Partition]) -> Partition:
    names = [partition.name for partition in partitions]
    if launch.partition:
        for partition in partitions:
            if partition.name == launch.partition:
                break
        else:
            raise unknown("partition", launch.partition, names, "sinfo lists them; --partition NAME")
    else:
        defaults = [partition for partition in partitions if partition.default]
        if not defaults:
            raise HarnessError("the cluster has no default partition", f"one of {', '.join(names)}", "--partition NAME")
        partition = defaults[0]
    if not partition.up:
        raise HarnessError(
            f"the partition {partition.name!r} is down", f"one of {', '.join(names)}", "--partition NAME"
        )
    return partition


def _gpu_time(study: Study, partition: Partition) -> Iterator[HarnessError]:
    for text in study.budget:
        if parse_budget(text).reads == "device_s":
            yield HarnessError(
                f"--budget {text} is counted in GPU time, and the jobs have no GPU",
                "a partition with GPUs, or a budget in wall time or in counts",
                f"--gpus 1, or another partition than {partition.name!r}",
            )


def _time(launch: Launch, asked: Fits, study: Study | None) -> Iterator[HarnessError]:
    partition, limit = asked.partition, asked.limit_s
    if launch.limit_s is not None and partition.limit_s is not None and launch.limit_s > partition.limit_s:
        yield HarnessError(
            f"--time {launch.time}, and the partition {partition.name!r} ends jobs after {duration(partition.limit_s)}",
            "a limit within the partition's: longer runs are chained by themselves",
            f"--time {partition.limit_s // 60}min, or leave it out",
        )
    every = study.train.checkpoint_s if study is not None else 0.0
    work_s = limit - launch.signal_s
    if work_s < every + LEAST_WORK_S:
        yield HarnessError(
            f"a time limit of {duration(limit)} is asked to stop {launch.signal_s} s before its end: "
            f"{max(0, work_s)} s of work, and one checkpoint is made every {every:g} s",
            f"at least {every + LEAST_WORK_S:g} s of work in a job",
            "a longer --time, a smaller cluster.signal_s, or a smaller train.checkpoint_s",
        )
