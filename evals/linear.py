"""Linear probe: logistic regression on frozen, cached features (card evaluation, section 1).

The tap and then C are chosen on the select part; the probe is fitted again on all of train, whose mean and scale
standardise the features, and looks at the test part once, or where the tap has noise once for each draw of it. Every C
is solved to convergence, which is what scikit-learn's L-BFGS arrives at, given the iterations
(tests/evals/test_linear.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.protocol import COMMON

if TYPE_CHECKING:
    from torch import Tensor

    from evals._logistic import Problem, Solution
    from harness.evaluation import Context, Outcome

TITLE = "linear probe"
PROTOCOL = 3  # noisy taps are read under three draws
NEEDS = "features"


NOTE = "logistic regression on frozen features; tap and C chosen on held-out train, refitted on all of train"


@dataclass(frozen=True)
class Config:
    taps: int = COMMON.candidates  # candidates, the method's own first; 0 is all of them
    c_low: float = 1e-5
    c_high: float = 1e4
    c_count: int = 10  # log-spaced; the card finds 10 enough
    widen: int = 3  # further steps at most, where the best C stands at an edge of the grid
    seeds: int = COMMON.seeds  # of the noise at a noisy tap; a clean one has nothing to repeat

    def __post_init__(self) -> None:
        if self.taps < 0 or self.seeds < 1 or self.c_count < 2 or self.widen < 0:
            raise ValueError("taps and widen must be at least 0, seeds at least 1, c_count at least 2")
        if not 0 < self.c_low < self.c_high:
            raise ValueError("c_low and c_high must be positive, c_low the smaller")

    def grid(self) -> list[float]:
        ratio = (self.c_high / self.c_low) ** (1 / (self.c_count - 1))
        return [float(f"{self.c_low * ratio**i:.6g}") for i in range(self.c_count)]


def recipe(size: str) -> Config:
    """The same for every size."""
    return Config()


def evaluate(context: Context, config: Config) -> Outcome:
    from evals._accuracy import accuracies
    from harness.evaluation import Outcome

    choice = context.choose_tap(config.taps)
    with context.choosing():
        best, scores, problem, notes = choose_c(context, config, choice.tap)
    guesses = []
    for repeat in context.repeats(config.seeds, [choice.tap]):
        final, solution = _refit(repeat, choice.tap, problem, best)
        if not solution.converged:
            notes.append(f"the final probe (C = {best.c:g}) stopped after {solution.steps} steps without converging")
        test = repeat.features([choice.tap], "test")[choice.tap]
        guesses.append(final.predict(solution, test))
    note = None if context.cheap else NOTE
    numbers = accuracies(
        "linear", "linear probe", guesses, context.labels("test"), context.data, table="representation", note=note
    )
    chosen = {"tap": str(choice.tap), "C": best.c, "tap_scores": choice.scores, "C_scores": scores}
    return Outcome(numbers, chosen, choice.trials + len(scores), notes=notes)


def choose_c(context: Context, config: Config, tap) -> tuple[Solution, dict[str, float], Problem, list[str]]:
    """The solution of the best C, the score (top-1 % on select) of each, the problem on fit, and notes.

    Among equal scores the strongest penalty wins.
    """
    from evals._logistic import Problem

    fit, labels = context.features([tap], "fit")[tap], context.labels("fit")
    select, truth = context.features([tap], "select")[tap], context.labels("select")
    problem = Problem(fit, labels, context.data.spec.classes, context.device)
    solved: dict[float, Solution] = {}
    scores: dict[float, float] = {}
    wanted = config.grid()
    while wanted:
        for c in wanted:
            near = min(solved, key=lambda known: abs(known / c - 1), default=None)
            solved[c] = problem.solve(c, None if near is None else solved[near])
            scores[c] = _top1(problem, solved[c], select, truth)
        best = max(sorted(scores), key=lambda c: (scores[c], -c))
        wanted = _beyond(config, sorted(scores), best)
    lame = [f"{c:g}" for c in sorted(solved) if not solved[c].converged]
    notes = [f"on the fit part C = {', '.join(lame)} did not converge"] if lame else []
    return solved[best], {f"{c:g}": round(scores[c], 3) for c in sorted(scores)}, problem, notes


def _beyond(config: Config, tried: list[float], best: float) -> list[float]:
    """The next C outside the grid when the best stands at its edge, or nothing."""
    grid = config.grid()
    ratio = grid[1] / grid[0]
    if best == tried[0] and len([c for c in tried if c < grid[0]]) < config.widen:
        return [float(f"{best / ratio:.6g}")]
    if best == tried[-1] and len([c for c in tried if c > grid[-1]]) < config.widen:
        return [float(f"{best * ratio:.6g}")]
    return []


def _refit(context: Context, tap, problem: Problem, best: Solution) -> tuple[Problem, Solution]:
    """The probe of the chosen C on fit and select together, standardised with their statistics."""
    from evals._logistic import Problem

    problem.forget()
    features, labels = context.train_features(tap)
    final = Problem(features, labels, context.data.spec.classes, context.device)
    return final, final.solve(best.c, problem.carry(best, final))


def _top1(problem: Problem, solution: Solution, features: Tensor, labels: Tensor) -> float:
    return 100.0 * (problem.predict(solution, features) == labels).double().mean().item()
