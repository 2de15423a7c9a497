"""Which method trains more efficiently: against a calculation by hand on a small study, and against a simulation."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from harness.compare.races import AXES, Race, races
from harness.compare.ratios import Workload, profile, speedup
from harness.compare.tables import build, default_targets
from harness.errors import HarnessError
from harness.records import RunRecord, Spend
from harness.report.curves import Point, begins, value_at
from harness.report.render import FORMATS, render
from harness.report.sections import gather
from tests.harness.made_study import COST, made_eval, made_run, write_study

# Two methods, three seeds, a minute each; the slow one's curve is the fast one's, in twice the time and less a point.
SHARES = (0.0, 0.25, 0.5, 1.0)
FAST = {0: (40, 60, 70, 74), 1: (40, 62, 70, 76), 2: (40, 58, 69, 72)}
SLOW = {0: (40, 48, 58, 68), 1: (40, 50, 60, 70), 2: (40, 47, 57, 66)}


def run(method: str, seed: int, seconds: float = 60.0, **changes) -> RunRecord:
    shares = {
        f"{s:.4f}": Spend(wall_s=seconds * s, device_s=seconds * s, flop=6e12 * s, img=48_000 * s) for s in SHARES
    }
    cost = COST.model_copy(update={"energy_j": 1200.0})
    spend = Spend(wall_s=seconds, device_s=seconds, flop=6e12, img=48_000, share=1.0)
    return made_run(method, seed, **{"snapshots": shares, "cost": cost, "spend": spend} | changes)


def study(fast=FAST, slow=SLOW):
    runs, evals = [], []
    for method, curves in (("fast", fast), ("slow", slow)):
        for seed, values in curves.items():
            runs.append(run(method, seed))
            evals += [
                made_eval(runs[-1], "linear", value, share=share, cheap=True)
                for share, value in zip(SHARES, values, strict=True)
            ]
            evals += [made_eval(runs[-1], "linear", values[-1]), made_eval(runs[-1], "linear", 40.0, share=0.0)]
    return runs, evals


def race(fast=FAST, slow=SLOW, source=None) -> Race:
    (found,) = races(gather(*study(fast, slow))[0], ["fast", "slow"], "linear", source, {})
    return found


def rows(tables, title: str) -> list[dict[str, str]]:
    made = csv.DictReader(io.StringIO(render([table for table in tables if table.title == title], "csv")))
    return list(made)


def test_prices_are_read_off_the_curves_linearly():
    fast, slow = race().entrants
    assert fast.prices(AXES["gpu-h"], "higher", 65.0) == {
        0: 22.5,
        1: pytest.approx(15 + 15 * 3 / 8),
        2: pytest.approx(15 + 15 * 7 / 11),
    }
    assert slow.prices(AXES["flop"], "higher", 58.0)[0] == 3e12
    assert slow.prices(AXES["img"], "higher", 69.0) == {
        0: math.inf,
        1: pytest.approx(24_000 + 24_000 * 0.9),
        2: math.inf,
    }
    assert fast.prices(AXES["energy"], "higher", 70.0)[0] == pytest.approx(600.0), "half of the run's own energy"


def test_the_area_is_the_trapezoids_over_the_cost():
    fast = race().entrants[0]
    by_hand = (15 * (40 + 60) / 2 + 15 * (60 + 70) / 2 + 30 * (70 + 74) / 2) / 60
    assert fast.areas(AXES["gpu-h"], 0.0, 60.0)[0] == pytest.approx(by_hand)
    until_20 = (15 * (40 + 60) / 2 + 5 * (60 + 60 + 10 / 3) / 2) / 20
    assert fast.areas(AXES["gpu-h"], 0.0, 20.0)[0] == pytest.approx(until_20), "cut where the shorter run ends"
    from_15 = (15 * (60 + 70) / 2 + 30 * (70 + 74) / 2) / 45
    assert fast.areas(AXES["gpu-h"], 15.0, 60.0)[0] == pytest.approx(from_15), "from where the later curve begins"


def test_an_untrained_network_has_its_quality_from_the_start_unless_its_preparation_was_dear():
    def points(prepared_s: float) -> list[Point]:
        return [Point(40.0, Spend(device_s=prepared_s), untrained=True), Point(60.0, Spend(device_s=60.0))]

    of = AXES["gpu-h"].of
    assert [begins(points(seconds), of) for seconds in (0.0, 0.001, 20.0)] == [0.0, 0.0, 20.0]
    assert value_at(points(0.001), 0.0, of) == 40.0 and value_at(points(20.0), 10.0, of) is None
    assert value_at(points(20.0), 40.0, of) == 50.0


def test_speed_up_is_the_geometric_mean_with_the_interval_of_its_logarithm():
    mine, theirs = {0: 10.0, 1: 12.0, 2: 9.0}, {0: 21.0, 1: 22.0, 2: 20.0}
    logs = [math.log(theirs[s] / mine[s]) for s in mine]
    mean = sum(logs) / 3
    half = 4.302652729911275 * math.sqrt(sum((x - mean) ** 2 for x in logs) / 2 / 3)
    found = speedup(mine, theirs)
    assert found.value == pytest.approx((2.1 * 22 / 12 * 20 / 9) ** (1 / 3))
    assert (found.low, found.high) == (pytest.approx(math.exp(mean - half)), pytest.approx(math.exp(mean + half)))


def test_its_interval_holds_in_95_of_100_studies():
    rng, held, many = np.random.default_rng(0), 0, 2000
    for _ in range(many):
        seeds = rng.normal(0, 0.2, 3)
        mine = {s: math.exp(seeds[s] + rng.normal(0, 0.1)) for s in range(3)}
        theirs = {s: 1.7 * math.exp(seeds[s] + rng.normal(0, 0.15)) for s in range(3)}
        found = speedup(mine, theirs)
        held += found.low <= 1.7 <= found.high
    assert 0.93 <= held / many <= 0.97


def test_a_target_that_was_never_reached_is_infinite_and_not_dropped():
    found = speedup({0: 10.0, 1: 20.0, 2: 30.0}, {0: 50.0, 1: math.inf, 2: math.inf})
    assert found.value == math.inf and found.low is None and "by 1 of 3 of the other's" in found.note
    assert speedup({0: math.inf}, {0: 5.0}).value == 0.0
    assert speedup({0: math.inf}, {0: math.inf}) is None
    made = build([race()], {race().heading: (75.0,)}, chosen=False)
    (fast, slow) = rows(made, "Price to target")
    assert fast["device s"] == "inf" and "reached by 1 of 3 seeds" in fast["notes"] and slow["device s"] == "inf"


def test_a_target_that_an_untrained_network_reaches_is_said():
    found = race(slow={0: (40, 48, 58, 68), 1: (41, 50, 60, 70), 2: (41, 47, 57, 66)})
    made = build([found], {found.heading: (40.0, 41.0)}, chosen=False)
    notes = {(row["method"], row["linear top-1 %, target"]): row["notes"] for row in rows(made, "Price to target")}
    assert notes["fast", "≥ 40"] == "reached by the untrained network of 3 of 3 seeds"
    assert notes["slow", "≥ 41"] == "reached by the untrained network of 2 of 3 seeds"


def test_the_profile_counts_ratios_to_the_best_and_its_area_is_the_score():
    prices = [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 1.5}, {"a": 1.0, "b": math.inf}, {"a": math.inf, "b": math.inf}]
    found = profile([Workload(each) for each in prices])
    assert found.ratios == {"a": (1.0, 2.0, 1.0), "b": (2.0, 1.0, math.inf)}
    assert [found.share("b", tau) for tau in (1.0, 1.9, 2.0, 4.0)] == [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    assert found.score("a") == pytest.approx((1 + 2 / 3 + 1) / 3) and found.score("b") == pytest.approx((2 / 3 + 1) / 3)


def test_a_workload_that_says_nothing_of_the_methods_is_left_out_and_counted():
    """A network that is there before training pays what its preparation took: noise, however small."""
    found = profile(
        [
            Workload({"a": 2.0, "b": 1.0}),
            Workload({"a": 0.0001, "b": 0.0009}, untrained=True),
            Workload({"a": 1.0}),
            Workload({"a": math.inf, "b": math.inf}),
        ]
    )
    assert found.ratios == {"a": (2.0,), "b": (1.0,)}
    assert found.said() == (
        "1 workload; 1 more left out: reached by an untrained network; 1 more left out: not every method ran there; "
        "1 more left out: reached by nobody"
    )


def test_a_workload_whose_price_is_not_known_is_left_out():
    found = profile([Workload({"a": 2.0, "b": 1.0}), Workload({"a": math.nan, "b": 1.0})])
    assert found.said() == "1 workload; 1 more left out: reached before the first point of a curve"


def test_a_seed_without_a_number_is_no_leader_and_hides_none():
    nan = {0: (40, 60, 70, math.nan), 1: (40, 62, 70, 99), 2: (40, 58, 69, 99)}
    found = race(nan, SLOW)
    table = next(t for t in build([found], {found.heading: (54.0,)}, chosen=False) if t.title == "Equal cost")
    last = [row for row in table.sections[0].rows if row.cells[1].text == "100 %"]
    assert not any(cell.best for row in last for cell in row.cells)


def test_an_eval_may_be_named_by_its_other_name_and_an_axis_must_be_known_to_a_run(tmp_path, harness):
    runs, evals = study()
    place = write_study(tmp_path / "s", [r.model_copy(update={"cost": COST}) for r in runs], evals)
    status, _, said = harness("compare", "fast", "slow", "--study", place.path, "--target", "fid=6")
    assert status == 2 and "unknown metric 'generation'" in said
    assert COST.energy_j is None
    words = ["compare", "fast", "slow", "--study", place.path, "--axis", "energy", "--out", tmp_path / "out"]
    status, printed, said = harness(*words)
    assert status == 2 and "unknown axis 'energy'" in said and not printed and not (tmp_path / "out").exists()


def test_what_an_untrained_network_reached_is_no_price_of_training():
    """The first snapshot lies a moment after the start: preparing took that long."""
    runs, evals = study(slow={0: (41, 48, 58, 68), 1: (41, 50, 60, 70), 2: (41, 47, 57, 66)})
    start = Spend(wall_s=0.0004, device_s=0.0004, flop=0, img=0)
    runs = [r.model_copy(update={"snapshots": r.snapshots | {"0.0000": start}}) for r in runs]
    (found,) = races(gather(runs, evals)[0], ["fast", "slow"], "linear", None, {})
    made = build([found], {found.heading: (40.5, 50.0)}, chosen=False)
    untrained, trained = rows(made, "Speed-up of fast")
    assert untrained["by device s"] == untrained["by FLOP"] == "—"
    assert "reached by an untrained network" in untrained["notes"] and float(trained["by device s"]) > 1
    profiles = next(table for table in made if table.title == "Performance profile")
    assert {s.conditions for s in profiles.sections} == {"1 workload; 1 more left out: reached by an untrained network"}


def test_a_seed_without_a_partner_that_never_got_there_is_not_dropped():
    found = speedup({0: 1.0, 1: 1.1, 2: math.inf}, {0: 2.0, 1: 2.3})
    assert found.low is None and "reached by 2 of 3 seeds" in found.note
    assert speedup({0: 1.0, 1: 1.1, 2: 1.2}, {0: 2.0, 1: 2.3}).note == "over the 2 seeds that both have"


def test_who_is_ahead_on_the_seeds_that_both_have_alone_is_not_marked():
    """By all seeds the first is ahead; by those of both the second is, and told apart."""
    values = {"fast": {0: (40, 60, 70, 60), 1: (40, 60, 70, 60.2), 2: (40, 60, 70, 90)},
              "slow": {0: (40, 50, 60, 65), 1: (40, 50, 60, 65.1)}}  # fmt: skip
    found = race(values["fast"], values["slow"])
    table = next(t for t in build([found], {found.heading: (54.0,)}, chosen=False) if t.title == "Equal cost")
    last = [row for row in table.sections[0].rows if row.cells[1].text == "100 %"]
    assert [row.cells[0].text for row in last] == ["fast", "slow"]
    assert not any(cell.best for row in last for cell in row.cells)


def test_at_equal_cost_the_better_is_marked_where_it_can_be_told():
    made = build([race()], {race().heading: default_targets(race())}, chosen=True)
    table = next(table for table in made if table.title == "Equal cost")
    (section,) = table.sections
    by_time = [column.title for column in section.columns].index("linear top-1 %; 100 % is 60.0 s of device time")
    marked = [(row.cells[0].text, row.cells[1].text) for row in section.rows if row.cells[by_time].best]
    assert marked == [("fast", "25 %"), ("fast", "50 %"), ("fast", "100 %")]
    last = rows(made, "Equal cost")[-1]
    assert (last["method"], last["linear top-1 %; 100 % is 60.0 s of device time"]) == ("slow", "68.0")
    assert "chosen from these curves" in made[0].caption


def test_targets_by_default_lie_between_the_best_untrained_network_and_the_weakest_end():
    assert default_targets(race()) == (54.0, 61.0, 68.0)
    assert default_targets(race(slow={0: (41, 40, 40, 39)})) == ()
    three = race()
    three.entrants.append(
        replace(three.entrants[1], name="worse", curves=race(slow={0: (41, 40, 40, 39)}).entrants[1].curves)
    )
    assert default_targets(three) == (54.5, 61.25, 68.0), "of the middle one, where the weakest gets nowhere"


def test_a_run_that_is_not_finished_is_said_and_takes_no_part():
    runs, evals = study()
    runs[0] = runs[0].model_copy(update={"state": "running"})
    (found,) = races(gather(runs, evals)[0], ["fast", "slow"], "linear", None, {})
    assert sorted(found.entrants[0].curves) == [1, 2]
    assert found.remarks == ["fast, seed 0: running 100%"]


def test_a_seed_of_another_machine_is_named_where_it_is_left_out():
    runs, evals = study()
    other = runs[2].environment.model_copy(update={"device": "Another CPU"})
    runs[2] = runs[2].model_copy(update={"environment": other})
    (found,) = races(gather(runs, evals)[0], ["fast", "slow"], "linear", None, {})
    (remark,) = found.remarks
    assert remark.startswith("fast, seed 2: in no race, alone under digits") and "Another CPU" in remark
    made = build([found], {found.heading: (54.0,)}, chosen=False)
    assert [(row["method"], row["seeds"]) for row in rows(made, "Price to target")] == [("fast", "2"), ("slow", "3")]


def test_methods_on_different_machines_are_in_no_race():
    runs, evals = study()
    for i in range(3):
        other = runs[i].environment.model_copy(update={"device": "Another CPU"})
        runs[i] = runs[i].model_copy(update={"environment": other})
    with pytest.raises(HarnessError, match="under equal conditions"):
        races(gather(runs, evals)[0], ["fast", "slow"], "linear", None, {})


def test_what_is_to_be_known_of_the_first_stands_under_its_speed_ups():
    found = race()
    found.entrants[0].notes = ["several runs of seed 2: the last one counts"] * 2
    table = next(t for t in build([found], {found.heading: (54.0,)}, chosen=False) if t.title == "Speed-up of fast")
    assert table.sections[0].remarks == ("fast: several runs of seed 2: the last one counts.",)


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ({"k": 5}, {"k": 5, "centred": None}, ["linear centred=None", "linear centred=—"]),  # from before it was one
        ({"k": 5}, {"k": "5"}, ["linear k=5", "linear k=5 · (2)"]),
        ({"k": 1}, {"k": True}, ["linear k=1", "linear k=True"]),
    ],
)
def test_no_two_races_have_one_heading_by_which_their_targets_go(one, other, apart):
    runs, evals = study()
    again = [run.model_copy(update={"key": f"{run.key}-again"}) for run in runs]
    redone = [record.model_copy(update={"key": f"{record.key}-again", "config": other}) for record in evals]
    evals = [record.model_copy(update={"config": one}) for record in evals]
    found = races(gather([*runs, *again], [*evals, *redone])[0], ["fast", "slow"], "linear", None, {})
    assert sorted(each.heading.removeprefix("digits · nano · 1min · ") for each in found) == apart


@pytest.mark.parametrize("source", ["snapshots", "ladder"])
def test_every_table_says_that_a_seed_ran_twice(source):
    runs, evals = study()
    again = [record.model_copy(update={"key": "slow-2-again"}) for record in evals if record.key == "slow-2"]
    runs.append(runs[-1].model_copy(update={"key": "slow-2-again"}))
    (found,) = races(gather(runs, [*evals, *again])[0], ["fast", "slow"], "linear", source, {})
    made = build([found], {found.heading: (54.0,)}, chosen=False)
    told = {
        table.title
        for table in made
        if all(
            "several runs of seed 2" in row["notes"] for row in rows([table], table.title) if "slow" in row["method"]
        )
    }
    assert told == {table.title for table in made} and len(told) == (5 if source == "snapshots" else 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fast"], "one method"),
        (["fast", "fats"], "unknown method 'fats'"),
        (["fast", "slow", "--metric", "linaer"], "unknown metric 'linaer'"),
        (["fast", "slow", "--target", "linear=50,knn=3"], "unknown target 'knn'"),
        (["fast", "slow", "--axis", "euro"], "unknown axis 'euro'"),
        (["fast", "slow", "--curve", "x"], "unknown curve 'x'"),
    ],
)
def test_what_cannot_be_compared_is_told(tmp_path, harness, words, said):
    write_study(tmp_path / "s", *study())
    status, _, complained = harness("compare", *words, "--study", tmp_path / "s")
    assert status == 2 and said in complained


def test_the_command_prints_and_keeps_tables_and_a_picture_of_equal_bytes(tmp_path, harness):
    write_study(tmp_path / "s", *study())
    contents = []
    for name in ("one", "two"):
        words = [
            "compare",
            "fast",
            "slow",
            "--study",
            tmp_path / "s",
            "--target",
            "linear=60,linear=65",
            "--out",
            tmp_path / name,
        ]
        status, printed, _ = harness(*words)
        assert (
            status == 0
            and "Speed-up of fast" in printed
            and "named in advance" in (tmp_path / name / "compare.md").read_text()
        )
        contents.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())})
    assert contents[0] == contents[1]
    assert contents[0]["compare.tex"].isascii(), "pdflatex sets it as it is"
    assert set(contents[0]) == {"compare.png", "compare.svg", *(f"compare.{form}" for form in FORMATS)}
