"""Evaluating finished runs again: what is done stays, `--force` keeps the old record, single runs can be named."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.store import Study
from harness.study import build

TINY = ["--methods", "mae", "--budget", "6step", "--evals", "knn", "train.batch_size=16", "train.snapshots=[]"]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A finished tiny study, which tests copy."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["harness", "run", *TINY, "--name", "tiny", "--out", str(out)])
        with pytest.raises(SystemExit, match="0"):
            main()
    return out / "tiny"


def test_force_does_an_eval_again_and_keeps_the_old_record(tmp_path, study, harness):
    shutil.copytree(study, tmp_path / "tiny")
    (final,) = (tmp_path / "tiny").glob("runs/*/evals/1.0000/knn.json")
    before = final.read_bytes()
    assert harness("eval", tmp_path / "tiny", "--evals", "knn")[0] == 0
    assert final.read_bytes() == before and not (final.parent / "earlier").exists()
    assert harness("eval", tmp_path / "tiny", "--evals", "knn", "--force")[0] == 0
    assert (final.parent / "earlier/knn-1/knn.json").read_bytes() == before
    record, old = json.loads(final.read_text()), json.loads(before)
    assert record["numbers"] == old["numbers"] and record["chosen"] == old["chosen"]
    assert record["test_opened"][:1] == old["test_opened"] and len(record["test_opened"]) == 2
    assert not list((tmp_path / "tiny/cache/features").glob("*"))  # features are kept until an evaluation is done
    assert len(list(Study(tmp_path / "tiny").evals())) == len(list(Study(study).evals()))  # tables see no old record


def test_an_eval_with_nothing_to_say_is_not_asked_again(tmp_path, study, harness, monkeypatch):
    from harness import evaluate_run

    shutil.copytree(study, tmp_path / "tiny")
    (record,) = (tmp_path / "tiny").glob("references/digits/raw-pixels-nano/knn.json")
    record.unlink()
    asked = []
    monkeypatch.setattr(evaluate_run, "evaluate", lambda name, *_, **__: asked.append(name))
    for _ in range(2):
        assert harness("eval", tmp_path / "tiny", "--evals", "knn")[0] == 0
    assert asked == ["knn"] and not record.exists()
    assert (
        harness("eval", tmp_path / "tiny", "--evals", "knn", "knn.k=3")[0] == 0
    )  # other settings are another question
    assert len(asked) > 1


def test_single_runs_can_be_evaluated(tmp_path, study, harness):
    shutil.copytree(study, tmp_path / "tiny")
    harness("run", *TINY, "--seeds", "2", "--name", "tiny", "--out", tmp_path)
    first, second = sorted((tmp_path / "tiny/runs").iterdir())
    status, _, err = harness("eval", second, "--evals", "linear", "linear.c_count=2", "linear.widen=0")
    assert status == 0, err
    assert (second / "evals/1.0000/linear.json").exists() and not (first / "evals/1.0000/linear.json").exists()
    status, _, err = harness("eval", first, tmp_path / "nowhere", "--evals", "linear")
    assert status == 2 and "nowhere" in err


def test_fid_is_another_name_of_the_eval_generation():
    assert build({"methods": "mae", "budget": "1s", "evals": "knn,fid"}).evals == ("knn", "generation")


def test_looks_of_a_failed_eval_stay_on_record(tmp_path, study, harness, monkeypatch):
    from evals import knn

    shutil.copytree(study, tmp_path / "tiny")
    (final,) = (tmp_path / "tiny").glob("runs/*/evals/1.0000/knn.json")
    whole = knn.evaluate

    def fails(context, config):
        found = whole(context, config)
        if not context.cheap:
            raise RuntimeError("late")
        return found

    monkeypatch.setattr(knn, "evaluate", fails)
    status, out, _ = harness("eval", tmp_path / "tiny", "--evals", "knn", "knn.k=5")
    assert status == 1 and "RuntimeError: late" in out
    assert len((final.parent / "looks.jsonl").read_text().splitlines()) == 1
    assert len(json.loads(final.read_text())["test_opened"]) == 1  # the old record is as it was
    monkeypatch.setattr(knn, "evaluate", whole)
    assert harness("eval", tmp_path / "tiny", "--evals", "knn", "knn.k=5")[0] == 0
    assert len(json.loads(final.read_text())["test_opened"]) == 3 and not (final.parent / "looks.jsonl").exists()


def test_a_record_that_another_process_made_meanwhile_is_kept_with_its_looks(tmp_path, study, harness, monkeypatch):
    from evals import knn

    shutil.copytree(study, tmp_path / "tiny")
    (final,) = (tmp_path / "tiny").glob("runs/*/evals/1.0000/knn.json")
    theirs, whole = json.loads(final.read_text()), knn.evaluate
    theirs["test_opened"][0]["at"] = "2026-01-01T00:00:00+00:00"
    final.unlink()

    def overtaken(context, config):
        found = whole(context, config)
        if not context.cheap:
            final.write_text(json.dumps(theirs))
        return found

    monkeypatch.setattr(knn, "evaluate", overtaken)
    assert harness("eval", tmp_path / "tiny", "--evals", "knn")[0] == 0
    assert json.loads((final.parent / "earlier/knn-1/knn.json").read_text()) == theirs
    opened = json.loads(final.read_text())["test_opened"]
    assert opened[:1] == theirs["test_opened"] and len(opened) == 2


def test_the_look_of_a_process_beside_this_one_that_died_is_in_the_next_record(tmp_path, study, harness, monkeypatch):
    from evals import knn

    shutil.copytree(study, tmp_path / "tiny")
    (final,) = (tmp_path / "tiny").glob("runs/*/evals/1.0000/knn.json")
    theirs, whole = json.loads(final.read_text())["test_opened"][0] | {"at": "2026-01-01T00:00:00+00:00"}, knn.evaluate
    final.unlink()

    def beside(context, config):
        found = whole(context, config)
        if not context.cheap:
            with (final.parent / "looks.jsonl").open("a") as file:
                file.write(json.dumps(theirs) + "\n")
        return found

    monkeypatch.setattr(knn, "evaluate", beside)
    assert harness("eval", tmp_path / "tiny", "--evals", "knn")[0] == 0
    (left,) = (final.parent / "looks.jsonl").read_text().splitlines()
    assert json.loads(left) == theirs and theirs not in json.loads(final.read_text())["test_opened"]
    monkeypatch.setattr(knn, "evaluate", whole)
    assert harness("eval", tmp_path / "tiny", "--evals", "knn", "knn.k=5")[0] == 0
    opened = json.loads(final.read_text())["test_opened"]
    assert theirs in opened and len(opened) == 3 and not (final.parent / "looks.jsonl").exists()


def test_features_of_an_older_code_are_not_read_again(tmp_path, study, harness, monkeypatch):
    from evals import knn
    from harness import machine

    shutil.copytree(study, tmp_path / "tiny")
    monkeypatch.setattr(knn, "evaluate", lambda context, config: context.choose_tap() and 1 / 0)
    harness("eval", tmp_path / "tiny", "--evals", "knn", "knn.k=5")
    kept = {path.parent.name: path for path in (tmp_path / "tiny/cache/features").glob("*/*")}
    assert kept, "what a repeated command goes on from"
    monkeypatch.setattr(machine, "code", lambda of: "another")
    harness("eval", tmp_path / "tiny", "--evals", "knn", "knn.k=5")
    now = {path.parent.name: path for path in (tmp_path / "tiny/cache/features").glob("*/*")}
    assert kept.keys() == now.keys() and not {p.name for p in kept.values()} & {p.name for p in now.values()}


def test_an_error_inside_an_eval_says_all_it_has_to_say(tmp_path, study, harness, monkeypatch):
    from evals import knn
    from harness.errors import HarnessError

    def fails(context, config):
        raise HarnessError("too few", "at least 3", "knn.k=3")

    shutil.copytree(study, tmp_path / "tiny")
    monkeypatch.setattr(knn, "evaluate", fails)
    _, out, _ = harness("eval", tmp_path / "tiny", "--evals", "knn", "knn.k=5")
    assert "too few" in out and "expected: at least 3" in out and "next: knn.k=3" in out and "error.txt" in out


def test_weights_that_are_not_here_are_told_before_any_work(tmp_path, harness):
    for setting in ("generation.inception=/nowhere", "generation.extractors=inception", "generation.extractors=foo"):
        status, _, err = harness("run", *TINY, "--evals", "fid", setting, "--name", "t", "--out", tmp_path / "runs")
        assert status == 2 and "next:" in err
    assert not (tmp_path / "runs").exists()
