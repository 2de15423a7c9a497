"""The linear probe against scikit-learn at convergence, and its choice of C."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evals import _logistic, linear
from harness import hits
from harness.data.dataset import load
from harness.evaluation import Subject, evaluate
from harness.plugins import load_eval
from harness.rng import Rng
from tests.evals.kit import context

WHO = Subject(reference="toy")


def correlated(n: int = 800, width: int = 24, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [n, width] whose standardised covariance has a condition number beyond 1e4, and labels."""
    rng = Rng(0).at("correlated")
    labels = rng.integers("labels", classes, (n,))
    hidden = rng.normal("hidden", (n, width)) + 0.7 * torch.eye(classes, width)[labels]
    mixing = rng.normal("mixing", (width, width)) * torch.logspace(0, -2.5, width)[:, None]
    return hidden @ mixing + 3, labels


@pytest.mark.parametrize("c", [1e-3, 1.0, 10.0])
def test_the_solution_is_scikit_learns_at_convergence(c):
    from sklearn.linear_model import LogisticRegression

    x, y = correlated()
    mean, scale = x.double().mean(0), x.double().std(0, correction=0)
    z = ((x.double() - mean) / scale).numpy()
    assert np.linalg.cond(np.cov(z.T)) > 1e4
    theirs = LogisticRegression(C=c, tol=1e-6, max_iter=20_000).fit(z, y.numpy())
    problem = _logistic.Problem(x, y, 4)
    found = problem.solve(c)
    assert found.converged and found.steps < 100 < 10_000
    weights = problem.axes @ found.weights[:-1]
    logits = torch.from_numpy(z) @ weights + found.weights[-1]
    expected = torch.from_numpy(theirs.predict_proba(z))
    assert (logits.softmax(1) - expected).abs().max() < 5e-3
    assert abs((problem.predict(found, x) == y).double().mean() - theirs.score(z, y)) < 0.003


def test_a_warm_start_leads_to_the_same_solution():
    x, y = correlated()
    problem = _logistic.Problem(x, y, 4)
    cold = problem.solve(1.0)
    warm = problem.solve(1.0, problem.solve(0.01))
    assert torch.equal(problem.predict(cold, x), problem.predict(warm, x))


def test_a_solution_carried_to_other_axes_means_the_same():
    x, y = correlated()
    one, two = _logistic.Problem(x, y, 4), _logistic.Problem(x.flip(0), y.flip(0), 4)
    carried = one.carry(one.solve(1.0), two)
    assert (one.predict(one.solve(1.0), x) == two.predict(carried, x)).double().mean() > 0.995


def test_digits_pixels_reach_scikit_learns_accuracy(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from evals._references import RawPixels

    data = load("digits")
    record = evaluate("linear", context(tmp_path, RawPixels(data), data), linear.Config(), subject=WHO)
    x, t = (part.images.flatten(1).double() / 127.5 - 1 for part in (data.train, data.open_test("test")))
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(C=record.chosen["C"], tol=1e-6, max_iter=5000)
    theirs.fit(scaler.transform(x), data.train.labels)
    expected = 100 * theirs.score(scaler.transform(t), data.open_test("test").labels)
    assert record.numbers["linear_top1"].value == pytest.approx(expected, abs=0.3)
    assert record.trials == 1 + 10
    known = evaluate("knn", context(tmp_path, RawPixels(data), data), load_eval("knn").recipe("nano"), subject=WHO)
    for number in [*record.numbers.values(), *known.numbers.values()]:
        assert 100 * hits.share(number.hits, number.n).mean() == pytest.approx(number.value), "image by image"


def test_equal_input_gives_equal_bits(tmp_path):
    one, two = (
        evaluate("linear", context(tmp_path / name), linear.Config(), subject=WHO).model_dump(exclude={"ledger"})
        for name in "ab"
    )
    assert one == two


def test_the_grid_has_ten_decades():
    assert linear.Config().grid() == [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4]


def test_the_grid_is_widened_at_an_edge_and_not_for_ever():
    config = linear.Config(c_low=1.0, c_high=10.0, c_count=2, widen=2)
    assert linear._beyond(config, [1.0, 10.0], 1.0) == [0.1]
    assert linear._beyond(config, [0.01, 0.1, 1.0, 10.0], 0.01) == []
    assert linear._beyond(config, [0.1, 1.0, 10.0], 10.0) == [100.0]
    assert linear._beyond(config, [0.1, 1.0, 10.0], 1.0) == []


def test_a_widened_grid_is_recorded(tmp_path):
    config = linear.Config(c_low=1e3, c_high=1e4, c_count=2, widen=3)
    record = evaluate("linear", context(tmp_path), config, subject=WHO)
    assert len(record.chosen["C_scores"]) > 2 and record.chosen["C"] < 1e4
    assert record.trials == 4 + len(record.chosen["C_scores"])


def test_probes_that_did_not_converge_are_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(_logistic, "MAX_STEPS", 2)
    record = evaluate("linear", context(tmp_path), linear.Config(), subject=WHO)
    assert any("did not converge" in note for note in record.notes)
    assert any(note.startswith("the final probe") for note in record.notes)


@pytest.mark.parametrize("odd", [{"taps": -1}, {"c_count": 1}, {"c_low": 0.0}, {"c_low": 2.0, "c_high": 1.0}])
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match="must be"):
        linear.Config(**odd)
