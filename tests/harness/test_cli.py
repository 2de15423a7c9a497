"""The commands as a user types them: what they print, what they refuse, what they leave behind."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from harness.__main__ import main

TINY = ["--methods", "mae", "--budget", "6step", "--evals", "knn", "train.batch_size=16", "train.snapshots=[0.5]"]


@pytest.mark.parametrize(
    ("words", "complaint", "help_"),
    [
        (["--methods", "umb", "--budget", "1min"], "unknown method 'umb'", "did you mean 'umd'?"),
        (["--methods", "umd", "--budget", "1mim"], "unknown unit 'mim'", "did you mean 'min'?"),
        (["--methods", "umd", "--budget", "100gpuh"], "unknown unit 'gpuh'", "did you mean 'gpu-h'?"),
        (["--methods", "umd", "--budget", "0min"], "buys nothing", "an amount above 0"),
        (["--methods", "umd", "--budget=-3h"], "buys nothing", "an amount above 0"),
        (["--methods", "umd", "--budget", "1e9h"], "longer than ten years", "a machine can finish"),
        (["--methods", "umd", "--budget", "ten"], "cannot read the budget 'ten'", "an amount and a unit"),
        (["--methods", "umd"], "no budget asked for", "--budget 1min"),
        (["--budget", "1min"], "no methods asked for", "--methods umd,lmd,mae"),
        (["--methods", "umd", "--budget", "1s", "--dataset", "cifer10"], "unknown data set 'cifer10'", "'cifar10'?"),
        (["--methods", "umd", "--budget", "1s", "--evals", "liner"], "unknown eval 'liner'", "did you mean 'linear'?"),
        (["--methods", "umd", "--budget", "1s", "--size", "nanno"], "unknown size 'nanno'", "did you mean 'nano'?"),
        (["--methods", "umd", "--budget", "1s", "umd.mask_ratoi=.5"], "'umd.mask_ratoi'", "umd.mask_ratio"),
        (["--methods", "umd", "--budget", "1s", "train.batchsize=5"], "'train.batchsize'", "train.batch_size"),
        (["--methods", "umd", "--budget", "1s", "train.batch_size=few"], "does not fit", "a value of type int"),
        (["--methods", "umd", "--budget", "1s", "mea.mask_ratio=1"], "unknown setting 'mea'", "did you mean 'mae'?"),
        (["--methods", "umd", "--budget", "1s", "mae.mask_ratoi=.5"], "'mae.mask_ratoi'", "mae.mask_ratio"),
        (["--methods", "umd", "--budget", "1s", "whatever"], "cannot read 'whatever'", "SECTION.KEY=VALUE"),
        (["nowhere.toml"], "no study file at nowhere.toml", "a TOML file"),
        (["a.toml", "b.toml"], "2 study files", "one"),
        (["--methods", "umd", "--budget", "1e30step"], "beyond any machine", "a machine can finish"),
        (["--methods", "umd", "--budget", "0.4img"], "is no whole number", "a whole number of imgs"),
    ],
)
def test_bad_input_is_refused_before_any_work(harness, tmp_path, words, complaint, help_):
    status, _, err = harness("run", *words, "--out", str(tmp_path / "runs"))
    assert status == 2
    assert complaint in err and help_ in err
    assert not (tmp_path / "runs").exists()


def test_gpu_hours_without_a_gpu_are_refused_with_the_alternative(harness, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    status, _, err = harness("run", "--methods", "umd", "--budget", "100gpu-h", "--out", str(tmp_path / "runs"))
    assert status == 2
    assert "this machine has no GPU" in err and "--budget 100h" in err


def test_missing_data_names_where_it_looked_and_how_to_fetch(harness, tmp_path):
    status, _, err = harness(
        "run", "--methods", "mae", "--budget", "1s", "--dataset", "stl10", "--data-dir", str(tmp_path), "--out", "x"
    )
    assert status == 2
    assert "stl10" in err and str(tmp_path) in err and "harness data fetch stl10" in err


@pytest.mark.parametrize(
    "command",
    ["list", "plan", "run", "status", "rehearse", "eval", "export", "table", "data", "bench", "check", "new"],
)
def test_every_command_explains_itself_with_an_example(harness, command):
    status, out, _ = harness(command, "--help")
    assert status == 0
    assert "Example: python -m harness" in out


def test_help_lists_the_commands_in_the_order_of_their_use(harness):
    order = [
        *("run", "plan", "status", "resume", "cancel", "logs", "table", "compare", "diff", "eval", "export", "list"),
        *("data", "rehearse", "check", "new", "bench"),
    ]
    words = [line.split()[0] for line in harness("--help")[1].split("Commands:")[1].splitlines() if line.strip()]
    assert [word for word in words if word in order] == order


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A finished tiny study, shared by the tests that only read it."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["harness", "run", *TINY, "--name", "tiny", "--out", str(out)])
        with pytest.raises(SystemExit, match="0"):
            main()
    return out / "tiny"


def test_run_leaves_records_pictures_and_tables(study):
    (run,) = study.glob("runs/*/run.json")
    record = json.loads(run.read_text())
    assert record["state"] == "finished" and record["spend"]["step"] == 6 and record["spend"]["share"] == 1.0
    assert record["cost"]["flop_train_img"] > 0 and record["cost"]["parameters"] > 0
    assert {p.parent.name for p in study.glob("runs/*/evals/*/knn.json")} == {
        "0.0000", "1.0000", "0.0000-quick", "0.5000-quick", "1.0000-quick",
    }  # fmt: skip
    assert (study / "references/digits/raw-pixels-nano/knn.json").is_file()
    assert {p.suffix for p in (study / "tables").iterdir()} >= {".md", ".csv", ".tex", ".html"}


def test_test_split_is_opened_by_evals_only_and_said_so(study):
    (final,) = study.glob("runs/*/evals/1.0000/knn.json")
    opened = json.loads(final.read_text())["test_opened"]
    assert len(opened) == 1 and opened[0]["by"].startswith("knn of mae")


def test_repeating_the_command_redoes_nothing(study, harness):
    before = {p: p.stat().st_mtime_ns for p in study.glob("r*/**/*.json")}
    status, out, _ = harness("run", *TINY, "--name", "tiny", "--out", str(study.parent))
    assert status == 0 and "kNN" in out
    assert {p: p.stat().st_mtime_ns for p in study.glob("r*/**/*.json")} == before


def test_more_methods_or_seeds_join_what_is_there(study, harness):
    words = ["plan", *TINY, "--seeds", "2", "--name", "tiny", "--out", str(study.parent)]
    status, out, _ = harness(*words)
    assert status == 0
    assert out.count("finished") == 1 and out.count("missing") == 1


@pytest.mark.parametrize("form", ["md", "csv", "tex", "html"])
def test_tables_repeat_byte_for_byte(study, harness, form):
    one, two = harness("table", str(study), "--format", form), harness("table", str(study), "--format", form)
    assert one == two and "mae" in one[1]


def test_eval_names_the_runs_it_no_longer_recognises(study, harness, tmp_path):
    copied = shutil.copytree(study, tmp_path / "tiny")
    (record,) = copied.glob("runs/*/run.json")
    other = record.parent.with_name("mae-of-older-code")
    shutil.copytree(record.parent, other)
    asked = json.loads((copied / "study.json").read_text())
    (copied / "study.json").write_text(json.dumps(asked | {"keys": [*asked["keys"], other.name]}))
    for place in other.rglob("*.json"):
        place.write_text(place.read_text().replace(record.parent.name, other.name))
    status, out, _ = harness("eval", str(copied))
    assert status == 1
    assert "failed    mae-of-older-code: not evaluated" in out


def test_status_and_eval(study, harness):
    status, out, _ = harness("status", str(study))
    assert status == 0 and "finished" in out
    status, out, _ = harness("eval", str(study), "--evals", "knn", "knn.k=5")
    assert status == 0
    (final,) = study.glob("runs/*/evals/1.0000/knn.json")
    assert json.loads(final.read_text())["config"]["k"] == 5
    harness("eval", str(study), "--evals", "knn")


def test_a_record_edited_by_hand_is_named(study, harness):
    (run,) = study.glob("runs/*/run.json")
    whole = run.read_text()
    try:
        run.write_text(whole.replace('"finished"', '"splendid"'))
        status, _, err = harness("table", str(study))
    finally:
        run.write_text(whole)
    assert status == 2
    assert str(run) in err and "state" in err and "not to be edited by hand" in err


def test_a_method_that_raises_on_import_is_named_and_the_others_are_listed(tmp_path, monkeypatch, harness):
    import methods

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/method.py").write_text("raise RuntimeError('half written')\n")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    status, out, _ = harness("list", "methods")
    assert status == 0 and "mae" in out and "skipped broken" in out
    status, _, err = harness("run", "--methods", "broken", "--budget", "1s", "--out", str(tmp_path / "runs"))
    assert status == 2
    assert "'broken' cannot be imported: RuntimeError: half written" in err


def test_an_eval_that_fails_is_told_and_the_command_says_so(tmp_path, harness, monkeypatch):
    from methods.mae.method import Mae

    def broken(*_, **__):
        raise RuntimeError("no features today")

    with monkeypatch.context() as patch:
        patch.setattr(Mae, "features", broken)
        status, out, _ = harness("run", *TINY, "--name", "eval", "--out", str(tmp_path))
        assert status == 1 and "no features today" in out
    status, out, _ = harness("run", *TINY, "--name", "eval", "--out", str(tmp_path))
    assert status == 0 and "kNN" in out
    assert not list(tmp_path.glob("eval/runs/*/error.txt"))


def test_an_eval_that_fails_does_not_stop_the_others(tmp_path, harness, monkeypatch):
    from evals import knn

    def broken(*_):
        raise RuntimeError("no neighbours")

    monkeypatch.setattr(knn, "evaluate", broken)
    words = [*TINY, "--evals", "knn,linear", "--name", "eval", "--out", str(tmp_path)]
    status, out, _ = harness("run", *words)
    assert status == 1
    said = r"seed 0 at 1 and \d more of its snapshots: knn at 1 of the budget: RuntimeError: no neighbours \(and 1 "
    assert len(re.findall(rf"failed    evaluate mae digits nano 6step {said}more\)", out)) == 1
    assert "failed    references of digits: knn of raw pixels, nano: RuntimeError: no neighbours\n" in out
    assert {p.parent.name for p in tmp_path.glob("eval/runs/*/evals/*/linear.json")} >= {"0.0000", "1.0000"}
    assert list(tmp_path.glob("eval/references/*/*/linear.json"))
    status, out, _ = harness("logs", tmp_path / "eval", "mae")
    assert out.count("RuntimeError: no neighbours") >= 5 and "in broken" in out


def test_methods_of_an_earlier_command_stay_in_the_tables(study, harness):
    from harness.report.tables import of_study
    from harness.store import Study

    words = [w.replace("mae", "umd") for w in TINY]
    status, _, _ = harness("run", *words, "--name", "tiny", "--out", str(study.parent))
    assert status == 0
    labels = {row.cells[0].text for table in of_study(Study(study)) for s in table.sections for row in s.rows}
    assert {"mae", "umd"} <= labels


def test_a_folder_that_is_no_study(tmp_path, harness):
    status, _, err = harness("status", str(tmp_path))
    assert status == 2 and "no study in" in err


def test_a_cell_that_fails_stays_in_the_table_and_the_others_go_on(tmp_path, harness, monkeypatch):
    from methods.umd.method import Umd

    def broken(*_):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Umd, "pretrain", broken)
    words = [w.replace("mae", "umd,mae") for w in TINY]
    status, out, _ = harness("run", *words, "--name", "both", "--out", str(tmp_path))
    states = {
        json.loads(p.read_text())["cell"]["method"]: json.loads(p.read_text())
        for p in tmp_path.glob("*/runs/*/run.json")
    }
    assert states["mae"]["state"] == "finished"
    assert states["umd"]["state"] == "failed" and "no such luck" in states["umd"]["message"]
    assert status == 1 and "no such luck" in out


def test_a_run_that_diverges_stays_in_the_table_and_the_command_says_so(tmp_path, harness):
    status, out, _ = harness("run", *TINY, "mae.base_lr=1e30", "--name", "up", "--out", str(tmp_path))
    (run,) = tmp_path.glob("up/runs/*/run.json")
    assert json.loads(run.read_text())["state"] == "diverged"
    assert status == 1 and "failed    mae digits nano 6step seed 0: diverged" in out
    assert "diverged" in (tmp_path / "up/tables/tables.md").read_text()


def test_without_its_environment_it_says_how_to_switch_it_on(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "harness.cli")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "next: source .venv/bin/activate" in capsys.readouterr().err


def test_another_missing_module_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(sys.modules, "harness.cli", None)
    with pytest.raises(ModuleNotFoundError, match=r"harness\.cli"):
        main()
