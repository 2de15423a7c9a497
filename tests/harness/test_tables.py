"""What stands in the tables of a made-up study, what must not be mixed, and that equal records give equal bytes."""

from __future__ import annotations

import csv
import io
import math
import random
import re
from pathlib import Path

import pytest

from harness import store
from harness.errors import HarnessError
from harness.ledger import ACCOUNTS
from harness.records import Number, RunRecord, Spend
from harness.records import TestOpened as Opened
from harness.report import render
from harness.report.layout import footnotes
from harness.report.tables import build, of_study, write_all
from harness.store import Study
from tests.harness.made_study import (
    ENVIRONMENT,
    GOLDEN,
    cells,
    made_eval,
    made_run,
    made_study,
    table,
    texts,
    write_study,
)

# -- bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(render.FORMATS))
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    made = render.render(build(*made_study()), name)
    assert made == (GOLDEN / f"tables.{name}").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(render.FORMATS))
def test_the_order_of_records_changes_no_byte(name: str) -> None:
    runs, evals = made_study()
    first = render.render(build(runs, evals), name)
    for seed in range(5):
        shuffle = random.Random(seed).shuffle
        shuffle(runs)
        shuffle(evals)
        assert render.render(build(runs, evals), name) == first


def test_runs_of_other_settings_in_the_same_folder_are_left_out(tmp_path: Path) -> None:
    runs, evals = made_study()
    study = write_study(tmp_path, runs, evals)
    other = runs[0].model_copy(update={"key": "umd-of-another-mask-ratio"})
    store.write(study.run(other.key).record, other)
    assert of_study(study) == build(runs, evals)


def test_write_all_from_the_store_repeats_byte_for_byte(tmp_path: Path) -> None:
    runs, evals = made_study()
    first = write_all(write_study(tmp_path / "a", runs, evals))
    again = write_all(Study(tmp_path / "a"))
    other = write_all(write_study(tmp_path / "b", runs[::-1], evals[::-1]))
    assert [p.name for p in first] == ["tables.md", "tables.csv", "tables.tex", "tables.html"]
    assert first == again
    for mine, theirs in zip(first, other, strict=True):
        assert mine.read_bytes() == theirs.read_bytes()
        assert mine.read_text(encoding="utf-8") == (GOLDEN / mine.name).read_text(encoding="utf-8")
    assert not list((tmp_path / "a" / "tables").glob(".*")), "no temporary files stay behind"


def test_no_records_is_said_and_not_an_error() -> None:
    for name in render.FORMATS:
        assert render.render(build([], []), name).strip()
    assert "No runs yet." in render.render(build([], []), "md")


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(HarnessError, match="did you mean 'html'"):
        render.render(build([], []), "htm")


# -- what stands in them --------------------------------------------------------------------------------------


def test_mean_and_interval_over_seeds() -> None:
    row = cells(table("Representation", *made_study()), "umd")
    # Two seeds, 91.4 and 92.6: mean 92.0, half-width t(0.975, 1) * 0.8485 / sqrt(2) = 12.706 * 0.6 = 7.6.
    assert row["linear top-1 % ↑"] == "92.0 ± 7.6"
    assert row["seeds"] == "2"
    assert row["tap"] == "block3"
    assert row["trials"] == "knn: 1; linear: 10"


def test_cheap_and_early_evals_are_not_in_the_tables() -> None:
    runs, evals = made_study()
    kept = [e for e in evals if not e.cheap]
    assert len(kept) < len(evals)
    assert table("Representation", runs, evals) == table("Representation", runs, kept)
    assert table("Generation", runs, evals) == table("Generation", runs, kept)


def test_unfinished_cells_stand_as_what_they_are() -> None:
    made = table("Representation", *made_study())
    assert cells(made, "lmd, seed 1")["linear top-1 % ↑"] == "diverged"
    assert cells(made, "mae, seed 1")["linear top-1 % ↑"] == "running 40%"
    assert cells(made, "lmd")["seeds"] == "1 of 2"
    assert "non-finite loss at step 12" in footnotes(made)
    clock = table("Wall-clock", *made_study())
    assert cells(clock, "lmd, seed 1")["state"] == "diverged"
    assert cells(clock, "lmd, seed 1")["parameters trained"] == "—"


def test_evals_of_a_run_that_did_not_finish_are_no_result() -> None:
    runs, evals = made_study()
    evals.append(made_eval(runs[3], "linear", 99.9))
    assert "99.9" not in render.render(build(runs, evals), "csv")


def test_a_method_that_does_not_beat_its_references_is_marked() -> None:
    made = table("Representation", *made_study())
    assert cells(made, "umd")["beats"] == "≤ pixels: kNN top-1 %"
    assert cells(made, "lmd")["beats"] == "untrained, pixels"
    runs, evals = made_study()
    evals = [e.model_copy(update={"share": 0.0 if e.share == 1.0 else 1.0}) if e.key == "lmd-0" else e for e in evals]
    assert "≤ untrained" in cells(table("Representation", runs, [e for e in evals if not e.cheap]), "lmd")["beats"]


def test_an_equal_or_undefined_value_does_not_beat() -> None:
    run = made_run("umd", 0)
    for value in (87.5, math.nan):
        evals = [made_eval(run, "linear", value), made_eval(None, "linear", 87.5, reference="raw pixels")]
        row = cells(table("Representation", [run], evals), "umd")
        assert row["beats"] == "≤ pixels"
        assert row["linear top-1 % ↑"] == ("nan" if math.isnan(value) else "87.5")


def test_a_missing_value_is_a_dash() -> None:
    runs, evals = made_study()
    evals = [e for e in evals if not (e.key == "mae-0" and e.eval == "knn")]
    made = table("Representation", runs, evals)
    assert cells(made, "mae")["kNN top-1 % ↑"] == "—"
    assert cells(made, "raw pixels")["kNN top-1 % ↑"] == "94.2"
    finished_without_evals = table("Representation", [made_run("umd", 0)], [])
    assert cells(finished_without_evals, "umd")["state"] == "not evaluated"


def test_fewer_seeds_behind_one_number_is_said() -> None:
    runs, evals = made_study()
    evals = [e for e in evals if not (e.key == "umd-1" and e.eval == "knn")]
    assert "over 1 of 2 seeds" in footnotes(table("Representation", runs, evals))


def test_different_titles_never_share_a_column() -> None:
    runs, evals = made_study()
    other = evals[[e.eval for e in evals].index("generation")].numbers["value"]
    inception = other.model_copy(update={"title": "FID (Inception, digits)", "note": None})
    evals = [
        e.model_copy(update={"numbers": {"value": inception}}) if e.key == "umd-0" and e.eval == "generation" else e
        for e in evals
    ]
    made = table("Generation", runs, evals)
    titles = [column.title for column in made.sections[0].columns]
    assert "FID (Inception, digits) ↓" in titles
    assert "FD (small classifier, digits) ↓" in titles
    assert cells(made, "lmd")["FID (Inception, digits) ↓"] == "—"


def test_two_evals_of_one_title_have_a_column_each() -> None:
    run = made_run("umd", 0)
    evals = [made_eval(run, "linear", 80.0), made_eval(run, "linear", 70.0, eval="probe")]
    row = cells(table("Representation", [run], evals), "umd")
    assert (row["linear top-1 % (linear) ↑"], row["linear top-1 % (probe) ↑"]) == ("80.0", "70.0")


def test_a_transfer_eval_names_its_data_set() -> None:
    run = made_run("umd", 0)
    evals = [made_eval(run, "linear", 80.0), made_eval(run, "linear", 60.0, dataset="svhn", data_revision="77")]
    row = cells(table("Representation", [run], evals), "umd")
    assert (row["linear top-1 % ↑"], row["linear top-1 % on svhn ↑"]) == ("80.0", "60.0")


# -- what must not be mixed -----------------------------------------------------------------------------------


def environment(run: RunRecord, **changes: object) -> RunRecord:
    return run.model_copy(update={"environment": ENVIRONMENT.model_copy(update=changes)})


def test_protocol_versions_are_not_mixed() -> None:
    runs = [made_run("umd", 0), made_run("mae", 0), made_run("lmd", 0, state="failed", message="no memory")]
    evals = [made_eval(runs[0], "linear", 80.0), made_eval(runs[1], "linear", 81.0, protocol=2)]
    evals.append(made_eval(None, "linear", 70.0, reference="raw pixels"))
    made = table("Representation", runs, evals)
    one, two = made.sections
    assert one.heading == "digits · nano · 1min · linear protocol 1"
    assert two.heading == "digits · nano · 1min · linear protocol 2"
    assert "umd" in texts(one) and "umd" not in texts(two)
    assert "raw pixels" in texts(one) and "raw pixels" not in texts(two)
    assert two.remarks == (
        "raw pixels: linear is left out, it has linear protocol 1; this section has linear protocol 2.",
    )
    assert len([s for s in made.sections if "lmd, seed 0" in texts(s)]) == 1


def test_the_newest_eval_of_a_run_counts() -> None:
    run = made_run("umd", 0)
    old, new = (Opened(by="linear", at=f"2025-01-0{day}T00:00:00Z") for day in (1, 2))
    evals = [made_eval(run, "linear", 82.0, test_opened=[new]), made_eval(run, "linear", 81.0, test_opened=[old])]
    for order in (evals, evals[::-1]):
        assert cells(table("Representation", [run], order), "umd")["linear top-1 % ↑"] == "82.0"


@pytest.mark.parametrize(
    ("apart", "other"),
    [
        ("2 × Example CPU, 2 CPU threads", environment(made_run("mae", 0), devices=2)),
        ("1 × Other GPU, 2 CPU threads", environment(made_run("mae", 0), device="Other GPU")),
        ("digits data revision ffff", made_run("mae", 0, data_revision="ffff")),
    ],
)
def test_devices_and_data_revisions_are_not_mixed(apart: str, other: RunRecord) -> None:
    runs = [made_run("umd", 0), other]
    for made in build(runs, []):
        assert len(made.sections) == 2
        assert any(section.heading.endswith(apart) for section in made.sections)


def test_sample_counts_are_not_mixed() -> None:
    runs = [made_run("umd", 0), made_run("mae", 0)]
    evals = [made_eval(run, "generation", 5.0) for run in runs]
    more = evals[1].numbers["value"].model_copy(update={"n": 50_000})
    evals[1] = evals[1].model_copy(update={"numbers": {"value": more}})
    made = table("Generation", runs, evals)
    assert len(made.sections) == 2
    assert made.sections[1].heading.endswith("n 50000 (FD (small classifier, digits))")
    assert len(table("Representation", runs, evals).sections) == 1


def test_an_untrained_row_of_another_protocol_is_left_out_and_said() -> None:
    run = made_run("umd", 0)
    evals = [made_eval(run, "linear", 80.0, protocol=2), made_eval(run, "linear", 40.0, share=0.0)]
    section = table("Representation", [run], evals).sections[0]
    assert "umd, untrained" not in texts(section)
    assert section.remarks[0].startswith("umd, untrained: linear is left out")


def test_sections_follow_size_and_budget() -> None:
    def at(size: str, budget: str) -> RunRecord:
        run = made_run("umd", 0)
        return run.model_copy(
            update={"key": size + budget, "cell": run.cell.model_copy(update={"size": size, "budget": budget})}
        )

    made = table("Representation", [at("b", "10min"), at("b", "1h"), at("nano", "2min"), at("nano", "30s")], [])
    shown = [section.heading for section in made.sections]
    assert shown == [f"digits · {place}" for place in ("nano · 30s", "nano · 2min", "b · 10min", "b · 1h")]


def test_runs_of_other_settings_are_other_rows() -> None:
    runs = [made_run("umd", 0), made_run("umd", 0, key="other", config={"mask_ratio": 0.5})]
    evals = [made_eval(runs[0], "linear", 80.0), made_eval(runs[1], "linear", 70.0)]
    made = table("Representation", runs, evals)
    assert cells(made, "umd (umd.mask_ratio=0.5)")["linear top-1 % ↑"] == "70.0"
    assert cells(made, "umd (umd.mask_ratio=0.75)")["linear top-1 % ↑"] == "80.0"


def test_one_seed_run_twice_is_said() -> None:
    runs = [made_run("umd", 0), made_run("umd", 0, key="again")]
    assert "several runs of one seed: the interval is too narrow" in footnotes(table("Representation", runs, []))


def test_evals_without_their_run_are_said() -> None:
    lost = made_run("umd", 0)
    made = table("Representation", [made_run("mae", 0)], [made_eval(lost, "linear", 80.0)])
    assert "Left out: evals of runs that have no record (umd-0)." in made.caption


# -- wall-clock -----------------------------------------------------------------------------------------------


def test_wall_clock_counts_every_second_once() -> None:
    runs, evals = made_study()
    rows = list(csv.DictReader(io.StringIO(render.render(build(runs, evals), "csv"))))
    rows = [row for row in rows if row["table"] == "Wall-clock"]
    booked = sum(
        float(row[f"{name} s"]) * (int(row["seeds"][0]) if row["row"] in ("method", "untrained") else 1)
        for row in rows
        for name in ACCOUNTS
        if row[f"{name} s"] != "—"
    )
    spent = sum(sum(record.ledger.values()) for record in [*runs, *evals])
    assert booked == pytest.approx(spent, rel=1e-5)


def test_wall_clock_columns() -> None:
    row = cells(table("Wall-clock", *made_study()), "umd")
    assert row["train (charged), s"] == "59.8"
    assert row["spent of budget, %"] == "99.7–99.8"
    assert row["training, GFLOP/img"] == "0.123"
    assert row["parameters trained"] == "1.23 M"
    assert row["images seen"] == "48.0 k"
    assert row["peak memory"] == "700 MiB"
    assert row["borrowed"] == "none"
    assert set(ACCOUNTS) <= {re.split(r"[ ,]", title)[0] for title in row}
    assert "MFU, %" not in row
    loan = footnotes(table("Wall-clock", *made_study()))
    assert "borrowed: tiny VAE, 2.45 M parameters; its cost elsewhere: not stated" in loan


def test_a_run_that_has_booked_nothing_has_no_spend_rather_than_0() -> None:
    run = made_run("umd", 0, state="running", spend=Spend(), ledger={}, cost=None)
    row = cells(table("Wall-clock", [run], []), "umd, seed 0")
    assert row["state"] == "running"
    assert {row["spent of budget, %"], row["images seen"], row["train (charged), s"]} == {"—"}


def test_a_long_account_has_one_unit_for_its_column() -> None:
    runs = [made_run("umd", 0, ledger={"train": 36_000.0}), made_run("mae", 0, ledger={"train": 90.0})]
    made = table("Wall-clock", runs, [])
    assert cells(made, "umd")["train (charged), h"] == "10.0"
    assert cells(made, "mae")["train (charged), h"] == "0.03"
    assert cells(made, "mae")["wait, s"] == "—"


def test_one_seeds_own_repeats_are_shown_in_brackets_and_never_beside_an_interval_over_seeds():
    def repeated(run, value):
        number = Number(
            value=value, half=0.44, values=[value, value], title="shots", table="representation", better="higher", n=9
        )
        return made_eval(run, "linear", value, numbers={"value": number})

    runs = [made_run("alpha", 0), made_run("alpha", 1), made_run("beta", 0)]
    evals = [repeated(run, value) for run, value in zip(runs, (50.0, 52.0, 60.0), strict=True)]
    made = table("Representation", runs, evals)
    assert cells(made, "beta")["shots ↑"] == "60.0 (± 0.4)"
    assert cells(made, "alpha")["shots ↑"] == "51.0 ± 12.7"
