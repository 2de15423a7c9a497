"""Numbers as people read them: decimals that the data support, SI counts, one unit of time per column."""

from __future__ import annotations

import math
from collections.abc import Iterable

MISSING = "—"  # a value that was not measured; never 0
TIME_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def fixed(value: float, digits: int) -> str:
    """`value` with that many decimals; `nan` and `inf` stay what they are, and there is no minus zero."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def significant(value: float, digits: int = 3) -> str:
    """`value` with at least that many significant digits and never an exponent: 0.00123, 4.56, 789, 12345."""
    if not math.isfinite(value) or value == 0:
        return fixed(value, 0)
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return fixed(value, max(0, digits - 1 - exponent))


def count(value: float) -> str:
    """A count with an SI prefix: 360, 1.23 M, 4.56 G."""
    if not math.isfinite(value) or abs(value) < 1000:
        return fixed(value, 0)
    rounded = float(f"{value:.2e}")
    for prefix, size in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if abs(rounded) < size * 1000:
            return f"{significant(rounded / size)} {prefix}"
    return f"{significant(rounded / 1e15)} P"


def gflop(value: float) -> str:
    """FLOP as GFLOP, without the unit: the column names it."""
    return significant(value / 1e9)


def memory(value: float) -> str:
    """Bytes as MiB, or GiB from one GiB on."""
    if not math.isfinite(value):
        return fixed(value, 0)
    return f"{significant(value / 2**30)} GiB" if value >= 2**30 else f"{significant(value / 2**20)} MiB"


def time_unit(seconds: Iterable[float]) -> str:
    """The unit for a whole column: that of its longest duration."""
    longest = max((s for s in seconds if math.isfinite(s)), default=0.0)
    return "h" if longest >= 3 * 3600 else "min" if longest >= 10 * 60 else "s"


def duration(seconds: float, unit: str) -> str:
    """Seconds in `unit`, without the unit: the column names it. Two decimals at most; a trifle is not 0."""
    amount = seconds / TIME_UNITS[unit]
    if 0 < amount < 0.005:
        return "<0.01"
    return significant(amount) if abs(amount) >= 1 else fixed(amount, 2 if amount else 0)


def age(seconds: float) -> str:
    """How long ago, for a status line: 12 s, 3 min, 5.0 h."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
