"""The formulas of generation again, in plain numpy and float64."""

from __future__ import annotations

import numpy as np


def frechet_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """By symmetric square roots."""

    def root(m):
        values, vectors = np.linalg.eigh(m)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T

    ca, cb = np.cov(a.T), np.cov(b.T)
    half = root(ca)
    cross = np.sqrt(np.linalg.eigvalsh(half @ cb @ half).clip(0)).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross


def kernel_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Over the whole sets."""

    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    m = len(x)
    within = sum((k(z, z).sum() - np.trace(k(z, z))) / (m * (m - 1)) for z in (x, y))
    return within - 2 * k(x, y).mean()


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances [len(a), len(b)], without the cancellation of the usual expansion."""
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))


def reach_by_hand(of: np.ndarray, within: np.ndarray, k: int = 3) -> float:
    """The share of `of` that lies in reach of an image of `within`: no further than that one's neighbour number k."""
    radius = np.sort(apart(within, within), axis=1)[:, k]
    return (apart(of, within) <= radius).any(axis=1).mean()


def score_by_hand(logits: np.ndarray, splits: int) -> float:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    parts = [p[i * len(p) // splits : (i + 1) * len(p) // splits] for i in range(splits)]
    return float(np.mean([np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts]))
