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
