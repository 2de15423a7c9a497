"""Budgets: an amount and a unit, per method and per seed. What `run` promises to spend on pre-training.

Time units are charged as they pass and end within 1 % of the budget. Count units fix the number of steps
beforehand, so that the run is reproducible (design.md, "Budget, meter, ledger").
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from harness.errors import HarnessError, unknown

# unit -> (what of the meter it reads, how many of those one unit is)
UNITS: dict[str, tuple[str, float]] = {
    "gpu-h": ("device_s", 3600.0),
    "gpu-min": ("device_s", 60.0),
    "h": ("wall_s", 3600.0),
    "min": ("wall_s", 60.0),
    "s": ("wall_s", 1.0),
    "flop": ("flop", 1.0),
    "img": ("img", 1.0),
    "epoch": ("epoch", 1.0),
    "step": ("step", 1.0),
}
TIME = ("device_s", "wall_s")
LONGEST_WALL_S = 10 * 365 * 24 * 3600.0
LARGEST = {"flop": 1e28, "img": 1e13, "epoch": 1e7, "step": 1e10}
EXAMPLE = "for example: --budget 1min, --budget 100gpu-h, --budget 300step, --budget 1e15flop"


@dataclass(frozen=True)
class Meter:
    """What a run has spent on charged accounts, in every unit at once."""

    wall_s: float = 0.0  # of the whole allocation
    device_s: float = 0.0  # devices x wall time
    flop: float = 0.0  # measured, 2 per multiply-accumulate
    img: float = 0.0
    epoch: float = 0.0
    step: float = 0.0


@dataclass(frozen=True)
class Budget:
    amount: float
    unit: str

    @property
    def reads(self) -> str:
        """The meter's field this budget is counted in."""
        return UNITS[self.unit][0]

    @property
    def limit(self) -> float:
        """The budget in the meter's field: seconds, flop, images, epochs or steps."""
        return self.amount * UNITS[self.unit][1]

    @property
    def is_time(self) -> bool:
        return self.reads in TIME

    def spent(self, meter: Meter) -> float:
        """Share of the budget spent; over 1 when overspent."""
        return getattr(meter, self.reads) / self.limit

    def __str__(self) -> str:
        return f"{self.amount:.12g}{self.unit}".replace("e+", "e")  # a plus is no part of file names


def parse_budget(text: str) -> Budget:
    """`"100gpu-h"` as a Budget. Raises HarnessError for an unknown unit, no unit, or an amount that is not above 0."""
    match = re.fullmatch(r"\s*([-+]?[\d._]+(?:[eE][-+]?\d+)?|[-+]?(?:inf|nan))\s*([A-Za-z][A-Za-z-]*)?s?\s*", text)
    if not match:
        raise HarnessError(f"cannot read the budget {text!r}", "an amount and a unit", EXAMPLE)
    number, unit = match.groups()
    unit = _unit(unit, text)
    try:
        amount = float(number)
    except ValueError:
        raise HarnessError(f"cannot read the amount in the budget {text!r}", "a number", EXAMPLE) from None
    if not math.isfinite(amount):
        raise HarnessError(f"the amount in the budget {text!r} is not finite", "an amount above 0", EXAMPLE)
    if amount <= 0:
        raise HarnessError(f"the budget {text!r} buys nothing", "an amount above 0", EXAMPLE)
    budget = Budget(amount, unit)
    if budget.is_time and budget.limit > LONGEST_WALL_S:
        raise HarnessError(f"the budget {text!r} is longer than ten years", "something a machine can finish", EXAMPLE)
    if budget.reads in LARGEST and budget.limit > LARGEST[budget.reads]:
        raise HarnessError(f"the budget {text!r} is beyond any machine", "something a machine can finish", EXAMPLE)
    if budget.reads in ("step", "img") and amount != int(amount):
        raise HarnessError(f"the budget {text!r} is no whole number", f"a whole number of {budget.reads}s", EXAMPLE)
    return budget


def _unit(unit: str | None, text: str) -> str:
    if unit is None:
        raise HarnessError(f"the budget {text!r} has no unit", "one of " + ", ".join(UNITS), EXAMPLE)
    for name in (unit, unit.lower(), unit.lower().removesuffix("s") or unit):
        if name in UNITS:
            return name
    raise unknown("unit", unit, UNITS, EXAMPLE)


def images_left(
    budget: Budget, spent: Meter, batch_size: int, epoch_img: int, flop_per_image: float, share: float = 1.0
) -> int | None:
    """Images that a count budget still buys up to `share` of it, fixed before the first; None when time decides."""
    if budget.is_time:
        return None
    until = budget.limit * share
    if budget.reads == "step":
        return (round(until) - int(spent.step)) * batch_size
    if budget.reads == "flop":
        return int((until - spent.flop) / flop_per_image)
    return round(until * (epoch_img if budget.reads == "epoch" else 1)) - int(spent.img)


def check_devices(budget: Budget, gpus: int) -> None:
    """Refuse a budget in GPU time on a machine without a GPU, before any work."""
    if budget.reads == "device_s" and gpus == 0:
        wall = "min" if budget.unit == "gpu-min" else "h"
        raise HarnessError(
            f"--budget {budget} is counted in GPU time and this machine has no GPU",
            "a CUDA device, or a budget in wall time (h, min, s) or in counts (flop, img, epoch, step)",
            f"--budget {budget.amount:.12g}{wall} for wall time, or run on a machine with a GPU",
        )
