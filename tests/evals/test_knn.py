"""kNN against the card's golden value and a rule written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evals import knn
from harness.evaluation import Subject, evaluate
from tests.evals.golden import h
from tests.evals.kit import Toy, context


def card_case():
    y, truth = np.arange(60) % 3, np.arange(30) % 3
    x = h(range(60), range(8)) + 0.5 * np.eye(3, 8)[y]
    queries = h(range(500, 530), range(8)) + 0.5 * np.eye(3, 8)[truth]
    return x, y, queries, truth


def by_hand(x, y, queries, classes, k, temperature):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    shares = np.zeros((len(queries), classes))
    for row, query in enumerate(queries):
        similarity = unit @ (query / np.linalg.norm(query))
        near = np.argsort(-similarity)[:k]
        weight = np.exp(similarity[near] / temperature)
        for label, w in zip(y[near], weight / weight.sum(), strict=True):
            shares[row, label] += w
    return shares


@pytest.mark.parametrize(
    ("k", "first"), [(5, [0.14366839, 0.85633161, 0.0]), (20, [0.16264108, 0.82752228, 0.00983664])]
)
def test_the_cards_golden_votes(k, first):
    x, y, queries, truth = card_case()
    found = knn.votes(*map(torch.from_numpy, (x, y, queries)), classes=3, k=k)
    assert found[0].numpy() == pytest.approx(first, abs=1e-8)
    assert (found.argmax(1).numpy() == truth).mean() == pytest.approx(0.6667, abs=1e-4)


@pytest.mark.parametrize("chunk", [7, 512])
def test_votes_are_the_rule_written_out(chunk):
    x, y, queries, _ = card_case()
    found = knn.votes(*map(torch.from_numpy, (x, y, queries)), classes=4, k=11, temperature=0.2, chunk=chunk)
    assert found.numpy() == pytest.approx(by_hand(x, y, queries, 4, 11, 0.2), abs=1e-12)


def dinov2s(x, y, queries, classes, ks, temperature=0.07):
    """DINOv2's rule: one softmax over the largest k, cut for each k; its shares do not sum to 1. Votes by k."""
    normal = x / np.sqrt((x * x).sum(1, keepdims=True)), queries / np.sqrt((queries * queries).sum(1, keepdims=True))
    similarity = normal[1] @ normal[0].T
    near = np.argsort(-similarity, axis=1, kind="stable")[:, : max(ks)]
    top = np.take_along_axis(similarity, near, axis=1) / temperature
    weight = np.exp(top - top.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    votes = np.eye(classes)[y[near]] * weight[:, :, None]
    return {k: votes[:, :k].sum(1) for k in ks}


def test_the_votes_are_dinov2s():
    y, truth = np.arange(600) % 5, np.arange(200) % 5
    x = h(range(600), range(12)) + 1.0 * np.eye(5, 12)[y]
    queries = h(range(2000, 2200), range(12)) + 1.0 * np.eye(5, 12)[truth]
    theirs = dinov2s(x, y, queries, 5, ks := (10, 20, 100, 200))
    for k in ks:
        ours = knn.votes(*map(torch.from_numpy, (x, y, queries)), classes=5, k=k).numpy()
        assert (ours.argmax(1) == theirs[k].argmax(1)).all()
        assert ours == pytest.approx(theirs[k] / theirs[k].sum(1, keepdims=True), abs=1e-12)
    assert 0.5 < (theirs[20].argmax(1) == truth).mean() < 1


def test_fewer_references_than_k_all_vote():
    x, y, queries, _ = card_case()
    found = knn.votes(*map(torch.from_numpy, (x[:7], y[:7], queries)), classes=3, k=20)
    assert found.numpy() == pytest.approx(by_hand(x[:7], y[:7], queries, 3, 7, 0.07), abs=1e-12)


def test_centring_undoes_a_common_direction(tmp_path):
    class Shifted(Toy):
        def features(self, images, taps, rng, dense=False):
            return [1e-3 * f + 10 for f in super().features(images, taps, rng)]

    subject = Subject(reference="toy")
    plain = evaluate("knn", context(tmp_path / "a"), knn.Config(), subject=subject).numbers
    shifted = evaluate("knn", context(tmp_path / "b", Shifted()), knn.Config(), subject=subject).numbers
    assert shifted["knn_centred_top1"].value == pytest.approx(plain["knn_centred_top1"].value, abs=2)
    assert shifted["knn_top1"].value != shifted["knn_centred_top1"].value
    assert plain["knn_top1"].n == 120 and "all of train" in plain["knn_top1"].note
