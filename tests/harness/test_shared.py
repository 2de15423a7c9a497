"""Methods that read one pre-training: trained once, evaluated again only where they would differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import methods
from harness import store
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.plugins import card
from harness.records import EvalRecord, RunRecord, Spend
from harness.resolve import Job, jobs
from harness.rng import Rng
from harness.shared import adopt, reads_alike, take_over
from harness.study import build
from harness.train import flops
from methods.mae.method import Mae
from methods.umd.method import Umd
from tests.harness.made_study import COST, made_eval, made_run

READER = """
from methods.mae.method import Mae
class {name}(Mae):
    pretrained_as = "mae"
    {body}
METHOD = {name}
"""
LAST_BLOCK_ONLY = "def taps(self): return super().taps()[:1]"
FEW = ("generation.samples=100", "generation.kernel_size=50", "generation.seeds=1")
BUDGET = ["--budget", "6step", "train.batch_size=16", "train.snapshots=[0.5]"]


@pytest.fixture(autouse=True)
def readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods that read MAE's weights: one in the same way, one at another tap."""
    root = tmp_path / "methods"
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(root)])
    card.cache_clear()
    for name, body in {"alike": "pass", "other": LAST_BLOCK_ONLY}.items():
        (root / name).mkdir(parents=True)
        (root / name / "method.py").write_text(READER.format(name=name, body=body))
        (root / name / "card.toml").write_text(f'title = "{name}"\nnotes = ["of {name}"]\n')
    yield
    card.cache_clear()
    for name in [m for m in sys.modules if m.startswith(("methods.alike", "methods.other"))]:
        del sys.modules[name]


def records(study: Path, pattern: str) -> dict[str, dict]:
    return {(r := json.loads(p.read_text()))["cell"]["method"]: r for p in study.glob(f"runs/*/{pattern}")}


def test_one_pre_training_serves_its_readers(tmp_path, harness):
    words = ["--methods", "alike,other,mae", "--evals", "knn,generation", *FEW, *BUDGET]
    words += ["--name", "s", "--out", str(tmp_path)]
    status, printed, _ = harness("run", *words)
    assert status == 0
    study = tmp_path / "s"
    runs = records(study, "run.json")
    assert set(runs) == {"mae", "alike", "other"}
    assert runs["mae"]["shared"] is None and (study / "runs" / runs["mae"]["key"] / "checkpoints").exists()
    for name in ("alike", "other"):
        own = study / "runs" / runs[name]["key"]
        assert runs[name]["shared"] == runs["mae"]["key"]
        assert runs[name]["spend"] == runs["mae"]["spend"]  # in full
        assert not (own / "checkpoints").exists()  # nothing was trained here
        assert f"of {name}" in runs[name]["notes"]
    assert "trained once" in printed
    taken, done = records(study, "evals/1.0000/knn.json"), records(study, "evals/1.0000/generation.json")
    assert taken["alike"]["shared"] == runs["mae"]["key"] and taken["alike"]["numbers"] == taken["mae"]["numbers"]
    assert taken["other"]["shared"] is None and taken["other"]["trials"] == 1  # its own tap: evaluated for itself
    assert done["other"]["shared"] == done["alike"]["shared"] == runs["mae"]["key"]  # all three draw alike
    for picture in done["other"]["pictures"]:
        assert (study / "runs" / runs["other"]["key"] / "evals/1.0000" / picture).is_file()
    before = {p: p.stat().st_mtime_ns for p in study.glob("runs/**/*.json")}
    assert harness("run", *words)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in study.glob("runs/**/*.json")} == before


def test_readers_alone_train_what_they_read_and_are_evaluated_once(tmp_path, harness):
    words = ["--methods", "alike,other", "--evals", "knn,generation", *FEW, *BUDGET]
    assert harness("run", *words, "--name", "s", "--out", str(tmp_path))[0] == 0
    assert set(records(tmp_path / "s", "run.json")) == {"mae", "alike", "other"}
    knn, drawn = (records(tmp_path / "s", f"evals/1.0000/{name}.json") for name in ("knn", "generation"))
    assert set(knn) == {"alike", "other"} and not any(record["shared"] for record in knn.values())
    assert drawn["alike"]["shared"] is None and drawn["other"]["shared"], "they draw alike, so the second took it over"
    assert drawn["other"]["numbers"] == drawn["alike"]["numbers"]
    rows = (tmp_path / "s/tables/tables.csv").read_text()
    assert ",alike," in rows and ",MAE," not in rows  # only what was asked for has a row


def test_the_plan_charges_it_once(tmp_path, harness):
    words = ["--methods", "mae,alike,other", "--budget", "10min", "--out", str(tmp_path)]
    _, printed, _ = harness("plan", *words)
    assert printed.count("shared with mae") == 2
    assert "still to charge: 10:00" in printed


def test_the_plan_knows_how_far_the_source_is_where_a_reader_failed(tmp_path, harness):
    (job,) = jobs(build({"methods": "alike", "budget": "10min"}))
    place = store.Study(tmp_path / "s")
    for key, state, share in ((job.key, "failed", 0.2), (job.source.key, "interrupted", 0.5)):
        store.write(place.run(key).record, made_run("mae", 0, key=key, state=state, spend=Spend(share=share)))
    words = ["--methods", "alike", "--budget", "10min", "--name", "s", "--out", str(tmp_path)]
    _, printed, _ = harness("plan", *words)
    assert "interrupted" in printed and "still to charge: 5:00" in printed


def test_settings_of_what_is_read_hold_for_its_readers():
    asked = {"methods": "mae,alike,other", "budget": "6step", "mae": {"mask_ratio": 0.5}, "other": {"mask_ratio": 0.6}}
    mae, alike, other = jobs(build(asked))
    assert [job.config.mask_ratio for job in (mae, alike, other)] == [0.5, 0.5, 0.6]
    assert alike.source.key == mae.key
    assert other.source.key != mae.key  # other settings are another pre-training


def test_a_reader_with_a_config_of_its_own_is_refused(tmp_path):
    path = tmp_path / "methods" / "other" / "method.py"
    path.write_text(path.read_text() + "import dataclasses\nOther = METHOD\nOther.Config = type('C', (), {})\n")
    with pytest.raises(HarnessError, match="has a Config of its own"):
        jobs(build({"methods": "other", "budget": "6step"}))


def reader(method: str, **verbs: object) -> Job:
    """The job of a reader of `method`'s weights that has `verbs` to itself; one that is no plugin."""
    (job,) = jobs(build({"methods": method, "budget": "6step"}))
    kind = type("Reader", (job.method_class,), {"pretrained_as": method, **verbs})
    return Job(**vars(job) | {"key": "reader", "method_class": kind, "source": job})


def test_a_reader_with_a_helper_of_its_own_is_evaluated_for_itself():
    assert reads_alike("knn", reader("mae")) and reads_alike("generation", reader("mae"))
    assert reads_alike("knn", reader("mae", fusion=None)) and not reads_alike("attentive", reader("mae", fusion=None))
    other = reader("umd", _middle=property(lambda self: 1))  # which `taps` and `features` call
    assert other.method_class.features is Umd.features
    assert not reads_alike("knn", other)


def test_class_conditional_generation_is_taken_over_where_both_are_trained_and_drawn_alike():
    assert reads_alike("conditional", reader("umd"))
    for verb in ("labelled", "sample", "augment", "optim"):
        assert not reads_alike("conditional", reader("umd", **{verb: lambda self, *_: None})), verb


def test_a_source_that_fails_is_tried_once_and_its_readers_stay_in_the_table_as_failed(tmp_path, monkeypatch, harness):
    def broken(*_):
        raise RuntimeError("no such luck")

    words = ["--methods", "mae,alike", "--evals", "knn", *BUDGET, "--name", "s", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Mae, "pretrain", broken)
        assert harness("run", *words)[0] == 1
    runs = records(tmp_path / "s", "run.json")
    assert {name: (run["state"], run["attempts"]) for name, run in runs.items()} == {
        "mae": ("failed", 1),
        "alike": ("failed", 1),
    }
    assert "no such luck" in runs["alike"]["message"]
    rows = (tmp_path / "s/tables/tables.csv").read_text().splitlines()
    assert [row for row in rows if "alike, seed 0" in row and "failed" in row]
    assert harness("run", *words)[0] == 0  # and a later command brings both to their end
    assert {run["state"] for run in records(tmp_path / "s", "run.json").values()} == {"finished"}


def test_a_reader_has_its_sources_snapshots_and_no_others(tmp_path):
    job, place = reader("mae"), store.Study(tmp_path)
    theirs, mine = (place.run(key).snapshots for key in (job.source.key, job.key))
    for name in ("0.0000-ab.safetensors", "1.0000-cd.safetensors"):
        write_atomic(theirs / name, name)
    write_atomic(mine / "1.0000-00.safetensors", "of an earlier source, before a kill")
    for _ in range(2):  # killed before its record was written, it does the same again
        adopt(job, place, made_run("mae", 0))
        assert {p.name: p.read_text() for p in mine.iterdir()} == {p.name: p.name for p in theirs.iterdir()}


def test_the_cost_of_features_is_that_of_the_reader(tmp_path):
    place, source = store.Study(tmp_path), made_run("mae", 0)
    assert adopt(reader("mae"), place, source).cost == COST
    last = reader("mae", taps=lambda self: Mae.taps(self)[-1:])
    method = last.build().eval()
    with torch.no_grad():
        flop, parameters = flops.feature_cost(method, method.taps()[0], Rng(0))
    cost = adopt(last, place, source).cost
    assert (cost.flop_features_img, cost.parameters_features) == (flop, parameters)
    assert cost.model_copy(update={"flop_features_img": 40.1e6, "parameters_features": 1_000_000}) == COST
    assert store.read_as(RunRecord, place.run("reader").record).cost == cost


def test_what_is_taken_over_replaces_pictures_but_no_look_at_the_test_split(tmp_path):
    job, source = reader("mae"), made_run("mae", 0)
    there, here = tmp_path / "there", tmp_path / "here"
    for folder, value, picture in ((there, 2.0, "new"), (here, 9.0, "old")):
        store.write(folder / "generation.json", made_eval(source, "generation", value))
        write_atomic(folder / "samples.png", picture)
    own = made_eval(source, "generation", 9.0)
    own = own.model_copy(update={"test_opened": [own.test_opened[0].model_copy(update={"by": "its own"})]})
    store.write(here / "generation.json", own)
    for _ in range(2):
        take_over(there / "generation.json", job, here)
        taken = store.read_as(EvalRecord, here / "generation.json")
        assert taken.numbers["value"].value == 2.0 and (here / "samples.png").read_text() == "new"
        assert [look.by for look in taken.test_opened] == ["its own", "generation"]
        assert not list(here.glob(".*"))
