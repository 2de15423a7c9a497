"""`harness diff`: each way in which two studies differ, which cells change by it, and what reaches no table."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest

from harness import store
from harness.errors import HarnessError
from harness.records import EvalRecord, RunRecord, Spend, StudyRecord
from harness.records import TestOpened as Opened
from harness.report.diff import GONE, NEW, Difference, between
from harness.report.overall import ACROSS
from harness.report.sides import read
from harness.report.tables import write_all
from harness.store import Study
from tests.harness.made_study import made_eval, made_run, made_study, write_study

SECTION = "digits · nano · 1min"


def two(tmp_path: Path, runs: list[RunRecord], evals: list[EvalRecord]) -> Difference:
    """The made-up study against the same with these records."""
    write_study(tmp_path / "a", *made_study())
    write_study(tmp_path / "b", runs, evals)
    return between(read(str(tmp_path / "a")), read(str(tmp_path / "b")))


def with_eval(match: str, **changes: object) -> tuple[list[RunRecord], list[EvalRecord]]:
    """The made-up study with one full final eval changed, as in "umd-0 linear"."""
    runs, evals = made_study()
    key, name = match.split()
    i = next(i for i, e in enumerate(evals) if (e.key, e.eval, e.share, e.cheap) == (key, name, 1.0, False))
    evals[i] = evals[i].model_copy(update=changes)
    return runs, evals


def with_number(match: str, **changes: object) -> tuple[list[RunRecord], list[EvalRecord]]:
    _, evals = with_eval(match)
    key, name = match.split()
    old = next(e for e in evals if (e.key, e.eval, e.share, e.cheap) == (key, name, 1.0, False))
    return with_eval(match, numbers={"value": old.numbers["value"].model_copy(update=changes)})


def places(found: Difference) -> dict[tuple[str, str, str], tuple[str | None, str | None, tuple[str, ...]]]:
    """Table, row, column -> old, new, by."""
    return {(c.place[0], c.place[2], c.place[3]): (c.old, c.new, c.by) for c in found.cells}


def test_equal_studies(tmp_path: Path) -> None:
    found = two(tmp_path, *made_study())
    assert found.equal and not found.cells and not found.records


def test_a_number_is_named_with_the_cells_that_it_changes(tmp_path: Path) -> None:
    found = two(tmp_path, *with_number("umd-0 linear", value=91.8))
    (one,) = found.records
    assert (one.name, one.how) == ("linear of umd digits nano 1min seed 0 at 1", "differs")
    assert [(c.field, c.old, c.new) for c in one.changes] == [("numbers.value.value", 91.4, 91.8)]
    changed = places(found)
    assert changed == {
        (table, "umd", "linear top-1 %"): ("92.0 ± 7.6", "92.2 ± 5.1", ("linear: numbers.value.value",))
        for table in ("Overall", "Representation")
    }


def test_two_fields_of_one_record_have_cells_of_their_own(tmp_path: Path) -> None:
    runs, evals = with_number("umd-0 linear", value=91.8)
    runs[0] = runs[0].model_copy(update={"ledger": runs[0].ledger | {"compile": 5.25}})
    changed = places(two(tmp_path, runs, evals))
    assert {place: by for place, (_, _, by) in changed.items()} == {
        ("Overall", "umd", "linear top-1 %"): ("linear: numbers.value.value",),
        ("Representation", "umd", "linear top-1 %"): ("linear: numbers.value.value",),
        ("Wall-clock", "umd", "compile s"): ("run: ledger.compile",),
    }


def test_times_of_day_paths_and_versions_are_told_apart(tmp_path: Path, harness) -> None:
    later = [Opened(by="linear", at="2026-01-02T03:04:05Z")]
    runs, evals = with_eval("umd-0 linear", test_opened=later, snapshot="1.0000-ffff.safetensors")
    runs[0] = runs[0].model_copy(update={"attempts": 3})
    found = two(tmp_path, runs, evals)
    assert not found.equal and not found.cells and not found.reaching()
    status, out, _ = harness("diff", tmp_path / "a", tmp_path / "b")
    assert status == 1
    assert "No cell of a table and no point of a curve changes." in out
    apart = out.split("In no table and no curve")[1]
    assert all(name in apart for name in ("linear: test_opened", "linear: snapshot", "run: attempts"))


def test_a_new_record_and_one_that_is_gone(tmp_path: Path) -> None:
    runs, evals = made_study()
    gone = next(e for e in evals if (e.key, e.eval, e.share, e.cheap) == ("lmd-0", "knn", 1.0, False))
    evals = [e for e in evals if e is not gone] + [made_eval(runs[4], "knn", 55.5, share=0.25, cheap=True)]
    found = two(tmp_path, runs, evals)
    assert [(one.how, one.name) for one in found.records] == [
        ("gone", "knn of lmd digits nano 1min seed 0 at 1"),
        ("new", "quick knn of mae digits nano 1min seed 0 at 0.25"),
    ]
    changed = places(found)
    assert changed["Representation", "lmd", "kNN top-1 %"] == ("95.0", "—", (GONE,))
    assert changed["Anytime curve", "mae, seed 0", "kNN top-1 % at 0.25 (knn)"] == (None, "55.5", (NEW,))


def test_a_new_run_brings_rows(tmp_path: Path) -> None:
    runs, evals = made_study()
    run = made_run("dit", 0)
    found = two(tmp_path, [*runs, run], [*evals, made_eval(run, "linear", 70.0)])
    assert [(one.how, one.name) for one in found.records] == [
        ("new", "run of dit digits nano 1min seed 0"),
        ("new", "linear of dit digits nano 1min seed 0 at 1"),
    ]
    rows = {cell.place[2] for cell in found.cells if cell.whole}
    assert rows == {"dit"}
    assert {cell.by for cell in found.cells} == {(NEW,)}


def test_a_run_that_the_study_asks_for_no_more_is_gone(tmp_path: Path) -> None:
    write_study(tmp_path / "a", *made_study())
    study = write_study(tmp_path / "b", *made_study())
    keys = [key for key in study.asked().keys if key != "umd-1"]
    (tmp_path / "b" / "study.json").write_text(StudyRecord(request={"seeds": 1}, keys=keys).model_dump_json())
    found = between(read(str(tmp_path / "a")), read(str(tmp_path / "b")))
    assert {one.how for one in found.records} == {"gone"}
    assert all("umd digits nano 1min seed 1" in one.name for one in found.records)
    assert [(c.field, c.new) for c in found.requests] == [("seeds", 1)]
    assert places(found)["Representation", "umd", "linear top-1 %"] == ("92.0 ± 7.6", "91.4", (GONE,))


def test_a_setting_that_changed_the_key_is_named_and_the_run_is_still_the_same_cell(tmp_path: Path, harness) -> None:
    runs, evals = with_number("umd-0 linear", value=91.8)
    runs[0] = runs[0].model_copy(update={"key": "umd-0-other", "config": {"mask_ratio": 0.5}})
    evals = [e.model_copy(update={"key": "umd-0-other"}) if e.key == "umd-0" else e for e in evals]
    found = two(tmp_path, runs, evals)
    assert [one.keys for one in found.records] == [("umd-0", "umd-0-other"), None]
    assert [c.field for c in found.records[0].changes] == ["config.mask_ratio"]
    assert not [one for one in found.records if one.how != "differs"]
    _, out, _ = harness("diff", tmp_path / "a", tmp_path / "b")
    assert "key umd-0 → umd-0-other by config.mask_ratio 0.75 → 0.5" in out
    assert "umd (umd.mask_ratio=0.5)" in out, "the row that it now is"


def test_a_key_that_changed_with_no_setting_is_said(tmp_path: Path, harness) -> None:
    runs, evals = made_study()
    runs[4] = runs[4].model_copy(update={"key": "mae-0-anew"})
    evals = [e.model_copy(update={"key": "mae-0-anew"}) if e.key == "mae-0" else e for e in evals]
    found = two(tmp_path, runs, evals)
    assert [one.keys for one in found.records] == [("mae-0", "mae-0-anew")] and not found.equal
    assert not found.cells or {cell.place[3] for cell in found.cells} == {"picture"}
    _, out, _ = harness("diff", tmp_path / "a", tmp_path / "b")
    assert "no setting: made by another version of the harness" in out


def test_of_two_runs_of_a_cell_each_finds_the_one_nearest_in_settings(tmp_path: Path) -> None:
    def run(key: str, **config: object) -> RunRecord:
        return made_run("umd", 0, key=key, config=config)

    write_study(tmp_path / "a", [run("a1", m=1, n=1), run("a2", m=2, n=2)], [])
    write_study(tmp_path / "b", [run("b1", m=2, n=2, lr=3), run("b2", m=1, n=1, lr=3)], [])
    found = between(read(str(tmp_path / "a")), read(str(tmp_path / "b")))
    assert {one.keys for one in found.records} == {("a1", "b2"), ("a2", "b1")}


def test_images_guessed_otherwise_are_counted(tmp_path: Path, harness) -> None:
    def hits(*right: int) -> str:
        return base64.b64encode(bytes(right)).decode()

    write_study(tmp_path / "a", *with_number("umd-0 linear", n=16, hits=hits(0b11110000, 0)))
    write_study(tmp_path / "b", *with_number("umd-0 linear", n=16, hits=hits(0b11110011, 1)))
    _, out, _ = harness("diff", tmp_path / "a", tmp_path / "b", "--format", "json")
    assert [f["field"] for f in json.loads(out)["records"][0]["fields"]] == ["numbers.value.hits"]
    found = between(read(str(tmp_path / "a")), read(str(tmp_path / "b")))
    from harness.report.changes import guesses

    (one,) = found.records
    assert isinstance(one.old, EvalRecord)
    assert guesses(one.old, one.changes[0]) == "3 of 16 images"


def test_a_reference_and_a_snapshot_s_meter(tmp_path: Path) -> None:
    runs, evals = made_study()
    i = next(i for i, e in enumerate(evals) if e.reference == "raw pixels" and e.eval == "linear")
    evals[i] = made_eval(None, "linear", 91.9, reference="raw pixels", chosen={})
    runs[4] = runs[4].model_copy(update={"snapshots": runs[4].snapshots | {"0.5000": Spend(img=7, flop=3e12)}})
    found = two(tmp_path, runs, evals)
    changed = places(found)
    assert changed["Representation", "raw pixels", "linear top-1 %"][:2] == ("87.5", "91.9")
    assert changed["Representation", "mae", "beats"][1] == "≤ pixels (flagged)"
    assert changed["Anytime curve", "mae, seed 0", "images at 0.5"] == ("24000", "7", ("run: snapshots",))
    assert "linear of raw pixels, digits" in {one.name for one in found.records}


def test_a_loss_that_is_no_number_is_like_another(tmp_path: Path) -> None:
    runs, evals = made_study()
    runs[3] = runs[3].model_copy(update={"final_loss": float("nan")})
    write_study(tmp_path / "a", runs, evals)
    write_study(tmp_path / "b", runs, evals)
    assert between(read(str(tmp_path / "a")), read(str(tmp_path / "b"))).equal


def seeds_of(values: dict[str, float]) -> tuple[list[RunRecord], list[EvalRecord]]:
    """Three seeds of each method, about its linear accuracy, in digits and in another data set."""
    runs, evals = [], []
    for name in ("digits", "other"):
        for method, value in values.items():
            for seed in range(3):
                run = made_run(method, seed, key=f"{method}-{name}-{seed}")
                runs.append(run.model_copy(update={"cell": run.cell.model_copy(update={"dataset": name})}))
                evals.append(made_eval(runs[-1], "linear", value + seed, dataset=name))
    return runs, evals


def test_a_mark_that_moves_is_told(tmp_path: Path) -> None:
    write_study(tmp_path / "a", *seeds_of({"umd": 90.0, "mae": 80.0}))
    write_study(tmp_path / "b", *seeds_of({"umd": 90.0, "mae": 95.0}))
    changed = places(between(read(str(tmp_path / "a")), read(str(tmp_path / "b"))))
    assert changed["Representation", "umd", "linear top-1 %"][:2] == ("91.0 ± 2.5 (best)", "91.0 ± 2.5")


def test_the_mean_rank_of_all_sections_changes_by_what_changes_a_rank(tmp_path: Path) -> None:
    runs, evals = seeds_of({"umd": 90.0, "mae": 80.0})
    write_study(tmp_path / "a", runs, evals)
    runs[0] = runs[0].model_copy(update={"ledger": runs[0].ledger | {"compile": 5.25}})
    for i, record in enumerate(evals):
        if record.key.startswith("umd-digits"):
            number = record.numbers["value"].model_copy(update={"value": record.numbers["value"].value - 20})
            evals[i] = record.model_copy(update={"numbers": {"value": number}})
    write_study(tmp_path / "b", runs, evals)
    found = between(read(str(tmp_path / "a")), read(str(tmp_path / "b")))
    across = {cell.place[2:]: (cell.old, cell.new, cell.by) for cell in found.cells if cell.place[1] == ACROSS}
    assert across == {
        ("mae", SECTION): ("2.00", "1.00", ("linear: numbers.value.value",)),
        ("mae", "mean rank"): ("2.00", "1.50", ("linear: numbers.value.value",)),
        ("umd", SECTION): ("1.00", "2.00", ("linear: numbers.value.value",)),
        ("umd", "mean rank"): ("1.00", "1.50", ("linear: numbers.value.value",)),
    }


def test_a_caption_changes_by_the_evals_whose_run_is_not_there_any_more(tmp_path: Path) -> None:
    runs, evals = made_study()
    write_study(tmp_path / "a", runs, evals)
    write_study(tmp_path / "b", runs, evals)
    study = Study(tmp_path / "b")
    study.run("umd-1").record.unlink()
    runs[4] = runs[4].model_copy(update={"ledger": runs[4].ledger | {"compile": 5.25}})
    store.write(study.run("mae-0").record, runs[4])
    found = between(read(str(tmp_path / "b")), read(str(tmp_path / "a")))
    assert {cell.by for cell in found.cells if cell.place[3] == "caption"} == {(NEW,)}


# -- the command ----------------------------------------------------------------------------------------------


def test_exit_status_is_diff_s(tmp_path: Path, harness) -> None:
    two(tmp_path, *with_number("umd-0 linear", value=91.8))
    status, out, _ = harness("diff", tmp_path / "a", tmp_path / "a")
    assert status == 0 and "The records are equal" in out
    status, out, _ = harness("diff", tmp_path / "a", tmp_path / "b")
    assert status == 1
    for said in ("numbers.value.value  91.4 → 91.8", "Representation", "92.0 ± 7.6", "92.2 ± 5.1"):
        assert said in out
    status, _, err = harness("diff", tmp_path / "a", tmp_path / "nowhere")
    assert status == 2 and "no study in" in err and "harness diff" in err
    status, _, err = harness("diff", tmp_path / "a", tmp_path / "b", "--format", "jsn")
    assert status == 2 and "did you mean 'json'" in err


def test_json_has_all_of_it(tmp_path: Path, harness) -> None:
    two(tmp_path, *with_number("umd-0 linear", value=91.8))
    _, out, _ = harness("diff", tmp_path / "a", tmp_path / "b", "--format", "json")
    said = json.loads(out)
    assert not said["equal"]
    (record,) = said["records"]
    assert record["fields"] == [{"field": "numbers.value.value", "old": 91.4, "new": 91.8, "in_a_table": True}]
    assert said["cells"] == [
        {
            "table": table,
            "section": SECTION,
            "row": "umd",
            "column": "linear top-1 %",
            "old": "92.0 ± 7.6",
            "new": "92.2 ± 5.1",
            "by": ["linear: numbers.value.value"],
        }
        for table in ("Overall", "Representation")
    ]


def test_tables_that_other_code_made_are_said(tmp_path: Path, harness) -> None:
    for name in "ab":
        write_all(write_study(tmp_path / name, *made_study()))
    (tmp_path / "b" / "tables" / "tables.md").write_text("as it was made last year\n")
    status, out, _ = harness("diff", tmp_path / "a", tmp_path / "b")
    assert status == 1 and "tables.md of A and B differ: as stored, they were made by different code" in out


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def test_a_git_revision_is_compared_with_the_folder(tmp_path: Path, harness) -> None:
    place = tmp_path / "repository" / "results" / "x"
    study = write_study(place, *made_study())
    git(tmp_path, "init", str(tmp_path / "repository"))
    git(place, "add", ".")
    git(place, "commit", "-m", "as it was")
    _, evals = with_number("umd-0 linear", value=91.8)
    changed = next(e for e in evals if (e.key, e.eval, e.share, e.cheap) == ("umd-0", "linear", 1.0, False))
    store.write(study.run("umd-0").evals(1.0) / "linear.json", changed)
    status, out, _ = harness("diff", f"{place}@HEAD", place)
    assert status == 1 and "91.4 → 91.8" in out
    git(place, "rm", "-r", "-q", "--cached", ".")
    study.path.rename(tmp_path / "elsewhere")
    assert harness("diff", f"{place}@HEAD", tmp_path / "elsewhere")[0] == 1, "also of a folder that is gone"
    status, _, err = harness("diff", f"{place}@no-such-revision", tmp_path / "elsewhere")
    assert status == 2 and "no-such-revision" in err


def test_a_folder_whose_name_has_an_at_is_a_folder(tmp_path: Path) -> None:
    write_study(tmp_path / "x@y", *made_study())
    assert len(read(str(tmp_path / "x@y")).runs) == 6
    with pytest.raises(HarnessError, match="no study"):
        read(f"{tmp_path / 'x@y'}@HEAD")


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    study: Study = write_study(tmp_path / "a", *made_study())
    study.run("umd-0").record.write_text("{")
    with pytest.raises(HarnessError, match=r"umd-0/run\.json is no JSON"):
        read(str(tmp_path / "a"))
