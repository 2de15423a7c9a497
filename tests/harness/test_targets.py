"""The price of a target: where a run's quick curve first crosses it, and infinity where it never does."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.records import EvalRecord, RunRecord, Spend
from harness.report import render
from harness.report.finish import render_study
from harness.report.layout import Table, footnotes
from harness.report.tables import build
from harness.report.targets import Target, parse
from tests.harness.made_study import cells, made_eval, made_run, made_study, write_study

SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
FORTY = (Target("linear", 40.0),)
TIME, FLOP, IMAGES = (f"linear top-1 % ≥ 40: {what}" for what in ("device time, min", "FLOP", "images"))


def climbing(method: str, seed: int, curve: tuple[float | None, ...], full_s: float = 3600.0) -> tuple:
    """A run of `full_s` device seconds, 1e15 FLOP and 1000 images, and its quick linear probe at each share."""
    at = {
        f"{s:.4f}": Spend(device_s=full_s * s, wall_s=full_s * s, flop=1e15 * s, img=1000 * s, share=s) for s in SHARES
    }
    run = made_run(method, seed, snapshots=at)
    return run, [
        made_eval(run, "linear", value, share=s, cheap=True, test_opened=[])
        for s, value in zip(SHARES, curve, strict=True)
        if value is not None
    ]


def to_target(*made: tuple[RunRecord, list[EvalRecord]], wanted: tuple[Target, ...] = FORTY) -> Table:
    runs, evals = [run for run, _ in made], [record for _, records in made for record in records]
    return next(t for t in build(runs, evals, wanted=wanted) if t.title == "To target")


def test_the_price_is_interpolated_between_snapshots() -> None:
    row = cells(to_target(climbing("umd", 0, (10, 20, 30, 50, 60))), "umd")
    # From 30 at a quarter to 50 at a half: 40 at three eighths of an hour.
    assert (row[TIME], row[FLOP], row[IMAGES]) == ("22.5", "375 T", "375")


def test_the_first_crossing_counts() -> None:
    row = cells(to_target(climbing("umd", 0, (10, 45, 30, 20, 90))), "umd")
    assert row[IMAGES] == f"{1000 * 0.125 * 30 / 35:.0f}"


@pytest.mark.parametrize(("curve", "images"), [((10, 20, 40, 50, 60), "250"), ((40, 20, 30, 50, 60), "0")])
def test_a_snapshot_on_the_target_is_its_price(curve: tuple[float, ...], images: str) -> None:
    assert cells(to_target(climbing("umd", 0, curve)), "umd")[IMAGES] == images


def test_a_target_that_the_untrained_network_reaches_is_said() -> None:
    made = to_target(climbing("umd", 0, (41, 42, 43, 50, 60)), climbing("mae", 0, (10, 42, 43, 50, 60)))
    row = next(row for row in made.sections[0].rows if row.cells[0].text == "umd")
    assert {cell.notes for cell in row.cells[2:]} == {("reached by the untrained network",)}
    assert [said for said in footnotes(made) if "untrained" in said] == ["reached by the untrained network"]


def test_never_is_infinite_and_no_curve_is_missing() -> None:
    low, none = climbing("umd", 0, (10, 20, 30, 35, 39.9)), climbing("mae", 0, (None,) * 5)
    made = to_target(low, none)
    assert {cells(made, "umd")[title] for title in (FLOP, IMAGES)} == {"inf"}
    assert cells(made, "mae")[IMAGES] == "—"


def test_a_missing_snapshot_is_passed_over() -> None:
    row = cells(to_target(climbing("umd", 0, (10, None, 30, None, 60))), "umd")
    assert row[IMAGES] == "500"


def test_lower_is_better_where_the_eval_says_so() -> None:
    run, records = climbing("umd", 0, (60, 50, 45, 35, 20))
    down = [
        r.model_copy(update={"numbers": {"error": r.numbers["value"].model_copy(update={"better": "lower"})}})
        for r in records
    ]
    row = cells(to_target((run, down), wanted=(Target("error", 40.0),)), "umd")
    assert row["linear top-1 % ≤ 40: images"] == "375"


def test_seeds_have_a_mean_and_an_interval() -> None:
    made = to_target(*(climbing("umd", seed, (0, 10, 20, 20 + gain, 90)) for seed, gain in ((0, 20), (1, 40))))
    row = cells(made, "umd")
    # 500 and 375 images, by their logarithms: sqrt(500 * 375), times and by exp(12.706 * ln(500 / 375) / 2).
    assert (row["seeds"], row[IMAGES]) == ("2", "433 (70 to 2.69 k)")
    (plain,) = csv.DictReader(io.StringIO(render.render([made], "csv")))
    ends = [float(plain[f"{IMAGES} {end}"]) for end in ("low", "high")]
    assert ends == pytest.approx([69.62, 2693.2], rel=1e-4)
    assert float(plain["linear top-1 % ≥ 40: device s"]) == pytest.approx(3600 * math.sqrt(0.5 * 0.375))


def test_one_seed_that_never_gets_there_is_said() -> None:
    made = to_target(climbing("umd", 0, (0, 10, 20, 40, 90)), climbing("umd", 1, (0, 10, 20, 25, 30)))
    assert cells(made, "umd")[IMAGES] == "inf"
    assert "reached by 1 of 2 seeds" in footnotes(made)


def test_a_run_that_did_not_finish_stands_as_what_it_is() -> None:
    run, records = climbing("umd", 0, (10, 20, 30, 50, 60))
    made = to_target((run.model_copy(update={"state": "diverged", "message": "non-finite loss"}), records))
    assert cells(made, "umd, seed 0")[IMAGES] == "diverged"


def test_full_evals_are_no_part_of_the_curve() -> None:
    run, records = climbing("umd", 0, (10, 20, 30, 35, 39))
    full = [made_eval(run, "linear", 99.0), made_eval(run, "linear", 98.0, share=0.0)]
    assert cells(to_target((run, records + full)), "umd")[IMAGES] == "inf"


def test_quick_evals_of_other_protocols_do_not_mix() -> None:
    run, records = climbing("umd", 0, (10, 20, 30, 50, 60))
    other, later = climbing("mae", 0, (10, 20, 30, 50, 60))
    later = [record.model_copy(update={"protocol": 2}) for record in later]
    assert len(to_target((run, records), (other, later)).sections) == 2
    mixed = [*records[:3], *(r.model_copy(update={"protocol": 2}) for r in records[3:])]
    made = to_target((run, mixed))
    assert cells(made, "umd")[IMAGES] == "—"  # what is left starts at a half, beyond the target
    assert "reached before the first point of the curve by 1 of 1 seeds" in footnotes(made)


def test_without_targets_there_is_no_table() -> None:
    assert "To target" not in {made.title for made in build(*made_study())}


def test_equal_records_in_any_order_give_equal_bytes() -> None:
    runs, evals = made_study()
    wanted = (Target("linear", 40.0), Target("knn", 35.0))
    made = render.render(build(runs, evals, wanted=wanted), "md")
    assert made == render.render(build(runs[::-1], evals[::-1], wanted=wanted), "md")
    assert "kNN top-1 % ≥ 35: FLOP" in made


# -- how they are asked for -------------------------------------------------------------------------------------------


def test_targets_are_read_from_words() -> None:
    assert parse("linear=40, knn=35.5,linear=40") == (Target("linear", 40.0), Target("knn", 35.5))


@pytest.mark.parametrize("text", ["", "linear", "linear=", "=40", "linear=much", "linear=inf"])
def test_words_that_are_no_target_are_refused(text: str) -> None:
    with pytest.raises(HarnessError, match=r"no target|the target") as caught:
        parse(text)
    assert "--target linear=40" in caught.value.next_step


def test_a_target_without_a_curve_names_those_that_have_one(tmp_path: Path) -> None:
    study = write_study(tmp_path, *made_study())
    assert "linear top-1 % ≥ 40" in render_study(study, "md", "linear=40").replace("\\", "")
    with pytest.raises(HarnessError, match=r"unknown target 'linar'.*\n.*did you mean 'linear'.*knn"):
        render_study(study, "md", "linar=40")
    bare = write_study(tmp_path / "bare", made_study()[0], [])
    with pytest.raises(HarnessError, match="no snapshots were evaluated"):
        render_study(bare, "md", "linear=40")
