"""Energy, from the counters that the hardware keeps: NVML's for a GPU, RAPL's for processor packages and memory.

Readings are gross: the whole card and whole packages, idle draw and other processes included. What cannot be read is
None and never 0, and a sum that lacks a part (a counter that may not be read, an attempt without one) is None too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

POWERCAP = Path("/sys/class/powercap")  # Linux's power capping tree; AMD's packages stand there under the same name
MOST_W = 1000.0  # that a package draws: how soon its counter may run through its range
LOOK_S = 10.0  # between two looks of `keep_up`


class Unreadable(Exception):
    """A counter that gives no number."""


class Counter(Protocol):
    name: str
    holds_s: float  # how long it may go unread without running through its range

    def joules(self) -> float:
        """Joules since some fixed moment. Raises Unreadable."""
        ...


class Rapl:
    """A zone of the powercap tree. Its counter starts again past `max_energy_range_uj`, within minutes under load."""

    def __init__(self, zone: Path, name: str) -> None:
        self.name = name
        self._file = zone / "energy_uj"
        self._range_uj = self._number(zone / "max_energy_range_uj")
        self._last_uj = self._number(self._file)
        self._total_uj = 0
        self.holds_s = self._range_uj / 1e6 / MOST_W

    def joules(self) -> float:
        now = self._number(self._file)
        self._total_uj += now - self._last_uj + (self._range_uj if now < self._last_uj else 0)
        self._last_uj = now
        return self._total_uj / 1e6

    @staticmethod
    def _number(file: Path) -> int:
        try:
            return int(file.read_text())
        except (OSError, ValueError) as error:  # readable by root alone on many systems
            raise Unreadable(f"{file}: {error}") from error


class Nvml:
    """A GPU's own counter, in mJ since its driver was loaded. `handle` and `nvml` are the library's."""

    name = "GPU (NVML)"
    holds_s = math.inf

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._last_mj = 0

    def joules(self) -> float:
        try:
            now = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as error:
            raise Unreadable(f"NVML: {error}") from error
        if now < self._last_mj:
            raise Unreadable("NVML: the counter went back, the driver was loaded anew")
        self._last_mj = now
        return now / 1e3


class Nothing:
    """What a process has to count on a CPU whose packages another process of the job counts."""

    name = "no counter of its own"
    holds_s = math.inf

    def joules(self) -> float:
        return 0.0


def counters(device: torch.device | str, powercap: Path = POWERCAP, packages_too: bool = True) -> list[Counter]:
    """What can be read on the machine for work on `device`; nothing where the device itself cannot be.

    Without `packages_too`, for one that shares its machine with a process that counts them: the device alone.
    """
    packages = _packages(powercap) if packages_too else []
    if torch.device(device).type == "cpu":
        return packages if packages_too else [Nothing()]
    card = _card(torch.device(device))
    return [card, *packages] if card else []


def _packages(powercap: Path) -> list[Counter]:
    """Processor packages and the memory beside them; all of them or none.

    A package's `core` and `uncore` are parts of it and `psys` is more than it: none of them is added.
    """
    found: list[Counter] = []
    try:
        for zone in sorted(powercap.glob("intel-rapl:*")):
            name = (zone / "name").read_text().strip()
            if name.startswith("package-"):
                found.append(Rapl(zone, f"{name} (RAPL)"))
            elif name == "dram":
                package = (powercap / zone.name.rpartition(":")[0] / "name").read_text().strip()
                found.append(Rapl(zone, f"{package} memory (RAPL)"))
    except (OSError, Unreadable):
        return []
    return found


def _card(device: torch.device) -> Nvml | None:
    """The device's counter, found by its UUID, since NVML does not know CUDA_VISIBLE_DEVICES."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        card = Nvml(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        card.joules()
    except (pynvml.NVMLError, AttributeError, Unreadable):  # no driver, a slice of a card, a card without a counter
        return None
    return card


class EnergyMeter:
    """Joules of the time that is being counted, over all counters together."""

    def __init__(self, counters: Sequence[Counter] = ()) -> None:
        self._counters = list(counters)
        self._known = bool(self._counters)
        self._counting = False
        self._joules = self._last = self._looked_at = 0.0

    @property
    def source(self) -> str | None:
        """The counters behind the sum; None where there is no sum."""
        return " + ".join(counter.name for counter in self._counters) if self._known else None

    def start(self) -> None:
        """Count from 0 and from now on."""
        self._joules, self._counting = 0.0, False
        self.look()
        self._counting = True

    def joules(self) -> float | None:
        """Joules counted so far; None where any of them could not be read."""
        self.look()
        return self._joules if self._known else None

    def look(self) -> None:
        """Read the counters. The sum is unknown once one of them went unread for too long while it counted."""
        if not self._known:
            return
        unread_s, self._looked_at = time.perf_counter() - self._looked_at, time.perf_counter()
        if self._counting and unread_s > min(counter.holds_s for counter in self._counters):
            self._known = False
            return
        try:
            now = sum(counter.joules() for counter in self._counters)
        except Unreadable:
            self._known = False
            return
        if self._counting:
            self._joules += now - self._last
        self._last = now

    def keep_up(self) -> None:
        """Look if the last look is a while ago; long work calls it often."""
        if self._known and time.perf_counter() - self._looked_at > LOOK_S:
            self.look()

    @contextmanager
    def counting(self, on: bool) -> Iterator[None]:
        """Whether the `with` block counts; blocks nest."""
        self.look()
        before, self._counting = self._counting, on
        try:
            yield
        finally:
            self.look()
            self._counting = before

    def state(self) -> dict[str, Any]:
        """The sum so far, for a checkpoint."""
        return {"joules": self.joules(), "source": self.source}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from an earlier attempt's sum; one that is missing, or of other counters, makes the whole unknown."""
        if not state or state["joules"] is None or state["source"] != self.source:
            self._known = False
        else:
            self._joules = state["joules"]
