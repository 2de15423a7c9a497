"""A study: what is asked for in words, options or a file becomes cells, and mistakes are answered at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import methods
from harness.config import parse_words
from harness.errors import HarnessError
from harness.study import EVALS, Study, build, merge, read_file
from harness.train.settings import TrainConfig


@pytest.fixture(autouse=True)
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three methods by name alone: a study reads no code."""
    for name in ("umd", "lmd", "mae"):
        (tmp_path / "methods" / name).mkdir(parents=True)
        (tmp_path / "methods" / name / "method.py").write_text("raise SystemExit('a study imports no method')")
    monkeypatch.setattr(methods, "__path__", [str(tmp_path / "methods")])


ASKED = {"methods": "umd,lmd,mae", "budget": "1min"}


def test_options_alone_make_a_study_with_the_defaults() -> None:
    study = build(ASKED | {"size": None})
    assert study == Study(("umd", "lmd", "mae"), ("1min",))
    assert (study.dataset, study.size, study.seeds, study.evals) == (("digits",), ("nano",), 1, EVALS)


def test_a_file_is_read_and_words_lie_over_it(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        'methods = ["umd", "mae"]\nbudget = ["1min", "300step"]\nseeds = 2\n'
        "[train]\nbatch_size = 64\nema = false\n[umd]\nmask_ratio = 0.6\nwidth = 32\n"
    )
    words = parse_words(["train.batch_size=512", "umd.mask_ratio=0.7", "seeds=3", "methods=mae,umd,mae"])
    study = build(merge(read_file(path), words))
    assert study.methods == ("mae", "umd")
    assert study.budget == ("1min", "300step")
    assert study.seeds == 3
    assert study.train == TrainConfig(batch_size=512, ema=False)
    assert study.overrides == {"umd": {"mask_ratio": 0.7, "width": 32}}


def test_merging_leaves_what_it_merges_as_it_was() -> None:
    base = {"umd": {"a": 1}, "x": 1}
    assert merge(base, {"umd": {"b": 2}, "x": {"y": 3}}) == {"umd": {"a": 1, "b": 2}, "x": {"y": 3}}
    assert base == {"umd": {"a": 1}, "x": 1}


def test_cells_come_with_methods_innermost_so_that_comparisons_are_whole_early() -> None:
    study = build({"methods": "umd,mae", "budget": "1min,2 mins", "dataset": "digits,cifar10", "seeds": 2})
    cells = [(c.dataset, c.budget, c.seed, c.method) for c in study.cells()]
    assert len(cells) == len(set(cells)) == 16
    assert cells[:5] == [
        ("digits", "1min", 0, "umd"),
        ("digits", "1min", 0, "mae"),
        ("digits", "1min", 1, "umd"),
        ("digits", "1min", 1, "mae"),
        ("digits", "2min", 0, "umd"),
    ]


def test_a_study_is_asked_for_again_from_its_record() -> None:
    study = build(
        ASKED
        | {"seeds": 3, "name": "mine", "size": "nano,ti", "evals": "knn"}
        | parse_words(["train.snapshots=[0.1, 0.3]", "train.precision=fp32", "umd.crop=[0.2, 1.0]", "knn.k=5"])
    )
    assert build(study.asked()) == study
    assert build(json.loads(json.dumps(study.asked()))) == study


@pytest.mark.parametrize(
    ("asked", "folder"),
    [
        ({}, "digits-nano-1min"),
        ({"seeds": 5, "methods": "mae"}, "digits-nano-1min"),
        ({"budget": "1 mins"}, "digits-nano-1min"),
        ({"budget": "1e15 flops"}, "digits-nano-1e15flop"),
        ({"dataset": "folder:/data/my pictures", "size": "s,b"}, "folder--data-my-pictures-s-b-1min"),
        ({"name": "first try"}, "first try"),
    ],
)
def test_a_study_is_kept_under_what_its_cells_share(asked: dict, folder: str) -> None:
    assert build(ASKED | asked).folder_name() == folder


def test_one_budget_in_two_spellings_is_one_cell() -> None:
    assert len(list(build({"methods": "umd", "budget": "1min,1 min,1.0mins"}).cells())) == 1


FAULTS = {
    "method": (["methods=umd,maee"], "unknown method 'maee'", "'mae'"),
    "eval": (["evals=linaer"], "unknown eval 'linaer'", "'linear'"),
    "data set": (["dataset=cifar-10"], "unknown data set 'cifar-10'", "'cifar10'"),
    "size": (["size=nanno"], "unknown size 'nanno'", "'nano'"),
    "unit": (["budget=5mins,3epohc"], "unknown unit 'epohc'", "'epoch'"),
    "key": (["sedes=3"], "unknown setting 'sedes'", "'seeds'"),
    "section": (["unmd.mask_ratio=0.5"], "unknown setting 'unmd'", "'umd'"),
    "train key": (["train.batchsize=3"], "unknown setting 'train.batchsize'", "'train.batch_size'"),
    "train value": (["train.batch_size=big"], "train.batch_size='big' does not fit", "type int"),
    "train range": (["train.batch_size=-1"], "at least 1", ""),
    "snapshot": (["train.snapshots=[0.5, 1.0]"], "strictly between 0 and 1", ""),
    "checkpoint": (["train.checkpoint_s=NaN"], "above 0", ""),
    "train whole": (["train=3"], "train=3 is no section", "train.KEY=VALUE"),
    "section whole": (["umd=3"], "umd=3 is no section", "umd.KEY=VALUE"),
    "seeds": (["seeds=0"], "seeds=0", "at least 1 seed"),
    "seeds type": (["seeds=many"], "seeds='many' does not fit", "type int"),
    "budget type": (["budget=300"], "budget=300", "names separated by commas"),
    "no methods": (["methods="], "no methods asked for", ""),
    "no budget": (["budget="], "no budget asked for", "an amount and a unit"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_fails_with_the_nearest_known_name(fault: str) -> None:
    words, found, expected = FAULTS[fault]
    with pytest.raises(HarnessError) as caught:
        build(ASKED | parse_words(words))
    assert found in caught.value.found
    assert expected in caught.value.expected


def test_mistakes_are_answered_without_waiting_for_torch() -> None:
    """In a process of its own: this one has torch already."""
    code = """
import json, sys
from harness.config import parse_words
from harness.errors import HarnessError
from harness.study import build
said = []
for words in json.loads(sys.argv[1]):
    try:
        build({"methods": "umd", "budget": "1min"} | parse_words(words))
    except HarnessError as error:
        said.append(error.found)
heavy = [name for name in ("torch", "numpy", "timm", "sklearn") if name in sys.modules]
print(json.dumps([len(said), heavy]))
"""
    words = [words for words, _, _ in FAULTS.values()]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(words)], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [len(words), []]


@pytest.mark.parametrize(("content", "words"), [(None, "no study file"), ("methods = umd", "is no TOML")])
def test_a_study_file_that_is_missing_or_no_toml_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "s.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(HarnessError, match=words) as caught:
        read_file(path)
    assert str(path) in caught.value.found
