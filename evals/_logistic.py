"""Multinomial logistic regression with an L2 penalty, solved to convergence over a path of penalties.

The objective is scikit-learn's: sum of cross-entropies + |W|^2 / (2 C), bias free (card evaluation, section 1). What
is ours is the road to its minimum. Features of real networks are so correlated that plain L-BFGS needs hundreds to
thousands of steps. The features are therefore turned to their principal axes, which changes no penalty, and each axis
is stepped in units of its curvature at the start, 1 / sqrt(variance / K + 1 / (C n)); L-BFGS then needs tens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.evaluation.choose import ROWS, standardise, standardiser

# Shapes: n images, D feature width, K classes.

TOLERANCE = 1e-4  # largest entry of the preconditioned gradient of the mean objective
MAX_STEPS = 300


@dataclass(frozen=True)
class Solution:
    """One minimum, in the coordinates of its `Problem`; `converged` tells whether the tolerance was reached."""

    c: float
    weights: Tensor  # [D + 1, K] float64, the last row the bias
    steps: int
    converged: bool


class Problem:
    """Training features and labels, ready to be solved for any C."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, device: torch.device | str = "cpu") -> None:
        self.mean, self.scale = standardiser(features)
        self.classes, self.labels = classes, labels.to(device)
        spread = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=device)
        for rows in features.split(ROWS):  # a copy of all of them would take as much memory again
            z = self._standardise(rows).to(device)
            spread += (z.T @ z).double()
        # On the CPU, where equal input gives equal bits.
        variance, self.axes = torch.linalg.eigh(spread.cpu() / len(features))
        self.variance = variance.clamp_min(0).to(device)
        self.x = torch.empty(features.shape, device=device)
        axes = self.axes.to(self.x)
        for start in range(0, len(features), ROWS):
            self.x[start : start + ROWS] = self._standardise(features[start : start + ROWS]).to(device) @ axes

    def _standardise(self, features: Tensor) -> Tensor:
        """float32 [n, D] with the mean and scale of the training features."""
        return standardise(features, self.mean, self.scale)

    def solve(self, c: float, start: Solution | None = None) -> Solution:
        """The minimum for penalty 1 / (2 C), searched from `start` (from zero for None)."""
        n, width = self.x.shape
        curvature = torch.cat([self.variance, self.variance.new_ones(1)]) / self.classes
        curvature[:-1] += 1 / (c * n)
        unit = curvature.rsqrt()[:, None]  # [D + 1, 1]
        first = torch.zeros(width + 1, self.classes, dtype=torch.float64) if start is None else start.weights
        point = (first.to(unit) / unit).requires_grad_()
        steps = _descend(point, lambda v: self._objective(v * unit, c, unit))
        _, gradient = self._objective(point.detach() * unit, c, unit)
        weights = (point.detach() * unit).cpu()
        return Solution(c, weights, steps, gradient.abs().max().item() <= TOLERANCE)

    def _objective(self, weights: Tensor, c: float, unit: Tensor) -> tuple[Tensor, Tensor]:
        """The mean objective at `weights` [D + 1, K] and its gradient in units of `unit`."""
        n = len(self.x)
        logits = torch.addmm(weights[-1].float(), self.x, weights[:-1].float())
        log_p = logits.log_softmax(dim=1)
        rows = torch.arange(n, device=logits.device)
        loss = -log_p[rows, self.labels].double().mean() + weights[:-1].square().sum() / (2 * c * n)
        error = log_p.exp_()
        error[rows, self.labels] -= 1
        slope = (error.T @ self.x).T.double() / n + weights[:-1] / (c * n)  # x.T @ error is 20 times slower on CPUs
        return loss, torch.cat([slope, error.double().mean(dim=0, keepdim=True)]) * unit

    def predict(self, solution: Solution, features: Tensor) -> Tensor:
        """The most likely class [n] of raw `features` [n, D]."""
        turned = self.axes @ solution.weights[:-1]  # back to standardised coordinates
        logits = torch.addmm(solution.weights[-1].float(), self._standardise(features), turned.float())
        return logits.argmax(dim=1)

    def forget(self) -> None:
        """Give back the features' memory: nothing is solved here any more, but solutions can be carried on."""
        self.x = self.x[:0].clone()

    def carry(self, solution: Solution, other: Problem) -> Solution:
        """`solution` of this problem as a starting point for `other`, which has other axes."""
        slope = other.axes.T @ (self.axes @ solution.weights[:-1])
        weights = torch.cat([slope, solution.weights[-1:]])
        return Solution(solution.c, weights, solution.steps, False)


def _descend(point: Tensor, objective) -> int:
    """Move `point` to the minimum in place by L-BFGS with a strong Wolfe line search; the number of steps taken."""
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=MAX_STEPS,
        tolerance_grad=TOLERANCE / 2,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        with torch.no_grad():
            loss, point.grad = objective(point.detach())
        return loss.item()

    optimizer.step(closure)
    return optimizer.state[point]["n_iter"]
