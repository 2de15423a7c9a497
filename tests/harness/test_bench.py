"""The parts of `harness bench`, on tiny inputs and a stand-in checkout; nothing here asserts a time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from harness.bench import run_bench
from harness.bench.reference import SOURCES, Feed, require
from harness.bench.rounds import Parts, Spread, interleave, patched, ratios
from harness.errors import HarnessError

MODEL = """
    import numpy as np
    import torch
    from timm.models.vision_transformer import Block
    from torch._six import inf

    assert inf > 1e308 and np.float is float
    Block(8, 2, qkv_bias=True, qk_scale=None)

    class MaskedAutoencoderViT(torch.nn.Module):
        def __init__(self, img_size, **kwargs):
            super().__init__()
            self.line = torch.nn.Linear(img_size, 1)

        def forward(self, images, mask_ratio):
            return self.line(images).square().mean(), None, None
"""
ENGINE = """
    import torch

    def train_one_epoch(model, loader, optimizer, device, epoch, scaler, log_writer=None, args=None):
        print("noise that must not reach the answers")
        seen = 0
        for images, _ in loader:
            loss, _, _ = model(images, mask_ratio=args.mask_ratio)
            scaler(loss, optimizer)
            torch.cuda.synchronize()
            seen += 1
        assert seen == len(loader)
"""
SCALER = """
    class NativeScalerWithGradNormCount:
        def __call__(self, loss, optimizer):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Modules with the reference's names and signatures, needing the same old names, doing next to nothing."""
    root = tmp_path / "mae"
    (root / "util").mkdir(parents=True)
    for name in SOURCES["mae"].files:
        (root / name).write_text("")
    (root / "util" / "__init__.py").write_text("")
    (root / "models_mae.py").write_text(dedent(MODEL))
    (root / "engine_pretrain.py").write_text(dedent(ENGINE))
    (root / "util" / "misc.py").write_text(dedent(SCALER))
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    file = tmp_path / "images.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8))
    return file


def test_rounds_take_turns_and_ratios_are_taken_round_by_round():
    order = []
    sides = {name: (lambda name=name: order.append(name) or float(len(order))) for name in "ab"}
    found = interleave(sides, 3)
    assert order == list("ababab")
    assert found == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    assert ratios(found["b"], found["a"]) == Spread(4 / 3, 6 / 5, 2.0)
    assert Spread.of([2.0, 1.0, 4.0]).text(".1f") == "2.0 (1.0 to 4.0)"


def test_parts_book_calls_also_when_they_raise():
    parts = Parts()
    with pytest.raises(ZeroDivisionError):
        parts.wrap("forward", lambda: 1 / 0)()
    assert parts.wrap("data", lambda x: x + 1)(1) == 2
    assert sorted(parts.seconds) == ["data", "forward"]


def test_patched_puts_back_what_it_replaced():
    class Owner:
        value = 1

    with pytest.raises(KeyError), patched(Owner, "value", 2):
        assert Owner.value == 2
        raise KeyError
    assert Owner.value == 1


def test_train_without_a_reference_says_what_to_type():
    with pytest.raises(HarnessError, match="--reference mae"):
        run_bench("train")


def test_a_folder_that_is_no_checkout_is_named_with_what_it_lacks(tmp_path: Path):
    (tmp_path / "models_mae.py").write_text("")
    with pytest.raises(HarnessError, match=r"lacks engine_pretrain\.py"):
        require("mae", tmp_path)


def test_an_unknown_bench_gets_the_nearest_name():
    with pytest.raises(HarnessError, match="did you mean 'train'"):
        run_bench("trian")


def check_profile(answer: dict) -> None:
    assert set(answer["parts"]) == {"data", "forward", "backward", "optimizer"}
    assert 0 < sum(answer["parts"].values()) <= answer["wall_s"]
    assert answer["peak_bytes"] > 0


def test_our_side_books_the_parts_of_its_steps(images: Path):
    import torch

    from harness.bench.ours import Ours
    from harness.bench.side import serve

    loop = Ours("mae", np.load(images), "nano", "fp32", 4, torch.device("cpu"))
    check_profile(serve(loop, do="profile", warm=1, steps=2))
    assert loop.stage.step == 3
    assert loop.about()["precision"] == "fp32" and loop.about()["parameters"] > 0


def test_the_reference_runs_in_a_process_of_its_own_with_the_old_names_put_back(checkout: Path, images: Path):
    from harness.bench.side import Side, Spec

    with Side("reference", Spec("mae", "nano", str(images), batch_size=4, reference=str(checkout))) as reference:
        assert reference.about == {"parameters": 9, "precision": "fp32"}
        for workers in (0, 1):
            check_profile(reference.ask(do="profile", warm=1, steps=2, workers=workers))
    assert "torch._six" not in sys.modules


def test_a_side_that_dies_is_reported_with_its_last_words(tmp_path: Path):
    from harness.bench.side import Side, Spec

    with pytest.raises(HarnessError, match=r"No such file.*absent\.npy"):
        Side("harness", Spec("mae", "nano", str(tmp_path / "absent.npy"), batch_size=4))


def test_an_epoch_shorter_than_a_round_is_refused():
    with pytest.raises(HarnessError, match="at least 5"):
        Feed([None] * 4, warm=2, steps=3, parts=Parts())


def test_feed_counts_parts_only_after_the_warm_steps():
    parts = Parts()
    feed = Feed(range(10), warm=2, steps=3, parts=parts)
    parts.seconds["forward"] = 100.0  # of a warm step
    assert list(feed) == [0, 1, 2, 3, 4]
    assert "forward" not in parts.seconds
    assert parts.seconds["data"] <= feed.seconds


def test_evals_bench_compares_both_pairs_on_digits(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    from harness.bench import evals

    monkeypatch.delenv("HARNESS_DATA", raising=False)
    monkeypatch.setattr(evals, "SUBSET", {"fit": 100, "select": 40, "test": 60})
    monkeypatch.setattr(evals, "found_data", lambda data_dir: _digits())
    evals.bench(tmp_path, steps=1, epochs=1, rounds=1)
    said = capsys.readouterr().out
    assert "100 fit, 40 select, 60 test" in said
    for row in (evals.CACHED, evals.ONLINE, evals.ONCE, evals.EACH):
        assert row in said


def test_grid_bench_compares_the_grid_with_passes_and_with_runs_of_cells(monkeypatch: pytest.MonkeyPatch, capsys):
    from harness.bench import evals, grid

    few = grid.Sizes({"fit": 60, "select": 20, "test": 20}, 30)
    monkeypatch.setattr(grid, "BESIDE_PASSES", few)
    monkeypatch.setattr(grid, "BESIDE_CELLS", few)
    monkeypatch.setattr(evals, "found_data", lambda data_dir: _digits())
    grid.bench(None, rounds=1, memory=False)
    said = capsys.readouterr().out
    assert said.count("30 of fit, 20 of select") == 4 and "blocks x 3 levels" in said
    for row in (grid.PASSES, grid.GRID, grid.CELLS):
        assert row in said


def _digits():
    from harness.data.dataset import load

    return load("digits")


def test_startup_bench_prints_a_row_for_each_command(capsys, monkeypatch: pytest.MonkeyPatch):
    from harness.bench import startup

    monkeypatch.setattr(startup, "COMMANDS", {startup.HELP: ["-c", "pass"], "other": ["-c", "pass"]})
    monkeypatch.setattr(startup, "PLAN", ["-c", "import os; print(os.listdir(os.environ['HARNESS_CACHE']))"])
    startup.bench(rounds=1)
    said = capsys.readouterr().out
    assert startup.HELP in said and "other" in said
    assert "for the first time" in said and "again" in said


def test_a_command_that_fails_is_not_timed():
    from harness.bench import startup

    with pytest.raises(subprocess.CalledProcessError):
        startup._run(["-c", "raise SystemExit(3)"])


def test_page_bench_has_a_row_for_each_study_and_what_is_promised(chromium: str, capsys):
    from harness.bench import page

    page.bench(runs=14, rounds=1, few=7)
    said = capsys.readouterr().out
    assert "made-up studies of 7 and 14 runs" in said and "1 interleaved rounds" in said
    assert " cores, " in said and "Chrom" in said
    for words in ("MB", "written, s", "loaded, s", "loaded, CPU s", "times 7 runs", "filtered, s"):
        assert words in said
    assert re.findall(r"^\d+ runs(?= )", said, re.MULTILINE) == ["7 runs", "14 runs"]
    assert "Promised: under 2 s to load 1,000 runs." in said
    assert re.search(r"Measured: \d+\.\d\d s to load 14 runs, \d+\.\d\d s of CPU\.", said)


def test_page_bench_without_a_browser_says_what_to_type(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HarnessError, match="no Chromium on the PATH") as absent:
        run_bench("page")
    assert absent.value.expected == "one of chromium, chromium-browser, google-chrome"
    assert absent.value.next_step.startswith("apt-get install chromium")
    assert capsys.readouterr().out == ""  # and no study was made for nothing


def test_page_bench_wants_more_runs_than_those_of_the_small_study(monkeypatch: pytest.MonkeyPatch):
    from harness.bench import page

    monkeypatch.setattr(page, "chromium", lambda: "chromium")
    with pytest.raises(HarnessError, match=r"(?s)a study of 10 runs.*more than the 10.*--runs 1000"):
        run_bench("page", runs=10)


@pytest.fixture
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.bench import many_records

    monkeypatch.setattr(many_records, "DATASETS", ("cifar10",))
    monkeypatch.setattr(many_records, "SIZES", ("nano",))


def test_tables_bench_has_a_row_for_each_part_and_each_command(few_records, capsys, monkeypatch: pytest.MonkeyPatch):
    from harness.bench import tables

    started = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: started.append(words[-1]))
    tables.bench(records=1, rounds=2)
    said = capsys.readouterr().out
    assert "383 records" in said and "median of 2 rounds" in said
    assert started == ["md", "csv", "tex", "html"] * 2
    for row in ("records, read and checked", "records to tables", "tables to html", "--format html"):
        assert row in said


def test_the_made_up_study_has_every_method_and_hits_that_are_its_accuracies(few_records, tmp_path: Path):
    from harness.bench import many_records as many
    from harness.hits import share
    from harness.plugins import method_plugins

    study, count = many.write_study(tmp_path, 1)
    runs, evals = study.records()
    assert count == len(runs) + len(evals) == 7 * 3 * many.RECORDS_OF_A_RUN + len(many.FULL)
    assert {run.cell.method for run in runs} == {
        n for n, p in method_plugins().items() if p.module.startswith("methods.")
    }
    numbers = [n for e in evals if e.eval in ("linear", "knn") for n in e.numbers.values()]
    few, _ = many.write_runs(tmp_path / "few", 10)
    asked, _ = few.asked_for()
    assert len(asked) == 10 and {run.cell.method for run in asked} == set(many.METHODS)
    assert numbers and all(100 * share(n.hits or "", n.n).mean() == pytest.approx(n.value) for n in numbers)
