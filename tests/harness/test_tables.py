"""Tables of a made-up study: three methods, two seeds, one diverged and one running cell."""

from __future__ import annotations

import csv
import io
import math
import random
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness import store
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.ledger import ACCOUNTS
from harness.records import Borrowed, Cell, Cost, Environment, EvalRecord, Number, RunRecord, Spend, StudyRecord
from harness.records import TestOpened as Opened
from harness.report import anytime, console, finish, format, render, status
from harness.report.layout import Section, Table, footnotes
from harness.report.tables import build, of_study, write_all
from harness.store import Study

GOLDEN = Path(__file__).parents[1] / "golden" / "tables"
ENVIRONMENT = Environment(device="Example CPU", devices=1, cpu_threads=2, precision="fp32", versions={"torch": "2.11"})
COST = Cost(
    parameters=1_234_567,
    parameters_features=1_000_000,
    flop_train_img=123.4e6,
    flop_features_img=40.1e6,
    img_s=812.3,
    peak_memory_bytes=700 * 2**20,
    outside_share=0.021,
)


def made_run(method: str, seed: int, **changes: object) -> RunRecord:
    cell = Cell(method=method, dataset="digits", size="nano", budget="1min", seed=seed)
    ledger = dict.fromkeys(ACCOUNTS, 0.0) | {"train": 59.8, "checkpoint": 0.4, "compile": 3.25}
    run = RunRecord(
        key=f"{method}-{seed}",
        cell=cell,
        config={"mask_ratio": 0.75},
        train={"batch_size": 128},
        data_revision="1a2b3c",
        state="finished",
        spend=Spend(wall_s=59.8 + seed / 10, flop=6e12, img=48_000, share=0.9967 + seed / 600),
        snapshots={f"{s:.4f}": Spend(flop=6e12 * s, img=48_000 * s, share=s) for s in (0.0, 0.125, 0.25, 0.5, 1.0)},
        ledger=ledger,
        cost=COST,
        environment=ENVIRONMENT,
        final_loss=0.31,
    )
    return run.model_copy(update=changes)


def made_eval(run: RunRecord | None, name: str, value: float, share: float = 1.0, **changes: object) -> EvalRecord:
    numbers = {
        "linear": Number(value=value, title="linear top-1 %", table="representation", better="higher", n=360),
        "knn": Number(value=value, title="kNN top-1 %", table="representation", better="higher", n=360),
        "generation": Number(
            value=value,
            title="FD (small classifier, digits)",
            table="generation",
            better="lower",
            n=1024,
            digits=2,
            note="distance on a small classifier, no Inception weights",
        ),
    }
    record = EvalRecord(
        eval=name,
        protocol=1,
        dataset="digits",
        data_revision="1a2b3c",
        key=run.key if run else None,
        cell=run.cell if run else None,
        share=share if run else None,
        config={},
        seed=0,
        numbers={"value": numbers[name]},
        chosen={"tap": "block3"} if name != "generation" else {},
        trials=10 if name == "linear" else 1,
        test_opened=[Opened(by=name, at="2025-01-02T03:04:05Z")],
        pictures=["samples.png"] if name == "generation" and share == 1.0 else [],
        ledger={"evaluate": 1.5, "select": 2.25} if name == "linear" else {"evaluate": 0.5},
    )
    return record.model_copy(update=changes)


def made_study() -> tuple[list[RunRecord], list[EvalRecord]]:
    """UMD good, LMD with a diverged seed and a loan, MAE below raw pixels in kNN and with a running seed."""
    drawn = "sampling is not from the paper"
    loan = Borrowed(what="tiny VAE", parameters=2_445_063, cost="not stated")
    runs = [
        made_run("umd", 0),
        made_run("umd", 1),
        made_run("lmd", 0, borrowed=[loan], notes=[drawn]),
        made_run("lmd", 1, state="diverged", message="non-finite loss at step 12", cost=None),
        made_run("mae", 0, notes=[drawn]),
        made_run("mae", 1, state="running", spend=Spend(wall_s=24, share=0.4), cost=None),
    ]
    values = {"umd-0": (91.4, 93.1, 8.4), "umd-1": (92.6, 93.3, 8.1), "lmd-0": (88.2, 95.0, 21.7)}
    values["mae-0"] = (90.3, 89.9, 55.125)
    evals = []
    for run in runs:
        names = ("linear", "knn", "generation")
        for name, value in zip(names, values.get(run.key, ()), strict=False):
            evals.append(made_eval(run, name, value))
            if name != "generation":
                evals.append(made_eval(run, name, value - 30, share=0.0))
                evals += [made_eval(run, name, value * s - 5, share=s, cheap=True) for s in (0.125, 0.5, 1.0)]
    evals += [made_eval(None, "linear", 87.5, reference="raw pixels", chosen={})]
    evals += [made_eval(None, "knn", 94.2, reference="raw pixels", chosen={})]
    evals += [made_eval(None, "generation", 0.75, reference="real images", pictures=["real.png"])]
    return runs, evals


def write_study(folder: Path, runs: list[RunRecord], evals: list[EvalRecord]) -> Study:
    study = Study(folder)
    for run in runs:
        store.write(study.run(run.key).record, run)
    for record in evals:
        if record.reference:
            place = study.reference(record.dataset, record.reference)
        else:
            place = study.run(record.key or "").evals(record.share or 0.0, record.cheap)
        store.write(place / f"{record.eval}.json", record)
    asked = StudyRecord(request={}, keys=[run.key for run in runs])
    write_atomic(folder / "study.json", asked.model_dump_json())
    return study


def texts(section: Section) -> dict[str, list[str]]:
    """Rows by label, without the label."""
    return {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in section.rows}


def cells(table: Table, label: str) -> dict[str, str]:
    """The one row of that label over all sections, by column."""
    found = [
        dict(zip([c.title for c in s.columns], [c.text for c in row.cells], strict=True))
        for s in table.sections
        for row in s.rows
        if row.cells[0].text == label
    ]
    assert len(found) == 1, (label, len(found))
    return found[0]


def table(title: str, runs: list[RunRecord], evals: list[EvalRecord]) -> Table:
    return next(t for t in build(runs, evals) if t.title == title)


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


# -- formats --------------------------------------------------------------------------------------------------


def test_hostile_text_is_escaped() -> None:
    bad = "a|b_c <img src=x> & 100 % [bold]"
    tables = build([made_run("umd", 0, notes=[bad])], [], {"umd": bad})
    assert "<img src=x>" not in render.render(tables, "html")
    assert "&lt;img src=x&gt; &amp; 100 %" in render.render(tables, "html")
    assert r"a\|b\_c \<img src=x\>" in render.render(tables, "md")
    assert r"a|b\_c $<$img src=x$>$ \& 100 \% [bold]" in render.render(tables, "tex")
    assert bad in printed(tables, 200)


def test_the_page_asks_for_nothing_but_its_pictures(tmp_path: Path) -> None:
    runs, evals = made_study()
    study = write_study(tmp_path, runs, evals)
    (study.run("umd-0").evals(1.0) / "samples.png").write_bytes(b"png")
    (study.reference("digits", "real images") / "real.png").write_bytes(b"png")
    page = next(p for p in write_all(study) if p.suffix == ".html")
    text = page.read_text(encoding="utf-8")
    assert "http" not in text and "<script" not in text
    sources = re.findall(r'src="([^"]+)"', text)
    assert (page.parent / sources[0]).resolve() in {
        study.run(run.key).evals(1.0).resolve() / "samples.png" for run in runs
    }
    there = [source for source in sources if (page.parent / source).is_file()]
    assert len(there) == 2 and len(sources) == 5


def printed(tables: list[Table], width: int, terminal: bool = False) -> str:
    from rich.console import Console

    file = io.StringIO()
    console.print_tables(tables, Console(file=file, width=width, force_terminal=terminal, color_system="truecolor"))
    return file.getvalue()


def test_a_terminal_of_100_columns_holds_the_tables() -> None:
    tables = build(*made_study())
    said = re.sub(r"\x1b\[[0-9;]*m", "", printed(tables, 100, terminal=True))
    assert max(map(len, said.splitlines())) <= 100
    for word in ("92.0 ± 7.6", "diverged", "raw pixels", "real images", "train (charged), s", "59.8"):
        assert word in said


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_nothing_is_cut_off_on_a_narrow_terminal(width: int) -> None:
    runs, evals = made_study()
    long = {"title": "a number of a long name, with a bracket (k = 20, T = 0.07) top-1 %"}
    for i, record in enumerate(evals):
        if record.eval == "knn":
            second = record.numbers["value"].model_copy(update=long)
            evals[i] = record.model_copy(update={"numbers": record.numbers | {"second": second}})
    tables = build(runs, evals)
    said = re.sub(r"\x1b\[[0-9;]*m", "", printed(tables, width, terminal=True))
    assert max(map(len, said.splitlines())) <= width
    there = Counter(re.findall(r"[^\s─]+", said))
    words = Counter(
        word for t in tables for s in t.sections for row in s.rows for c in row.cells for word in c.text.split()
    )
    assert not {word for word in words if there[word] < words[word] and word != "—"}


def test_no_terminal_gets_plain_text() -> None:
    said = printed(build(*made_study()), 80)
    assert "\x1b" not in said
    assert "92.0 ± 7.6" in said


# -- anytime --------------------------------------------------------------------------------------------------


def test_anytime_points_and_csv() -> None:
    runs, evals = made_study()
    curve = anytime.points(runs, evals)
    assert curve == anytime.points(runs[::-1], evals[::-1])
    mine = [p for p in curve if p.method == "mae" and p.title == "linear top-1 %"]
    assert [(p.share, p.value) for p in mine] == [(s, 90.3 * s - 5) for s in (0.125, 0.5, 1.0)]
    assert mine[1].img == 24_000
    header, first, *_ = anytime.to_csv(curve).splitlines()
    assert header.startswith("dataset,size,budget,eval,protocol,title,method,seed,share,img,flop,value")
    assert first.startswith("digits,nano,1min,knn,1,kNN top-1 %,lmd,0,0.125,")


def test_anytime_plot_is_a_picture_and_repeats(tmp_path: Path) -> None:
    curve = anytime.points(*made_study())
    first, again = (anytime.plot(curve, tmp_path / name, "img") for name in ("a.png", "b.png"))
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == again.read_bytes()
    with pytest.raises(HarnessError, match="no snapshots were evaluated"):
        anytime.plot([], tmp_path / "c.png")


def test_finish_shows_the_tables_and_the_way_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study", *made_study())
    finish.finish(study)
    said = capsys.readouterr().out
    assert "92.0 ± 7.6" in said
    assert "python -m harness table" in said
    golden = (GOLDEN / "tables.md").read_text(encoding="utf-8")
    assert finish.render_study(study, "md") == golden
    with pytest.raises(HarnessError, match="no runs in"):
        finish.render_study(Study(tmp_path / "stduy"), "md")


# -- status ---------------------------------------------------------------------------------------------------


def test_status_reads_the_record_and_the_last_whole_log_line(tmp_path: Path) -> None:
    study = write_study(tmp_path, *made_study())
    line = '{"step": %d, "share": %s, "loss": 0.5, "img_s": 800.0, "at": "2025-01-01T00:00:00Z"}\n'
    log = line % (1, 0.1) + line % (7, 0.7) + '{"step": 8, "sha'
    study.run("mae-1").log.write_text(log)
    found = {s.key: s for s in status.rows(study, datetime(2025, 1, 1, 0, 3, tzinfo=UTC))}
    assert list(found) == ["lmd-0", "lmd-1", "mae-0", "mae-1", "umd-0", "umd-1"]
    running = found["mae-1"]
    assert (running.share, running.step, running.age_s, running.spent) == (0.7, 7, 180.0, "0.700min")
    assert found["lmd-1"].message == "non-finite loss at step 12"
    assert found["umd-0"].share == pytest.approx(0.9967)
    assert found["umd-0"].age_s is None


def test_status_on_a_terminal(tmp_path: Path) -> None:
    from rich.console import Console

    study = write_study(tmp_path, *made_study())
    study.run("mae-1").log.write_text('{"step": 1, "share": 0.5, "loss": "NaN", "at": "never"}\nnot json\n[1]\n')
    file = io.StringIO()
    Console(file=file, width=100).print(status.grid(status.rows(study)))
    said = file.getvalue()
    assert "50.0%" in said and "diverged" in said
    assert max(map(len, said.splitlines())) <= 100


# -- numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (format.fixed(-0.04, 1), "0.0"),
        (format.fixed(math.nan, 1), "nan"),
        (format.fixed(-math.inf, 1), "-inf"),
        (format.significant(0.001234), "0.00123"),
        (format.significant(9.996), "10.0"),
        (format.significant(12345.6), "12346"),
        (format.significant(0), "0"),
        (format.count(360), "360"),
        (format.count(999_999), "1.00 M"),
        (format.count(1_234_567), "1.23 M"),
        (format.count(4.5e9), "4.50 G"),
        (format.count(7e18), "7000 P"),
        (format.gflop(4.56e9), "4.56"),
        (format.memory(700 * 2**20), "700 MiB"),
        (format.memory(1.5 * 2**30), "1.50 GiB"),
        (format.time_unit([1.0, 599.0]), "s"),
        (format.time_unit([1.0, 600.0]), "min"),
        (format.time_unit([math.inf, 10_800.0]), "h"),
        (format.time_unit([]), "s"),
        (format.duration(0.0, "s"), "0"),
        (format.duration(0.001, "s"), "<0.01"),
        (format.duration(0.4, "s"), "0.40"),
        (format.duration(90.0, "min"), "1.50"),
        (format.age(30), "30 s"),
        (format.age(18_000), "5.0 h"),
    ],
)
def test_numbers_as_people_read_them(made: str, wanted: str) -> None:
    assert made == wanted


def test_mean_interval_covers_the_truth_95_times_in_100() -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(4000):
        mean, half = format.mean_interval([draw.gauss(3.0, 2.0) for _ in range(3)])
        assert half is not None
        hits += abs(mean - 3.0) <= half
    assert 0.94 < hits / 4000 < 0.96


def test_mean_interval_of_values_that_are_not_finite() -> None:
    assert format.mean_interval([5.0]) == (5.0, None)
    assert format.mean_interval([1.0, math.inf]) == (math.inf, None)
    assert math.isnan(format.mean_interval([math.inf, -math.inf])[0])
    assert math.isnan(format.mean_interval([1.0, math.nan])[0])
