"""What SLURM says: jobs, their ends, partitions. One call for all jobs, each counted, each tried again in an outage.

A client command takes up to nine seconds and fails while the controller is away; that is no news of any job.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from harness.errors import HarnessError

ALIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING",
    "RESV_DEL_HOLD", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
}  # fmt: skip
PATIENCE_S = 120.0  # that a command is tried again for while no controller answers
UNREACHABLE = (
    "Unable to contact slurm controller", "Connection refused", "Socket timed out", "Zero Bytes",
    "Protocol authentication error", "Munge encode failed", "Munge decode failed",  # munged is away, here or there
    "failed to fetch remote configs",  # of a cluster whose machines get their slurm.conf from the controller
)  # fmt: skip

UNCONFIGURED = "configuration source"  # of a machine that has the programs, and was told of no cluster


class Unreachable(HarnessError):
    """No controller answers."""


@dataclass(frozen=True)
class InQueue:
    """A job, or an element of an array, as squeue shows it."""

    id: str
    state: str
    reason: str
    nodes: str
    name: str

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


@dataclass(frozen=True)
class Account:
    """A job as the accounting knows it."""

    said: str  # its state, and for one that a person cancelled by whom: "CANCELLED by 1000"
    code: str  # exit status and signal: "0:9"
    name: str

    @property
    def state(self) -> str:
        return (self.said.split() or [""])[0]


@dataclass(frozen=True)
class Nodes:
    """So many alike."""

    count: int
    gpus: tuple[tuple[str, int], ...]  # of each node: type, which may be empty, and how many
    cpus: int

    def gpus_of(self, gpu_type: str) -> int:
        """GPUs of that type on one node; of all types where none is named."""
        return sum(count for kind, count in self.gpus if gpu_type in ("", kind))


@dataclass(frozen=True)
class Partition:
    name: str
    default: bool
    up: bool
    limit_s: int | None  # None: no limit
    kinds: tuple[Nodes, ...]

    def gpus(self, gpu_type: str = "") -> int:
        """Of that type, on the node that has most."""
        return max(nodes.gpus_of(gpu_type) for nodes in self.kinds)

    @property
    def gpu_types(self) -> list[str]:
        return sorted({kind for nodes in self.kinds for kind, _ in nodes.gpus if kind})

    def with_gpus(self, gpus: int, gpu_type: str = "") -> list[Nodes]:
        """The nodes that have as many."""
        return [nodes for nodes in self.kinds if nodes.gpus_of(gpu_type) >= gpus]


@dataclass
class Queue:
    """SLURM's client commands. `calls` counts them by program."""

    calls: dict[str, int] = field(default_factory=dict)
    patience_s: float = PATIENCE_S

    def run(self, words: Sequence[str], patience_s: float | None = None) -> str:
        """The command's output. Raises Unreachable when no controller answers for long, HarnessError otherwise."""
        until = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        pause = 1.0
        while True:
            done = self._call(words)
            if done.returncode == 0:
                return done.stdout
            said = (done.stderr or done.stdout).strip()
            away = any(sign in said for sign in UNREACHABLE)
            if UNCONFIGURED in said and not away:
                raise _no_cluster(f"{words[0]} finds no {UNCONFIGURED} of a cluster", "slurm.conf, or SLURM_CONF=PATH")
            if not away:
                raise HarnessError(f"{words[0]} failed: {said or f'exit status {done.returncode}'}")
            if time.monotonic() >= until:
                raise Unreachable(
                    f"SLURM's controller does not answer: {said.splitlines()[-1]}",
                    "a controller that can be reached from here",
                    "sinfo shows when it is back; jobs in the queue go on without it: then repeat the command",
                )
            time.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause = min(2 * pause, 15.0)

    def _call(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.calls[words[0]] = self.calls.get(words[0], 0) + 1
        try:
            return subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            raise _absent(words[0]) from None

    def jobs(self, patience_s: float | None = None) -> dict[str, InQueue]:
        """Every job of this user that the controller remembers, ended ones too (for MinJobAge), by id."""
        form = "%i|%T|%r|%N|%j"
        out = self.run(["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", form], patience_s)
        rows = [InQueue(*line.split("|", 4)) for line in out.splitlines() if line.count("|") >= 4]
        return {row.id: row for row in rows}

    def accounts(self, ids: Iterable[str]) -> dict[str, Account] | None:
        """The last run of each job of the arrays `ids`, by id; None where there is no accounting."""
        wanted = ",".join(ids)
        if not wanted:
            return {}
        try:
            form = "JobID,State,ExitCode,JobName"
            out = self.run(["sacct", "-X", "-n", "-P", "-j", wanted, "-o", form], patience_s=0)
        except HarnessError:
            return None
        rows = [line.split("|", 3) for line in out.splitlines() if line.count("|") >= 3]
        return {id: Account(said, code, name) for id, said, code, name in rows}

    def cancel(self, ids: Sequence[str]) -> None:
        """End the jobs; one that the controller has forgotten meanwhile has ended."""
        if not ids:
            return
        try:
            self.run(["scancel", *ids])
        except Unreachable:
            raise
        except HarnessError as error:
            if not all("Invalid job id" in line for line in error.found.splitlines()):
                raise

    def largest_array(self) -> int:
        """How many elements an array may have."""
        for line in self.run(["scontrol", "show", "config"]).splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "MaxArraySize":
                return max(1, int(value) - 1)
        return 1000

    def partitions(self, patience_s: float | None = None) -> list[Partition]:
        """Every partition with its limits and its kinds of nodes."""
        out = self.run(["sinfo", "-h", "-o", "%P|%l|%G|%D|%a|%c"], patience_s)
        found: dict[str, Partition] = {}
        for line in out.splitlines():
            name, limit, gres, count, up, cpus = line.split("|")
            nodes = Nodes(int(count), _gpus(gres), int(cpus.rstrip("+")))
            row = Partition(name.rstrip("*"), name.endswith("*"), up == "up", seconds(limit), (nodes,))
            before = found.get(row.name)
            found[row.name] = row if before is None else replace(before, kinds=_counted([*before.kinds, nodes]))
        return list(found.values())


def here() -> bool:
    """Whether this machine has SLURM's client commands and a configuration for them.

    Raises HarnessError for a configuration that is named and missing: the commands would look for it for a minute.
    """
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        return False
    named = os.environ.get("SLURM_CONF")
    if named is not None and not os.path.exists(named):
        raise HarnessError(f"SLURM_CONF={named}, and there is no such file", "", "unset SLURM_CONF, or mend it")
    return True


def require() -> None:
    """Raise HarnessError where SLURM's client commands are not here."""
    if not here():
        raise _absent("sbatch")


def _absent(program: str) -> HarnessError:
    return _no_cluster(f"no {program} on this machine", "SLURM's client commands on the PATH")


def _no_cluster(found: str, expected: str) -> HarnessError:
    return HarnessError(found, expected, "log in to a node of the cluster; or --cluster inline to run on this machine")


def _counted(kinds: Iterable[Nodes]) -> tuple[Nodes, ...]:
    """The kinds, each once: sinfo has a line for each mode that nodes are in."""
    found: dict[Nodes, int] = {}
    for nodes in kinds:
        alike = replace(nodes, count=0)
        found[alike] = found.get(alike, 0) + nodes.count
    return tuple(replace(nodes, count=count) for nodes, count in found.items())


def _gpus(gres: str) -> tuple[tuple[str, int], ...]:
    """`gpu:h100:8(S:0-1),lustre:1` -> (("h100", 8),)."""
    found: dict[str, int] = {}
    for item in gres.split(","):
        words = item.partition("(")[0].split(":")
        if words[0] == "gpu" and words[-1].isdigit():
            kind = words[1] if len(words) > 2 else ""
            found[kind] = found.get(kind, 0) + int(words[-1])
    return tuple(sorted(found.items()))


def seconds(text: str) -> int | None:
    """SLURM's `1-02:03:04`, `1-02`, `02:03:04` or `03:04` in seconds; None for `infinite` and whatever is no time."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        return None
    days, *parts = found.groups()
    clock = [int(part) for part in parts if part is not None]
    clock += [0] * (3 - len(clock)) if days else []  # after days it begins with hours, else it ends with seconds
    value = 0
    for part in clock:
        value = 60 * value + part
    return value + 86400 * int(days or 0)
