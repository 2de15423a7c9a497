"""`harness compare`: tables and a picture of which method trains more efficiently."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.compare import tables
from harness.compare.picture import draw, drawable
from harness.compare.races import Race, races
from harness.errors import HarnessError, unknown
from harness.files import write_atomic
from harness.report.console import print_tables
from harness.report.render import FORMATS, render
from harness.report.sections import Trial, gather
from harness.report.targets import Target, parse
from harness.store import Study
from harness.study import ALIASES, slug


def compare(
    methods: Sequence[str],
    studies: Sequence[Path],
    target: str | None,
    metric: str | None,
    axis: str,
    source: str | None,
    out: Path | None,
) -> None:
    """Print the tables and write them, with the picture, to `out`, by default a folder in the first study's.

    Raises HarnessError for fewer than two methods, for what is not there, and where nothing may be compared.
    """
    if source not in (None, *tables.SOURCES):
        raise unknown("curve", source, tables.SOURCES, "--curve snapshots")
    if len(set(methods)) < 2:
        raise HarnessError("one method", "two or more to compare", "for example: harness compare umd mae --study DIR")
    trials = _trials(studies)
    wanted = () if target is None else parse(target)
    metric = ALIASES["evals"].get(metric, metric)
    name = metric or (wanted[0].name if wanted else _first_metric(trials))
    found = races(trials, methods, name, source, {})
    drawable(found, axis)  # before anything is printed or written
    for race in found:  # the first one named is the one whose speed-up is asked for
        race.entrants.sort(key=lambda entrant: (methods.index(entrant.method), entrant.name))
    targets = {race.heading: _targets(race, name, wanted) for race in found}
    made = tables.build(found, targets, chosen=not wanted)
    print_tables(made)
    folder = out or studies[0] / "compare" / slug("-".join([*methods, name]))
    for form in FORMATS:
        write_atomic(folder / f"compare.{form}", render(made, form))
    pictures = draw(found, targets, axis, folder)
    print(f"\ntables    {folder}/compare.{{{','.join(FORMATS)}}}")
    print(f"picture   {', '.join(map(str, pictures))}")


def _trials(studies: Sequence[Path]) -> list[Trial]:
    runs, evals = {}, []
    for path in studies:
        study = Study(path)
        asked = set(study.asked().keys)
        runs |= {run.key: run for run in study.runs() if run.key in asked}
        evals += [record for record in study.evals() if record.key in asked]
    return gather(runs.values(), evals)[0]


def _first_metric(trials: Sequence[Trial]) -> str:
    names = {record.eval for trial in trials for record in trial.evals if record.cheap}
    if not names:
        raise HarnessError(
            "no snapshots were evaluated",
            "quick evals of snapshots, or a metric of full evals over several budgets",
            "python -m harness eval STUDY; or --metric linear with a ladder of budgets",
        )
    return "linear" if "linear" in names else min(names)


def _targets(race: Race, name: str, wanted: Sequence[Target]) -> tuple[float, ...]:
    """Those named, or where none is, some read off the curves."""
    if not wanted:
        found = tables.default_targets(race)
        race.remarks += [] if found or not race.lines else [tables.NO_TARGETS]
        return found
    foreign = [target.name for target in wanted if target.name != name]
    if foreign:
        raise unknown("target", foreign[0], [name], "one metric a comparison: --metric, and targets of it")
    return tuple(target.value for target in wanted)


def found_studies(given: Sequence[Path], runs: Path) -> list[Path]:
    """The studies given, or else every one below `runs`. Raises HarnessError where there is none."""
    found = list(given) or sorted(path.parent for path in runs.glob("*/study.json"))
    if not found:
        raise HarnessError(f"no study below {runs}", "folders of studies", "--study DIR, once for each")
    return found
