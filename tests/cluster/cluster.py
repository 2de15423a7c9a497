"""A running test cluster as tests see it: its queue, its accounts, and ways to break it and to mend it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

HERE = Path(__file__).parent
CANNOT = 3  # slurm-up's exit status where no cluster can run
T = TypeVar("T")


class CannotRun(Exception):
    """No cluster can run on this machine; the message says why."""


class Job(NamedTuple):
    """A row of squeue: a job or one element of an array. Ended jobs stay for five minutes."""

    id: str  # "12" or "12_3"
    state: str
    reason: str
    node: str
    name: str
    comment: str
    script: str  # the file given to sbatch, as it was named
    folder: str  # where it was submitted


class Attempt(NamedTuple):
    """A row of sacct: a job that was requeued has one for each attempt, the last one last."""

    id: str
    state: str
    exit: str  # "status:signal"


@dataclass(frozen=True)
class Cluster:
    """The cluster whose files are in `folder`. Its commands need `environment`; the `slurm` fixture has set it."""

    folder: Path
    environment: dict[str, str]

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command of SLURM's, whatever its exit status."""
        return subprocess.run(words, capture_output=True, text=True, env=os.environ | self.environment, timeout=60)

    def do(self, *words: str) -> str:
        """Its standard output; AssertionError when the command fails."""
        done = self.ask(*words)
        assert done.returncode == 0, f"{' '.join(words)}: exit status {done.returncode}: {done.stderr.strip()}"
        return done.stdout.strip()

    def squeue(self) -> dict[str, Job]:
        """Every job that the controller knows, ended ones included, by id."""
        rows = self.do("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N|%j|%k|%o|%Z").splitlines()
        return {row.split("|", 1)[0]: Job(*row.split("|", 7)) for row in rows}

    def sacct(self, *jobs: str) -> list[Attempt]:
        """Each attempt of the jobs, arrays' elements one by one. It lags behind the truth by up to a second."""
        words = [
            "sacct",
            "-X",
            "-D",
            "-n",
            "-P",
            "-o",
            "JobID,State,ExitCode",
            *(["-j", ",".join(jobs)] if jobs else []),
        ]
        return [Attempt(*row.split("|")) for row in self.do(*words).splitlines()]

    def nodes(self) -> dict[str, str]:
        """State by node: idle, mixed, allocated, down, drained, ... A `*` behind it: the node does not answer."""
        return dict(row.split() for row in self.do("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines())

    def wait(self, condition: Callable[[], T], seconds: float, why: str) -> T:
        """The condition's value once it is true; AssertionError with the queue as it stands after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                queue = self.ask("squeue", "-r", "-t", "all")
                raise AssertionError(f"waited {seconds:g} s for {why}\n{queue.stdout or queue.stderr}")
            time.sleep(0.1)
        return value

    def kill_node(self, n: int) -> None:
        """The node dies whole: its slurmd, step daemons and jobs' processes, by SIGKILL. `revive` brings it back empty.

        The controller takes SlurmdTimeout (10 s) and up to twenty more to notice, unless it is revived before.
        """
        for pid in self._of_node(n):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_controller(self) -> None:
        """slurmctld dies by SIGKILL. Jobs run on; every client command but sacct fails, after nine seconds."""
        os.kill(int((self.folder / "run/slurmctld.pid").read_text()), signal.SIGKILL)

    def revive(self) -> None:
        """Start the daemons that have died; the jobs and the state are kept."""
        up(self.folder, "--revive")

    def clear(self) -> None:
        """Back to idle nodes and no live job, for the next test."""
        self.revive()
        self.ask("scancel", "--quiet", "--state=PENDING", "--user", str(os.getuid()))
        self.ask("scancel", "--quiet", "--full", "--signal=KILL", "--user", str(os.getuid()))
        self.ask("scancel", "--quiet", "--user", str(os.getuid()))
        self.wait(lambda: not self.do("squeue", "-h"), 30, "an empty queue")
        for node, state in self.nodes().items():
            if state.startswith(("down", "drain")):
                self.ask("scontrol", "update", f"nodename={node}", "state=RESUME")
        self.wait(lambda: set(self.nodes().values()) == {"idle"}, 30, "idle nodes")

    def _of_node(self, n: int) -> Iterator[int]:
        """The processes of a node: those that share the host name space of its slurmd."""
        assert (self.folder / "etc/isolated").read_text().strip() == "1", "nodes have no name space of their own"
        slurmd = Path("/proc", (self.folder / f"run/slurmd-n{n}.pid").read_text().strip())
        space = os.readlink(slurmd / "ns/uts")
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                if process.name.isdigit() and os.readlink(process / "ns/uts") == space:
                    yield int(process.name)


def up(folder: Path, *options: str) -> Cluster:
    """Start the cluster of a folder, or find it there. Raises CannotRun where the machine cannot have one."""
    command = ["bash", str(HERE / "slurm-up"), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == CANNOT:
        raise CannotRun(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return Cluster(folder, dict(re.findall(r"export (\w+)='([^']*)'", done.stdout)))


def down(folder: Path) -> None:
    """Stop the cluster of a folder and remove the folder."""
    subprocess.run(["bash", str(HERE / "slurm-down"), str(folder), "--purge"], check=True, capture_output=True)
