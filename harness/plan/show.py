"""`harness plan`, printed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from harness import store
from harness.budget import UNITS
from harness.data import cache as decoded
from harness.display import duration
from harness.errors import HarnessError, told
from harness.launch.tasks import ORDER, shares
from harness.plan import disk
from harness.plan.measured import measured
from harness.plan.outline import Outline, outline
from harness.plan.planned import Planned
from harness.plan.price import Priced, Pricing
from harness.plan.survey import Survey, survey
from harness.plan.width import makespan_s
from harness.records import ENDED, RunRecord
from harness.study import Study

if TYPE_CHECKING:
    from rich.table import Table

    from harness.launch.options import Launch
    from harness.launch.queue import Nodes

WIDE = 200  # columns, where no terminal says how many there are
MOST_NAMED = 4


def show_plan(study: Study, launch: Launch, given: Iterable[str], out: Path, data_dir: Path | None) -> int:
    """Print the plan. Returns 1 where `run` would refuse any of it."""
    found = outline(study, out, data_dir, survey(launch, list(given), study))
    pricing = Pricing(found, measured(out, study, found.survey.gpus > 0))
    counted = _counted(found)
    for job in found.sources():
        if (small := pricing.too_small(job)) is not None:
            found.refused.add(small, job.label)
    tasks = pricing.tasks()
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, soft_wrap=True)
    if found.todo:
        console.print(_cells(found, pricing, counted))
        console.print()
        console.print(_stages(found, tasks, counted))
        console.print()
    for line in [*_sum(found, tasks, pricing), *_disk(found, counted), *_there(found, tasks), *_cluster(found, tasks)]:
        console.print(line, markup=False)
    refused = list(_refused(found))
    for line in refused:
        console.print(line, markup=False)
    return int(bool(refused))


def _counted(found: Outline) -> dict[str, disk.Size]:
    """Sizes by the key of the run that is to be trained; one that cannot be built is refused."""
    sizes = {}
    for job in _unfinished(found):
        try:
            sizes[job.key] = disk.known(job, found.answers)
        except HarnessError as error:
            found.refused.add(error, job.label)
    return sizes


# -- cells ------------------------------------------------------------------------------------------------------------


def _cells(found: Outline, pricing: Pricing, counted: dict[str, disk.Size]) -> Table:
    """A row for each cell."""
    table = _table("cell", "state", "batch", "parameters", "to charge")
    seen: set[str] = set()
    for job in found.todo:
        source = job.source or job
        state = _state(found.place, job)
        if state not in ENDED:  # a reader's record says how its source stood when it was last asked
            state = _state(found.place, source)
        price = f"shared with {source.cell.method}" if source.key in seen else _owed(job, pricing, source)
        seen.add(source.key)
        table.add_row(job.label, state, str(job.train.batch_size), _parameters(found, source, counted), price)
    return table


def _parameters(found: Outline, source: Planned, counted: dict[str, disk.Size]) -> str:
    """Counted, or as the record of a run that has ended says: no network is built for that."""
    if source.key in counted:
        return f"{counted[source.key].parameters:,}"
    record = found.truth.record(source.key)
    return f"{record.cost.parameters:,}" if record is not None and record.cost is not None else "–"


def _unfinished(found: Outline) -> list[Planned]:
    """The runs that are still to be pre-trained."""
    return [job for job in found.sources() if _state(found.place, job) not in ENDED]


def _state(place: store.Study, job: Planned) -> str:
    path = place.run(job.key).record
    return store.read_as(RunRecord, path).state if path.exists() else "missing"


def _owed(job: Planned, pricing: Pricing, source: Planned) -> str:
    owed = pricing.owed(source)
    if not job.budget.is_time:
        return f"{owed / UNITS[job.budget.unit][1]:.6g} {job.budget.unit}"
    return f"{duration(owed)} {'GPU' if job.budget.reads == 'device_s' else 'wall'}"


# -- stages -----------------------------------------------------------------------------------------------------------


def _stages(found: Outline, tasks: list[Priced], counted: dict[str, disk.Size]) -> Table:
    table = _table("stage", "jobs", "done", "to do", "charged", "not charged", "disk")
    ordered = sorted(tasks, key=lambda priced: (ORDER.index(priced.task.stage), -(priced.task.share or 0.0)))
    for kind, group in groupby(ordered, key=lambda priced: priced.task.kind):
        some = list(group)
        done = sum(priced.done for priced in some)
        stage = some[0].task.stage
        share = some[0].task.share
        size = bytes_(sum(_to_come(found, counted))) if stage == "pretrain" and counted else "–"
        title = kind if share is None else f"evaluate at {share:g}"
        charged = _charged(found, some) if stage == "pretrain" else "–"
        table.add_row(title, str(len(some)), str(done), str(len(some) - done), charged, _shown(some), size)
    table.add_row("tables", "1", "–", "1", "–", "not recorded", "–")
    return table


def _charged(found: Outline, tasks: list[Priced]) -> str:
    """What is owed, in the units that were asked for; wall time is said as what all devices take together."""
    runs = {job.key: job for job in found.sources()}
    owed: Counter[str] = Counter()
    for priced in tasks:
        budget = runs[priced.task.key].budget
        if budget.is_time:
            owed["s"] += priced.owed * (1 if budget.reads == "device_s" else priced.devices)
        else:
            owed[budget.unit] += priced.owed / UNITS[budget.unit][1]
    word = "GPU" if found.survey.gpus or any(run.budget.reads == "device_s" for run in runs.values()) else "wall"
    parts = [f"{duration(amount)} {word}" if unit == "s" else f"{amount:.6g} {unit}" for unit, amount in owed.items()]
    return ", ".join(part for part, amount in zip(parts, owed.values(), strict=True) if amount) or "nothing"


def _shown(tasks: Iterable[Priced]) -> str:
    """`about 3:20 on 12 records, and what is not known yet (4)`."""
    guesses = [guess for priced in tasks for guess in priced.shown.values()]
    known = [guess for guess in guesses if guess.seconds is not None]
    unknown = len(guesses) - len(known)
    if not guesses:
        return "nothing"
    if not known:
        return f"not known yet ({unknown})"
    about = f"about {duration(sum(guess.seconds for guess in known))}"
    return f"{about} + not known yet ({unknown})" if unknown else about


# -- lines below the tables -------------------------------------------------------------------------------------------


def _sum(found: Outline, tasks: list[Priced], pricing: Pricing) -> Iterable[str]:
    study, survey = found.study, found.survey
    yield f"{len(found.todo)} run(s), evals: {', '.join(study.evals)}; folder {found.place.path}"
    left = [priced for priced in tasks if priced.task.stage == "pretrain" and not priced.done]
    if left:
        yield f"still to charge: {_charged(found, left)}; {_how_counted(found)}"
    steps = [priced for priced in left if priced.charged.records]
    if steps:
        seconds = sum((priced.charged.seconds or 0.0) * priced.devices for priced in steps)
        least = min(priced.charged.records for priced in steps)
        time = "GPU time" if survey.gpus else "wall time"
        yield f"that is about {duration(seconds)} of {time} for {len(steps)} run(s), on {least} or more records each"
    yield from _not_charged(tasks, pricing)
    yield from _makespan(tasks, survey)
    for source in {job.source.key: job.source for job in found.todo if job.source}.values():
        readers = [job.label for job in found.todo if job.source and job.source.key == source.key]
        yield f"shared: {source.label} is pre-trained once, for {', '.join(readers)}"


def _how_counted(found: Outline) -> str:
    text = "once for each pre-training, less what is spent"
    if found.survey.devices > 1 and any(job.budget.reads == "wall_s" for job in found.todo):
        text += f"; wall time is charged on each of the {found.survey.devices} devices of a job"
    return text


def _not_charged(tasks: list[Priced], pricing: Pricing) -> Iterable[str]:
    """Estimates with what they rest on, and what has none."""
    guesses = {(p.task.name, what): guess for p in tasks for what, guess in p.shown.items()}
    known = [guess for guess in guesses.values() if guess.seconds is not None]
    if known:
        least, most = min(g.records for g in known), max(g.records for g in known)
        records = f"{least}" if least == most else f"{least} to {most}"
        others = sum(guess.others for guess in known)
        foreign = f"; {others} of them by records of other methods" if others else ""
        yield (
            f"not charged: about {duration(sum(g.seconds for g in known))}, {len(known)} estimate(s), each the median "
            f"of {records} record(s) of the same eval, settings, size and data set{foreign}"
        )
    unknown = Counter(what for priced in tasks for what in priced.unknown)
    if unknown:
        names = [f"{what}{f' ({count})' if count > 1 else ''}" for what, count in sorted(unknown.items())]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        yield f"not known yet, as no record is like it: {', '.join(names[:MOST_NAMED])}{more}"
    if pricing.measured.unreadable:
        yield f"{pricing.measured.unreadable} record(s) could not be read and count for nothing"


def _makespan(tasks: list[Priced], survey: Survey) -> Iterable[str]:
    todo = [priced for priced in tasks if not priced.done]
    if not todo:
        return
    seconds = makespan_s([(p.task.name, p.task.needs, p.wall_s) for p in todo], survey.width)
    unknown = sum(bool(priced.unknown) for priced in todo)
    without = f", without what is not known yet in {unknown} of {len(todo)} jobs" if unknown else ""
    queued = ", once they start" if survey.launch.cluster == "slurm" else ""
    about = f"{'at least' if unknown else 'about'} {duration(seconds)}"
    yield f"wall time, {survey.width} job(s) at a time{queued}: {about}{without}"


def _to_come(found: Outline, counted: dict[str, disk.Size]) -> list[int]:
    runs = [job for job in _unfinished(found) if job.key in counted]
    return [disk.to_come(job, found.place, counted[job.key]) for job in runs]


def _disk(found: Outline, counted: dict[str, disk.Size]) -> Iterable[str]:
    """What is to come, at most, beside what is free."""
    free = disk.free_bytes(found.place.path)
    runs = [job for job in _unfinished(found) if job.key in counted]
    if not runs:
        yield f"disk: nothing to come from training; {bytes_(free)} free"
        return
    passing = sorted((counted[job.key].passing for job in runs), reverse=True)[: found.survey.width]
    need = sum(_to_come(found, counted)) + sum(passing)
    latents = dict.fromkeys(job.cell.method for job in runs if counted[job.key].latents_bytes)
    also = f"; latents of {', '.join(latents)}" if latents else ""
    unknown = dict.fromkeys(job.cell.method for job in runs if counted[job.key].latents_bytes is None)
    also += f"; not counted: latents of {', '.join(unknown)}" if unknown else ""
    several = len(shares(runs[0]))
    yield (
        f"disk: {bytes_(sum(_to_come(found, counted)))} to keep ({several} snapshots and a checkpoint a run), "
        f"{bytes_(sum(passing))} more while it trains (a second checkpoint{also}); {bytes_(free)} free"
    )
    if need > free:
        where = f"on the disk of {found.place.path}"
        yield f"warning: {bytes_(need)} do not fit {where}: choose another --out, or make room"


def _there(found: Outline, tasks: list[Priced]) -> Iterable[str]:
    """What need not be made again."""
    for data in found.sets.values():
        spec = data.spec
        if data.decoded:
            yield f"data: {spec.name} is decoded ({bytes_(data.nbytes)})"
        elif decoded.worth(data.shape):
            yield f"data: {spec.name} is not decoded yet: {bytes_(data.nbytes)} in {decoded.folder()}"
    features = [path for path in found.place.cache().glob("features/**/*") if path.is_file()]
    if features:
        size = sum(path.stat().st_size for path in features)
        yield f"kept: {bytes_(size)} of features, of evals that have not come to their end"
    done = sum(priced.done for priced in tasks)
    if done:
        yield f"kept: {done} of {len(tasks)} jobs are done and not repeated"
    yield "nothing is downloaded"


def _cluster(found: Outline, tasks: list[Priced]) -> Iterable[str]:
    survey = found.survey
    where = {"inline": "in its own process, one after another", "local": f"{survey.room} worker(s) on this machine"}
    yield f"runs {where.get(survey.launch.cluster, 'as jobs of SLURM')}{f': {survey.why}' if survey.why else ''}"
    for p in survey.partitions:
        mark = "*" if survey.fits is not None and survey.fits.partition.name == p.name else " "
        limit = "no limit" if p.limit_s is None else f"limit {duration(p.limit_s)}"
        state = "" if p.up else ", down"
        yield f" {mark} {p.name}: {'; '.join(map(_nodes, p.kinds))}, {limit}{state}"
    if survey.fits is not None:
        chained = max((survey.links(p.wall_s) for p in tasks if p.task.stage == "pretrain"), default=1)
        links = f"; the longest pre-training is chained in {chained} jobs" if chained > 1 else ""
        gpus = f"{survey.gpus} {survey.launch.gpu_type}".strip() if survey.gpus else "0"
        shape = f"{survey.launch.nodes} node(s) of {gpus} GPU(s) in {survey.fits.partition.name!r}"
        yield f"a pre-training takes {shape} for at most {duration(survey.fits.limit_s)} a job{links}"
        if survey.gpus and not survey.launch.cpus:
            yield "cluster.cpus is not set: a process of each GPU gets what the cluster gives by default, often 1 CPU"


def _nodes(nodes: Nodes) -> str:
    """`4 node(s) of 8 h100 GPU(s), 64 CPUs`."""
    gpus = " and ".join(f"{count} {kind}".strip() for kind, count in nodes.gpus) or "0"
    return f"{nodes.count} node(s) of {gpus} GPU(s), {nodes.cpus} CPUs"


def _refused(found: Outline) -> Iterable[str]:
    for error, whom in found.refused.by_text.values():
        more = f" and {len(whom) - MOST_NAMED} more" if len(whom) > MOST_NAMED else ""
        of = ", ".join(whom[:MOST_NAMED]) + more
        yield f"refused   {of}{': ' if of else ''}{told(error)}"


def bytes_(count: float) -> str:
    """`1.3 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(*titles, box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    return table
