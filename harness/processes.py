"""Processes of this computer, told from later ones that got the same number."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
BOOT = "sys/kernel/random/boot_id"


def born(pid: int) -> str:
    """When the process began, as the boot's name and the kernel's clock ticks; "" where nobody can say."""
    try:
        return f"{(PROC / BOOT).read_text().strip()} {_about(pid)[19]}"
    except (OSError, IndexError):
        return ""


def lives(pid: int, born_at: str = "") -> bool:
    """Whether the process is at work: there, of that birth where one is given, and not only waiting to be buried."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = _about(pid)[0]
    except (OSError, IndexError):  # no such file system here
        return True
    return state != "Z" and born_at in ("", born(pid))


def _about(pid: int) -> list[str]:
    """Fields of the kernel's line about the process, from the third on; the second, its name, may hold anything."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
