"""Records to tables: one for each kind of result, and the wall-clock. A pure function, blind to the records' order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.files import write_atomic
from harness.records import EvalRecord, RunRecord
from harness.report import clock, overall, results, targets
from harness.report.layout import Section, Table
from harness.report.published import of_methods
from harness.report.sections import gather
from harness.report.view import View
from harness.store import Study, uncollected

SEEDS = (
    "± is the half-width of the 95 % t-interval over seeds; in brackets, where there is one seed, over the eval's own "
    "repeats."
)
BY_RATIO = "Over seeds: the geometric mean, and in brackets the 95 % interval of its logarithm by t."
ABSENT = "— was not measured."
NO_BETTER = "“≤” marks a mean that is no better than that of the method's own untrained network, or of raw pixels."
REPRESENTATION = (
    f"Frozen features on the test part; tap and settings are chosen on the select part. {NO_BETTER} {SEEDS} {ABSENT}"
)
GENERATION = (
    "Samples drawn with the weights that gave the features, unless a note names a fine-tune; “real images” are real "
    f"against real. {SEEDS} {ABSENT}"
)
FINETUNE = (
    "“Fine-tune”: the whole network trained on with labels, by one recipe for all methods, its rate chosen on the "
    "select part. “1 % labels” and the like: as many labels of train, with everything chosen within them; a probe "
    f"leaves the network frozen. {NO_BETTER} {SEEDS} {ABSENT}"
)
TRANSFER = (
    "The same network on other data sets, whose images are resized to its own size; everything is chosen on held-out "
    f"train images of those. {NO_BETTER} {SEEDS} {ABSENT}"
)
DENSE = f"Frozen or fine-tuned feature maps, each number's note says which. {NO_BETTER} {SEEDS} {ABSENT}"
COST = f"What the network costs, on the machine that evaluated it. {SEEDS} {ABSENT}"
RESULTS = {  # by the `table` of a Number
    "representation": ("Representation", REPRESENTATION),
    "finetune": ("Fine-tuning and few labels", FINETUNE),
    "transfer": ("Transfer", TRANSFER),
    "dense": ("Dense tasks", DENSE),
    "generation": ("Generation", GENERATION),
    "cost": ("Cost", COST),
}
OVERALL_TITLE = "Overall"
OVERALL = (
    "Each kind of result by its first number. A rank is the places that a method may have: behind every method that it "
    "can be told to be behind at 95 %, each pair by itself (paired over test images and seeds where records keep which "
    "images were guessed right, else t over seeds). Mean rank: of the middles of those places. "
    f"{SEEDS} {ABSENT}"
)
ALWAYS = ("representation", "generation")  # shown also where nothing was measured yet
TO_TARGET = (
    "What a run had spent when its quick evals first reached a target, interpolated linearly between snapshots; inf: "
    f"never within its budget. {BY_RATIO} {ABSENT}"
)
WALL_CLOCK_TITLE = "Wall-clock"
WALL_CLOCK = (
    "Means over seeds; spend against budget from the lowest seed to the highest. Only accounts marked as "
    f"charged count against the budget; untrained networks and references show what their evals took. {ABSENT}"
)


def build(
    runs: Iterable[RunRecord],
    evals: Iterable[EvalRecord],
    titles: Mapping[str, str] | None = None,
    wanted: Sequence[targets.Target] = (),
    view: View | None = None,
) -> list[Table]:
    """A table for each kind of result that was measured, one of the price of the targets `wanted`, the wall-clock.

    `titles` are the methods' names for print, their plain names by default. Rows stand in one section only when device,
    data revisions, protocol versions and counts of images agree, but for what the `view` mixes.
    """
    view, titles = view or View(), titles or {}
    runs, evals = list(runs), list(evals)
    kept = view.of_runs(runs)
    dropped = {run.key for run in runs} - {run.key for run in kept}
    runs, evals = kept, [record for record in evals if record.key not in dropped]
    trials, references, strays = gather(runs, evals)
    left_out = f"Left out: evals of runs that have no record ({', '.join(strays)})." if strays else ""
    measured = {number.table for record in evals for number in record.numbers.values()}
    stated = of_methods(run.cell.method for run in runs) if view.published else None
    tables = [
        (title, caption, results.sections(name, trials, references, titles, stated, view.mix))
        for name, (title, caption) in RESULTS.items()
        if name in ALWAYS or name in measured
    ]
    ranked = overall.sections(trials, references, titles, view.mix)
    if ranked:
        tables.insert(0, (OVERALL_TITLE, OVERALL, ranked))
    if wanted:
        tables.append(("To target", TO_TARGET, targets.sections(trials, wanted, titles)))
    tables.append((WALL_CLOCK_TITLE, WALL_CLOCK, clock.sections(trials, references, titles)))
    return view.of_tables([_table(title, caption, sections, left_out) for title, caption, sections in tables])


def of_study(
    study: Study,
    titles: Mapping[str, str] | None = None,
    wanted: Sequence[targets.Target] = (),
    view: View | None = None,
) -> list[Table]:
    """The tables of the runs that the study's last `run` asked for."""
    with uncollected():
        return build(*study.asked_for(), titles, wanted, view)


def write_all(study: Study, titles: Mapping[str, str] | None = None) -> list[Path]:
    """Write the study's tables in every format, each file in one step; returns the files."""
    from harness.report.render import FORMATS, render

    tables = of_study(study, titles)
    paths = []
    for name in FORMATS:
        path = study.tables() / f"tables.{name}"
        write_atomic(path, render(tables, name))
        paths.append(path)
    return paths


def _table(title: str, caption: str, sections: tuple[Section, ...], left_out: str) -> Table:
    said = f"{caption} {left_out}".rstrip()
    return Table(title, said, sections, tall=title == WALL_CLOCK_TITLE)
