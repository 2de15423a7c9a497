"""The store: what is written is read back, old records still load, and a record edited by hand is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from harness import store
from harness.errors import HarnessError
from harness.records import SCHEMA, EvalRecord, RunRecord
from harness.store import Study

OLD = Path(__file__).parents[1] / "golden" / "records"


def fixture(name: str) -> dict:
    return json.loads((OLD / f"{name}.json").read_text())


@pytest.mark.parametrize(("name", "kind"), [("run-1", RunRecord), ("eval-1", EvalRecord), ("reference-1", EvalRecord)])
def test_records_of_old_schemas_still_load(name: str, kind: type) -> None:
    record = store.read(OLD / f"{name}.json")
    assert isinstance(record, kind)
    loaded = json.loads(record.model_dump_json())
    assert stands_in(fixture(name), loaded), "a field was dropped or changed"


def stands_in(kept: object, loaded: object) -> bool:
    """Whether all of `kept` is there unchanged; fields may have come since, at any depth."""
    if isinstance(kept, dict) and isinstance(loaded, dict):
        return all(key in loaded and stands_in(value, loaded[key]) for key, value in kept.items())
    if isinstance(kept, list) and isinstance(loaded, list):
        return len(kept) == len(loaded) and all(map(stands_in, kept, loaded))
    return kept == loaded


def test_every_schema_version_has_its_fixtures() -> None:
    assert {p.name for p in OLD.glob("*.json")} == {
        f"{kind}-{version}.json" for kind in ("run", "eval", "reference") for version in range(1, SCHEMA + 1)
    }


def test_what_is_written_is_read_back_with_equal_bytes(tmp_path: Path) -> None:
    for name in ("run-1", "eval-1"):
        record = store.read(OLD / f"{name}.json")
        store.write(tmp_path / "a.json", record)
        again = store.read(tmp_path / "a.json")
        store.write(tmp_path / "b.json", again)
        assert again == record
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_values_that_are_not_finite_survive(tmp_path: Path) -> None:
    run = store.read(OLD / "run-1.json")
    assert isinstance(run, RunRecord)
    run = run.model_copy(update={"final_loss": math.nan, "ledger": {"train": math.inf, "wait": -math.inf}})
    store.write(tmp_path / "run.json", run)
    json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)  # JSON proper has no NaN
    again = store.read(tmp_path / "run.json")
    assert isinstance(again, RunRecord)
    assert again.final_loss is not None and math.isnan(again.final_loss)
    assert again.ledger == {"train": math.inf, "wait": -math.inf}


def changed(name: str, *path: str | int, value: object) -> str:
    record = fixture(name)
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (changed("run-1", "spend", "share", value="a lot"), "run.spend.share"),
        (changed("run-1", "cell", "seed", value=None), "run.cell.seed"),
        (changed("run-1", "speed", value=1), "run.speed"),
        (changed("run-1", "state", value="done"), "run.state"),
        (changed("run-1", "schema_version", value=99), "run.schema_version"),
        (changed("eval-1", "numbers", "top1", "value", value=[1]), "eval.numbers.top1.value"),
        (changed("eval-1", "numbers", "top1", "colour", value="red"), "eval.numbers.top1.colour"),
        (changed("eval-1", "kind", value="guess"), "the record"),
        ("[]", "the record"),
        ((OLD / "run-1.json").read_text()[:200], "is no JSON"),
        ("", "is no JSON"),
    ],
)
def test_a_record_edited_by_hand_is_named_with_its_field(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "runs" / "k" / "run.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(HarnessError) as error:
        list(Study(tmp_path).runs())
    assert str(path) in error.value.found
    assert field in error.value.found
    assert str(path) in error.value.next_step


def test_a_missing_field_and_a_missing_file_are_named(tmp_path: Path) -> None:
    record = fixture("run-1")
    del record["key"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(HarnessError, match=r"run\.key: Field required"):
        store.read(tmp_path / "run.json")
    with pytest.raises(HarnessError, match="no record at"):
        store.read(tmp_path / "none.json")


def test_a_study_finds_every_record_and_no_other_file(tmp_path: Path) -> None:
    study = Study(tmp_path)
    run, final, reference = (store.read(OLD / f"{name}-1.json") for name in ("run", "eval", "reference"))
    folder = study.run("0123456789ab")
    store.write(folder.record, run)
    store.write(folder.evals(1.0) / "linear.json", final)
    store.write(study.reference("digits", "raw pixels", "s") / "linear.json", reference)
    folder.log.write_text("{}\n")
    (folder.evals(1.0) / "samples.png").write_bytes(b"")
    assert list(study.runs()) == [run]
    assert list(study.evals()) == [final, reference]
    assert folder.evals(1 / 8).name == "0.1250"
    assert study.reference("digits", "raw pixels", "s") == tmp_path / "references" / "digits" / "raw-pixels-s"
