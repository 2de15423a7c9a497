"""Ladders of budgets: each budget a run of its own, and which runs make one ladder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import pytest

from harness.compare.races import AXES, Race, races
from harness.compare.tables import build
from harness.records import EvalRecord, RunRecord, Spend
from harness.report.layout import Section
from harness.report.render import render
from harness.report.sections import gather
from tests.harness.made_study import COST, ENVIRONMENT, made_eval, made_run

SECONDS = {"1min": 60.0, "4min": 240.0, "16min": 960.0}
Study = tuple[list[RunRecord], list[EvalRecord]]


def climbed(
    method: str, qualities: Mapping[str, float], seeds: Sequence[int] = range(3), dataset: str = "digits", **changes
) -> Study:
    """Runs of each budget with their full evals, which a seed more makes better by 0.1; untrained networks have 40."""
    runs, evals = [], []
    for budget, quality in qualities.items():
        for seed in seeds:
            spend = Spend(wall_s=SECONDS[budget], device_s=SECONDS[budget], flop=6e12, img=48_000, share=1.0)
            about = {
                "key": f"{method}-{dataset}-{budget}-{seed}",
                "spend": spend,
                "cost": COST.model_copy(update={"energy_j": 12}),
            }
            run = made_run(method, seed, **about | changes)
            cell = run.cell.model_copy(update={"budget": budget, "dataset": dataset})
            runs.append(run.model_copy(update={"cell": cell}))
            evals.append(made_eval(runs[-1], "linear", quality + 0.1 * seed, dataset=dataset))
            evals.append(made_eval(runs[-1], "linear", 40.0, share=0.0, dataset=dataset))
    return runs, evals


def joined(*studies: Study) -> Study:
    return [run for runs, _ in studies for run in runs], [record for _, evals in studies for record in evals]


def ladders(*studies: Study) -> list[Race]:
    return races(gather(*joined(*studies))[0], ["fast", "slow"], "linear", "ladder", {})


def budgets(race: Race) -> Section:
    (section,) = next(t for t in build([race], {race.heading: ()}, chosen=False) if t.title == "Budgets").sections
    return section


FAST, SLOW = {"1min": 60.0, "4min": 64.0}, {"1min": 50.0, "4min": 70.0}


def test_it_has_ranks_at_each_budget_and_says_where_they_cross():
    (found,) = ladders(climbed("fast", FAST), climbed("slow", SLOW))
    assert found.heading == "digits · nano · 1min / 4min"
    assert [point.value for point in found.entrants[0].curves[0]] == [40.0, 60.0, 64.0]
    section = budgets(found)
    assert [[cell.text for cell in row.cells] for row in section.rows] == [
        ["fast", "60.1 ± 0.2", "1", "64.1 ± 0.2", "2"],
        ["slow", "50.1 ± 0.2", "2", "70.1 ± 0.2", "1"],
    ]
    at = 60 * 4 ** (10 / 16)  # the gap goes from -10 to 6
    assert section.remarks[0] == f"slow overtakes fast at about {at:.0f} s of device time."


def test_nothing_is_said_of_what_was_spent_before_a_ladder_begins():
    """Without untrained networks nothing is known below the first rung, and of one rung nothing around it."""
    runs, evals = joined(climbed("fast", FAST), climbed("slow", SLOW))
    (found,) = ladders((runs, [record for record in evals if record.share != 0.0]))
    made = {table.title: table for table in build([found], {found.heading: (55.0,)}, chosen=False)}
    (area,) = made["Area under the curve"].sections
    assert "from 60.0 to 240 s" in area.columns[1].title and area.rows[0].cells[1].text == "62.1 ± 0.2"
    runs, evals = joined(climbed("fast", {"4min": 60.0, "16min": 64.0}), climbed("slow", FAST))
    (found,) = ladders((runs, [record for record in evals if record.share != 0.0]))
    made = {table.title: table for table in build([found], {found.heading: (55.0,)}, chosen=False)}
    assert "Area under the curve" not in made, "one begins where the other ends"
    (equal,) = made["Equal cost"].sections
    assert [row.cells[2].text for row in equal.rows] == [
        "—",
        "60.1 ± 0.2",
        "—",
        "61.4 ± 0.2",
        "60.1 ± 0.2",
        "64.1 ± 0.2",
    ]
    (one,) = ladders(climbed("fast", {"1min": 60.0}), climbed("slow", {"1min": 50.0}))
    assert not one.lines, "what lies between the untrained network and the end, no run has shown"
    made = build([one], {one.heading: (45.0,)}, chosen=False)
    assert [table.title for table in made] == ["Price to target", "Speed-up of fast", "Budgets"]
    prices, speedups = (table.sections[0] for table in made[:2])
    assert {cell.text for row in prices.rows for cell in row.cells[3:]} == {"—"}, "the end is no price of the way there"
    assert {row.cells[3].notes for row in prices.rows} == {
        ("reached before the first point of the curve by 3 of 3 seeds",)
    }
    assert {cell.text for row in speedups.rows for cell in row.cells[2:]} == {"—"}
    assert made[0].sections[0].remarks == ("One point a curve: no area, and no quality at equal cost.",)


def test_csv_keeps_the_ranks_of_every_budget():
    (found,) = ladders(climbed("fast", FAST), climbed("slow", SLOW))
    made = [table for table in build([found], {found.heading: ()}, chosen=False) if table.title == "Budgets"]
    fast, _ = csv.DictReader(io.StringIO(render(made, "csv")))
    assert (fast["rank at 1min"], fast["rank at 4min"]) == ("1", "2")


def test_runs_of_other_settings_are_another_ladder_also_where_a_budget_has_but_one_of_them():
    narrow, wide = ({"config": {"mask_ratio": ratio}} for ratio in (0.5, 0.75))
    one, other = climbed("fast", {"1min": 60.0}, **narrow), climbed("fast", {"4min": 64.0}, **wide)
    (found,) = ladders(one, other, climbed("slow", SLOW))
    assert {entrant.name: list(entrant.rungs) for entrant in found.entrants} == {
        "fast (fast.mask_ratio=0.5)": ["1min"],
        "fast (fast.mask_ratio=0.75)": ["4min"],
        "slow": ["1min", "4min"],
    }


def test_what_saw_labels_is_no_ladder_of_what_did_not():
    labelled = {"config": {"labels": True}, "saw_labels": True}
    one, other = climbed("fast", {"1min": 60.0}, **labelled), climbed("fast", {"4min": 64.0}, config={"labels": False})
    (found,) = ladders(one, other, climbed("slow", SLOW))
    assert {entrant.name: list(entrant.rungs) for entrant in found.entrants if entrant.method == "fast"} == {
        "fast (fast.labels=False)": ["4min"],
        "fast (fast.labels=True), saw labels": ["1min"],
    }


def test_budgets_of_different_machines_are_different_ladders():
    other = {"environment": ENVIRONMENT.model_copy(update={"device": "Another CPU"})}
    small, large = {"1min": 60.0}, {"4min": 60.0}
    found = ladders(
        climbed("fast", small), climbed("slow", small), climbed("fast", large, **other), climbed("slow", large, **other)
    )
    assert [race.heading for race in found] == [
        "digits · nano · 1min · 1 × Example CPU, 2 CPU threads",
        "digits · nano · 4min · 1 × Another CPU, 2 CPU threads",
    ]
    assert all(f"1 × {name}" in race.said for race, name in zip(found, ("Example CPU", "Another CPU"), strict=True))


def test_its_title_is_of_its_own_records():
    elsewhere = joined(*(climbed(m, FAST, dataset="another") for m in ("fast", "slow")))
    number = elsewhere[1][0].numbers["value"].model_copy(update={"title": "other top-1 %", "digits": 2})
    evals = [record.model_copy(update={"numbers": {"value": number}}) for record in elsewhere[1]]
    another, digits = ladders((elsewhere[0], evals), climbed("fast", FAST), climbed("slow", SLOW))
    assert (another.metric, another.digits, digits.metric, digits.digits) == ("other top-1 %", 2, "linear top-1 %", 1)


def test_a_run_that_is_not_finished_is_said_and_each_budget_keeps_its_own_runs():
    runs, evals = joined(climbed("fast", FAST), climbed("slow", SLOW))
    runs[0] = runs[0].model_copy(update={"state": "running", "spend": Spend(share=0.5)})
    evals = [record for record in evals if record.key != "slow-digits-4min-1" or not record.share]
    (found,) = ladders((runs, evals))
    assert found.remarks == ["fast, 1min, seed 0: running 50%", "slow, 4min, seed 1: not evaluated"]
    assert [[cell.text for cell in row.cells[::2]] for row in budgets(found).rows] == [
        ["fast", "1", "2"],
        ["slow", "2", "1"],
    ]
    assert [row.cells[1].text for row in budgets(found).rows] == ["60.2 ± 0.6", "50.1 ± 0.2"], (
        "without the 64.0 of seed 0"
    )


def test_of_two_runs_of_one_seed_and_budget_the_last_counts_and_a_note_says_so():
    again = climbed("fast", {"1min": 62.0}, seeds=[0], key="fast-digits-1min-0-again")
    (found,) = ladders(climbed("fast", FAST), again, climbed("slow", SLOW))
    assert [point.value for point in found.entrants[0].curves[0]] == [40.0, 62.0, 64.0]
    assert found.entrants[0].notes == ["several runs of seed 0 at 1min: the last one counts"]


def test_an_untrained_network_took_no_energy():
    (found,) = ladders(climbed("fast", FAST), climbed("slow", SLOW))
    assert found.entrants[0].prices(AXES["energy"], "higher", 50.0)[0] == pytest.approx(6.0), "half way to 12 J"
    assert found.entrants[0].at_cost(AXES["energy"], 6.0)[0] == pytest.approx(50.0)


def test_what_was_prepared_is_paid_for_before_the_untrained_network():
    after = {"snapshots": {"0.0000": Spend(wall_s=20.0, device_s=20.0, flop=2e12, img=16_000)}}
    (found,) = ladders(climbed("fast", FAST, **after), climbed("slow", SLOW))
    fast, slow = found.entrants
    assert (fast.curves[0][0].at.device_s, slow.curves[0][0].at.device_s) == (20.0, 0.0)
    assert fast.prices(AXES["gpu-h"], "higher", 50.0)[0] == pytest.approx(40.0), "half way from 20 s to 60 s"
