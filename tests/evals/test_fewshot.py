"""The few-shot ridge beside UMD's rule written out in numpy, its draws, and what the record says."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from evals import fewshot, linear
from harness.evaluation import Subject, evaluate
from harness.rng import Rng
from tests.evals.golden import h
from tests.evals.kit import CLASSES, Toy, context, toy_data

WHO = Subject(reference="toy")


def shots(n: int, width: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [n, width] with a mean, a class's trace and one column that never changes; labels; 50 queries."""
    labels = np.arange(n) % classes
    x = 5 + h(range(n), range(width)) + 0.8 * np.eye(classes, width)[labels]
    queries = 5 + h(range(1000, 1050), range(width))
    x[:, -1] = queries[:, -1] = 7.0
    return x, labels, queries


def umds(x: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int) -> np.ndarray:
    """Scores [m, K]: standardise, append 100, W = (X'X + 1024 I)^-1 X'Y with Y of -1 and +1; here by an inverse."""
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    known, asked = ((np.concatenate([(a - mean) / deviation, np.full((len(a), 1), 100.0)], 1)) for a in (x, queries))
    targets = np.where(np.arange(classes) == labels[:, None], 1.0, -1.0)
    return asked @ (np.linalg.inv(known.T @ known + 1024 * np.eye(known.shape[1])) @ known.T @ targets)


@pytest.mark.parametrize(("n", "width"), [(90, 7), (30, 64)])  # solved at either side
def test_the_ridge_is_umds_rule_written_out(n, width):
    x, labels, queries = shots(n, width)
    ridge = fewshot.Ridge(torch.from_numpy(x), torch.from_numpy(labels), 3)
    expected = umds(x, labels, queries, 3)
    found = (ridge._prepared(torch.from_numpy(queries)) @ ridge.weights).numpy()
    assert found == pytest.approx(expected, abs=1e-10)
    assert (ridge.guess(torch.from_numpy(queries), chunk=7).numpy() == expected.argmax(1)).all()


@pytest.mark.parametrize(("n", "width"), [(90, 7), (30, 64)])
def test_the_ridge_is_scikit_learns(n, width):
    from sklearn.linear_model import Ridge

    x, labels, _ = shots(n, width)
    ours = fewshot.Ridge(torch.from_numpy(x), torch.from_numpy(labels), 3)
    prepared, targets = ours._prepared(torch.from_numpy(x)).numpy(), 2 * np.eye(3)[labels] - 1
    theirs = Ridge(alpha=1024, fit_intercept=False, solver="cholesky").fit(prepared, targets)
    assert ours.weights.T.numpy() == pytest.approx(theirs.coef_, abs=1e-10)


def test_a_draw_has_as_many_of_each_class_and_no_image_twice():
    labels = Rng(0).integers("labels", 4, (200,))
    draws = [fewshot.draw(labels, 10, 4, number) for number in range(3)]
    for index in draws:
        assert labels[index].bincount().tolist() == [10] * 4 and len(index.unique()) == 40
    assert all(len(np.intersect1d(a, b)) < 30 for a, b in pairwise(draws))
    assert torch.equal(fewshot.draw(labels, 10, 4, 2), draws[2])


def test_a_class_with_fewer_images_gives_what_it_has(tmp_path):
    labels = torch.tensor([0] * 30 + [1] * 4 + [3] * 30)
    assert labels[fewshot.draw(labels, 10, 4, 0)].bincount().tolist() == [10, 4, 0, 10]
    where = context(tmp_path, data=toy_data(fit=120, select=30))
    config = fewshot.Config(shots=(5, 100))
    numbers = evaluate("fewshot", where, config, subject=WHO).numbers
    assert "150 images, not 300: some classes have fewer" in numbers["fewshot100_top1"].note
    assert "fewer" not in numbers["fewshot5_top1"].note
    assert len(set(numbers["fewshot100_top1"].values)) == 1  # every draw is all of train
    assert numbers["fewshot100_top1"].half == 0


def test_the_record(tmp_path):
    found = evaluate("fewshot", context(tmp_path), fewshot.Config(shots=(2, 50)), subject=WHO)
    assert list(found.numbers) == ["fewshot2_top1", "fewshot50_top1"] and found.trials == 4
    few, many = found.numbers.values()
    assert (few.title, few.table, few.n) == ("2-shot ridge top-1 %", "representation", 120)
    assert len(few.values) == 3 and few.half > 0 and few.value == pytest.approx(sum(few.values) / 3)
    assert many.value > few.value > 100 / CLASSES and found.chosen["tap"] == "rich"
    assert len(found.test_opened) == 1


def test_every_method_and_seed_gets_the_same_shots(tmp_path, monkeypatch):
    drawn = []
    real = fewshot.draw
    monkeypatch.setattr(fewshot, "draw", lambda *args: drawn.append(real(*args)) or drawn[-1])

    class Another(Toy):
        def taps(self):
            return super().taps()[:1]

    where = context(tmp_path / "a"), context(tmp_path / "b", Another())
    where[1].rng = Rng(99)
    for one in where:
        evaluate("fewshot", one, fewshot.Config(shots=(7,)), subject=WHO)
    assert len(drawn) == 6
    for a, b in zip(drawn[:3], drawn[3:], strict=True):
        assert torch.equal(a, b)


def test_snapshots_are_evaluated_without_a_pass_beyond_the_linear_probes(tmp_path):
    method = Toy()
    where = context(tmp_path, method, cheap=True)
    evaluate("linear", where, linear.Config(), subject=WHO)
    passes = len(method.passes)
    found = evaluate("fewshot", where, fewshot.Config(), subject=WHO)
    assert found.cheap and len(method.passes) == passes and not found.test_opened
    assert all(number.note is None for number in found.numbers.values())


@pytest.mark.parametrize("odd", [{"shots": ()}, {"shots": (0,)}, {"shots": (5, 5)}, {"seeds": 0}])
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match="must"):
        dataclasses.replace(fewshot.Config(), **odd)
