"""Errors that a user can act on: what was wrong, what was expected, what to type next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """A fault of input or surroundings; the CLI prints it without a traceback and exits with status 2."""

    def __init__(self, found: str, expected: str = "", next_step: str = "") -> None:
        self.found, self.expected, self.next_step = found, expected, next_step
        lines = [found]
        lines += [f"  expected: {expected}"] if expected else []
        lines += [f"  next: {next_step}"] if next_step else []
        super().__init__("\n".join(lines))


class CannotWrite(HarnessError):
    """A full disk or a folder without permission: no other cell of the study would fare better."""


class Diverged(Exception):
    """The objective stopped being finite; `step` is where. The cell stays in the tables as `diverged`."""

    def __init__(self, step: int, term: str, value: float) -> None:
        self.step, self.term, self.value = step, term, value
        super().__init__(f"non-finite {term} ({value}) at step {step}")


def said(error: Exception) -> str:
    """An error in one line; our own are sentences already."""
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, HarnessError) else f"{type(error).__name__}: {first}"


def told(error: Exception) -> str:
    """An error with all it says, further lines set in under the first."""
    lines = str(error).splitlines() if isinstance(error, HarnessError) else [said(error)]
    return "\n            ".join(line.strip() for line in lines)


def unknown(kind: str, name: str, known: Iterable[str], next_step: str = "") -> HarnessError:
    """The error for a name that is not among the known ones, with the nearest known name first."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listing = ", ".join(names) if names else "none are installed"
    return HarnessError(f"unknown {kind} {name!r}", f"{hint}known: {listing}", next_step)
