"""The protocol: what is extracted, what is chosen, what of the test split is seen and recorded."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from evals import knn, linear
from harness.errors import HarnessError
from harness.evaluation import Outcome, Subject, can, evaluate
from harness.evaluation import context as context_module
from harness.evaluation import record as record_module
from harness.evaluation.choose import best, ridge_top1, standardiser
from harness.evaluation.features import CHUNK
from harness.method import Method, Tap
from harness.records import Cell, Number
from tests.evals.kit import CLASSES, Toy, context, toy_data

CELL = Cell(method="toy", dataset="toy", size="nano", budget="1min", seed=4)
SUBJECT = Subject(CELL, "abc", share=1.0, weights="ema")


def run(name: str, where, config):
    return evaluate(name, where, config, subject=SUBJECT)


def use(monkeypatch, found, needs: str = "features") -> None:
    """Let every eval be one that calls `found(context, config)`."""
    plugin = SimpleNamespace(NEEDS=needs, PROTOCOL=7, evaluate=found)
    monkeypatch.setattr(record_module, "load_eval", lambda name: plugin)


def number(value: float = 1.0) -> Number:
    return Number(value=value, title="toy", table="representation", better="higher", n=1)


def test_features_are_extracted_once_for_all_evals(tmp_path):
    method = Toy()
    where = context(tmp_path, method)
    run("linear", where, linear.Config())
    after_linear = len(method.passes)
    run("knn", where, knn.Config())
    chunks = {part: -(-where.part(part).n // CHUNK) for part in ("fit", "select", "test")}
    # Two noise levels among the candidates on fit and select, one chosen tap on test.
    assert after_linear == 2 * (chunks["fit"] + chunks["select"]) + chunks["test"]
    assert len(method.passes) == after_linear


def test_features_do_not_depend_on_who_asked_first(tmp_path):
    clean, noisy = Tap("rich"), Tap("rich", 5)
    one, two = context(tmp_path / "a"), context(tmp_path / "b")
    first = one.features([noisy], "fit", 100)[noisy]
    both = two.features([clean, noisy], "fit")
    assert torch.equal(first, both[noisy][:100])
    assert torch.equal(one.features([noisy, clean], "fit")[noisy], both[noisy])
    assert not torch.equal(both[noisy], both[clean])


def test_parts_come_in_a_fixed_random_order_and_labels_follow(tmp_path):
    data = toy_data()
    part = context(tmp_path, data=data).part("fit")
    again = context(tmp_path, data=data).part("fit")
    assert torch.equal(part.labels, again.labels)
    assert not torch.equal(part.labels, data.fit.labels)
    pixels = part.pixels(0, part.n).flatten(1).float()
    found = torch.cdist(pixels, data.fit.images.flatten(1).float()).argmin(dim=1)
    assert torch.equal(data.fit.labels[found], part.labels)
    assert found.unique().numel() == part.n


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_an_error(tmp_path, bad):
    class Broken(Toy):
        def features(self, images, taps, rng, dense=False):
            found = super().features(images, taps, rng)
            found[0][3, 1] = bad
            return found

    with pytest.raises(HarnessError, match=r"features of Broken at tap poor are not finite for 1 of 256"):
        context(tmp_path, Broken()).features([Tap("poor")], "fit")


def test_features_of_a_wrong_shape_are_an_error(tmp_path):
    class Dense(Toy):
        def features(self, images, taps, rng, dense=False):
            return [images for _ in taps]

    with pytest.raises(HarnessError, match=r"Dense.features gave \[90, 1, 8, 8\].*\n.*\[90, D\]"):
        context(tmp_path, Dense()).features([Tap("poor")], "select")


def test_an_unknown_tap_is_an_error(tmp_path):
    with pytest.raises(HarnessError, match="no tap 'deep'"):
        context(tmp_path).features([Tap("deep")], "fit")


def test_the_best_tap_is_chosen_among_the_first_four(tmp_path):
    where = context(tmp_path)
    choice = where.choose_tap()
    assert choice.trials == 4 == len(choice.scores)
    assert choice.tap.layer == "rich"
    assert choice.scores["rich"] > choice.scores["poor"] > choice.scores["blind"]
    assert "never" not in choice.scores
    assert where.choose_tap() is choice
    assert where.ledger.seconds["select"] > 0


def test_equal_scores_go_to_the_tap_the_method_names_first():
    assert best([Tap("a"), Tap("b"), Tap("c")], [1.0, 2.0, 2.0]).tap == Tap("b")


def test_ridge_agrees_with_scikit_learn():
    from sklearn.linear_model import Ridge

    x, y = torch.randn(200, 9, generator=torch.Generator().manual_seed(0)), torch.arange(200) % CLASSES
    x[:, 0] += y
    fit, select = slice(0, 120), slice(120, 200)
    mean, scale = x[fit].double().mean(0), x[fit].double().std(0, correction=0)
    z = ((x.double() - mean) / scale).numpy()
    theirs = Ridge(alpha=120 * 1e-2).fit(z[fit], torch.eye(CLASSES)[y[fit]].numpy()).predict(z[select])
    expected = 100 * (theirs.argmax(1) == y[select].numpy()).mean()
    tap = Tap("x")
    chunks = [[{tap: rows} for rows in x[part].split(37)] for part in (fit, select)]
    assert ridge_top1([tap], chunks[0], y[fit], chunks[1], y[select], CLASSES) == pytest.approx([expected])
    assert expected > 45  # chance is 33


def test_columns_that_are_constant_but_for_rounding_are_not_blown_up():
    x = torch.tensor([[1.0, 100.0, 2.0], [1.0, 100.00001, 4.0]])
    mean, scale = standardiser(x)
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert mean[2] == 3.0


def test_nothing_is_chosen_after_the_test_split_was_opened(tmp_path, monkeypatch):
    def peeking(where, config):
        where.labels("test")
        where.choose_tap()

    use(monkeypatch, peeking)
    with pytest.raises(HarnessError, match=r"peek of toy nano .*: a choice after the test split was opened"):
        run("peek", context(tmp_path), linear.Config())


@pytest.mark.parametrize(("name", "module"), [("linear", linear), ("knn", knn)])
def test_poisoned_test_labels_change_no_choice(tmp_path, name, module):
    clean, poisoned = toy_data(), toy_data()
    poisoned.test.labels[:] = (poisoned.test.labels + 1) % CLASSES
    one = run(name, context(tmp_path / "a", data=clean), module.Config())
    two = run(name, context(tmp_path / "b", data=poisoned), module.Config())
    assert one.chosen == two.chosen and one.trials == two.trials
    key = next(iter(one.numbers))
    assert one.numbers[key].value > 60 > two.numbers[key].value


def test_the_record_says_who_opened_the_test_split_once_per_eval(tmp_path):
    where = context(tmp_path)
    first, second = run("linear", where, linear.Config()), run("knn", where, knn.Config())
    assert [entry.by for entry in first.test_opened] == ["linear of toy nano on toy, 1min, seed 4 at 1 of the budget"]
    assert len(second.test_opened) == 1
    assert len(where.data.opened) == 2


def test_the_record_is_complete(tmp_path):
    record = run("linear", context(tmp_path), linear.Config())
    assert (record.eval, record.protocol, record.dataset, record.key) == ("linear", linear.PROTOCOL, "toy", "abc")
    assert (record.cell, record.share, record.weights, record.seed) == (CELL, 1.0, "ema", 3)
    assert record.config["c_count"] == 10
    assert set(record.ledger) == {"select", "evaluate", "sample"} and record.ledger["select"] > 0
    assert record.trials == 4 + len(record.chosen["C_scores"])


def test_an_eval_that_needs_a_verb_the_method_lacks_does_not_run(tmp_path):
    class Blind(Method):
        def sample(self, n, rng, labels=None, steps=None):
            raise AssertionError

    assert run("linear", context(tmp_path, Blind()), linear.Config()) is None
    assert can(Blind, "sample") and not can(Blind(), "features")


def test_a_number_that_is_not_finite_is_an_error(tmp_path, monkeypatch):
    use(monkeypatch, lambda where, config: Outcome({"x": number(float("nan"))}))
    with pytest.raises(HarnessError, match="'odd' gave x = nan"):
        run("odd", context(tmp_path), linear.Config())


def test_a_cheap_context_never_touches_the_test_split(tmp_path, monkeypatch):
    """What a snapshot is scored on is train that nothing was fitted to or chosen on."""
    monkeypatch.setattr(context_module, "CHEAP", {"fit": 50, "select": 10, "test": 20})
    cheap = context(tmp_path, cheap=True)
    assert [cheap.part(p).n for p in ("fit", "select", "test", "train")] == [50, 10, 20, 300]
    pixels = {
        p: {bytes(image) for image in cheap.part(p).pixels(0, 400).numpy()} for p in ("fit", "select", "test", "train")
    }
    assert not pixels["test"] & (pixels["fit"] | pixels["select"] | pixels["train"])
    record = run("knn", cheap, knn.Config())
    assert record.cheap and record.numbers["knn_top1"].n == 20
    assert record.test_opened == [] and cheap.data.opened == []


def test_a_method_in_training_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"call \.eval\(\)"):
        context_module.Context(Toy().train(), toy_data(), None, pictures=tmp_path, cache=tmp_path)


def test_listing_the_evals_imports_nothing_heavy():
    code = """
import sys, evals.generation, evals.knn, evals.linear
assert not {"torch", "numpy", "pydantic", "sklearn"} & sys.modules.keys(), "heavy import"
assert [e.NEEDS for e in (evals.linear, evals.knn, evals.generation)] == ["features", "features", "sample"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
