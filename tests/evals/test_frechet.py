"""The formulas of generation: golden values, other derivations, and torch-fidelity's own way from files to metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image

from evals import _extractors, _frechet, _standin
from harness.errors import HarnessError
from tests.evals.by_hand import frechet_by_hand, kernel_by_hand, reach_by_hand, score_by_hand
from tests.evals.golden import A, B
from tests.evals.kit import toy_data


def of(matrix: np.ndarray) -> _frechet.Statistics:
    return _frechet.statistics(torch.from_numpy(matrix))


def test_the_cards_golden_matrix():
    assert A[0, :3] == pytest.approx([0.48016965, -0.85219179, -0.16019998], abs=1e-8)


def test_frechet_golden_and_by_hand():
    assert _frechet.frechet(of(A), of(B)) == pytest.approx(0.7641210443, abs=1e-9)
    assert frechet_by_hand(A, B) == pytest.approx(_frechet.frechet(of(A), of(B)), abs=1e-6)
    assert _frechet.frechet(of(A), of(A)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [40, 5000])
def test_frechet_of_many_features_is_that_of_an_independent_formula(n):
    """64 features of very unequal scale; with 40 images the covariance has no full rank."""
    rng = np.random.default_rng(1)
    scale = np.logspace(0, -4, 64)
    x, y = rng.normal(size=(n, 64)) * scale, 0.3 * scale + rng.gamma(2.0, size=(3000, 64)) * scale[::-1]
    assert _frechet.frechet(of(x), of(y)) == pytest.approx(frechet_by_hand(x, y), abs=1e-6)


def test_kernel_golden_and_by_hand():
    a, b = torch.from_numpy(A), torch.from_numpy(B)
    mean, spread = _frechet.kernel_distance(a, b, subsets=1, size=64, seed=1)
    assert mean == pytest.approx(0.2119170462, abs=1e-9) and spread == 0
    assert kernel_by_hand(A, B) == pytest.approx(mean, abs=1e-9)


def test_precision_and_recall_golden_and_by_hand():
    found = _frechet.precision_recall(torch.from_numpy(A), torch.from_numpy(B))
    assert found == (0.453125, 0.890625) == (reach_by_hand(A, B), reach_by_hand(B, A))


def test_score_golden_and_by_hand():
    assert _frechet.score(torch.from_numpy(3 * A), 4) == pytest.approx(1.8972359105, abs=1e-9)
    assert score_by_hand(3 * A, 4) == pytest.approx(1.8972359105, abs=1e-9)


def test_precision_and_recall_cut_both_sets_to_equal_counts():
    a, b = torch.from_numpy(A), torch.from_numpy(B)
    assert _frechet.precision_recall(a, b[:40]) == _frechet.precision_recall(a[:40], b[:40])


def test_running_moments_are_those_of_the_whole():
    moments = _frechet.Moments()
    far = torch.from_numpy(A) + 1e4  # a mean that would swamp plain sums of squares
    for chunk in far.split(7):
        moments.add(chunk)
    found, whole = moments.statistics(), _frechet.statistics(far)
    torch.testing.assert_close(found.mean, whole.mean, atol=0, rtol=1e-14)
    torch.testing.assert_close(found.covariance, whole.covariance, atol=1e-12, rtol=0)


def test_a_part_taken_out_leaves_the_statistics_of_the_rest():
    rest = _frechet.without(of(np.concatenate([A, B])), of(A))
    torch.testing.assert_close(rest.mean, of(B).mean, atol=1e-14, rtol=0)
    torch.testing.assert_close(rest.covariance, of(B).covariance, atol=1e-13, rtol=0)
    assert rest.n == len(B)


@pytest.mark.parametrize(("width", "n", "m"), [(16, 500, 2000), (64, 1000, 50_000)])
def test_what_counts_alone_make_of_gaussian_features(width, n, m):
    """Of eigenvalues 1, 1/2, 1/3 ... against simulation, and the card's .0183 trace at 128 features and n = 1000."""
    scale = 1 / np.arange(1, width + 1) ** 0.5
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(k, width)) * scale for k in (n, m))
    true = _frechet.Statistics(torch.zeros(width), torch.from_numpy(np.diag(scale**2)), 10)
    assert _frechet.frechet(of(x), of(y)) == pytest.approx(_frechet.expected(true, n, m), rel=0.15)
    eigen = 1 / torch.arange(1, 129, dtype=torch.float64)
    card = _frechet.Statistics(torch.zeros(128), eigen.diag(), 10)
    assert _frechet.expected(card, 1000, 50_000) / eigen.sum().item() == pytest.approx(0.0183, rel=0.05)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda x: _frechet.kernel_distance(x, x[:5], 1, 10, 1), "subsets of 10 images, from sets of 64 and 5"),
        (lambda x: _frechet.precision_recall(x[:3], x), "precision and recall of 3 against 64 images"),
        (lambda x: _frechet.score(x[:3], 4), "4 splits of 3 images"),
    ],
)
def test_fewer_images_than_a_metric_needs_are_an_error(ask, message):
    with pytest.raises(HarnessError, match=message):
        ask(torch.from_numpy(A))


# -- torch-fidelity from end to end -----------------------------------------------------------------------------------


def test_all_metrics_equal_torch_fidelitys_from_folders_of_png(tmp_path, monkeypatch):
    """Its calculate_metrics, which its command line calls, with our extractor registered: files, loader and formulas.

    It keeps features in float32 where we use float64.
    """
    monkeypatch.setattr(_standin, "FEWEST", 20)
    monkeypatch.setattr(_standin, "EPOCHS", 1)
    data = toy_data(fit=120, select=40, test=130)
    extractor = _extractors.stand_in(data, tmp_path, "cpu")
    folders, sets = [], (data.test.images, data.train.images[:130])
    for number, images in enumerate(sets):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(folders[-1] / f"{i:03d}.png")
    monkeypatch.setattr(
        _extractors.StandInExtractor, "forward", _of_first_channel(_extractors.StandInExtractor.forward)
    )
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        feature_extractor=_extractors.STAND_IN,
        feature_extractor_weights_path=str(next(tmp_path.glob("cnn64-*"))),
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        isc_splits=3,
        samples_shuffle=False,
        kid_subsets=5,
        kid_subset_size=60,
        cache=False,
        save_cpu_ram=True,  # which also keeps its loader in this process
        verbose=False,
    )
    monkeypatch.undo()
    a, b = (extractor.look(images) for images in sets)
    distance = _frechet.frechet(_frechet.statistics(a.features), _frechet.statistics(b.features))
    kernel = _frechet.kernel_distance(a.features, b.features, 5, 60, 2020)
    scale = b.features.double().var(dim=0).sum().item()
    assert distance == pytest.approx(theirs["frechet_inception_distance"], abs=1e-5 * scale)
    assert kernel[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3, abs=1e-5)
    assert _frechet.score(a.logits, 3) == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    reach = _frechet.precision_recall(a.features, b.features)
    assert reach == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def _of_first_channel(forward):
    """torch-fidelity's loader makes grey files colour; the toy classifier is for grey images."""
    return lambda self, images: forward(self, images[:, :1])
