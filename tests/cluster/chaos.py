"""Chaos: while a study runs on a test cluster, break something real at random moments and see whether it ends complete.

    eval "$(tests/cluster/slurm-up DIR)"
    python -m tests.cluster.chaos STUDY --events 100 --seed 0 --every 2 -- python -m harness run ...

Starts the command after `--` (the driver), and again whenever it dies, as a user would type the same line again. An
event is counted when it hit a job, node or process that was there; jobs are those whose script or working folder lies
in STUDY. Prints a line per event and, when the driver has ended with status 0, a summary as JSON. Exit status 0: the
driver did, after all the events.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from harness.rng import Rng
from tests.cluster.cluster import Cluster, Job

OUTAGE_S = 3.0  # of the controller
MENDED_S = (2.0, 20.0)  # of a node: before and after the controller has given it up
AGAIN_S = 5.0  # before the driver is started again after it failed by itself
STALE_S = 120.0  # without a target: worth a line
FAILURES = 5  # of the driver by itself, one after another: then no study will come of it


class Driver:
    """The user's command, started again by whoever finds it dead. Its output goes to `log`."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self.starts = self.failures = 0
        self.statuses: list[int] = []  # of its ends that were not our doing
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.starts += 1
        with self.log.open("a") as log:
            log.write(f"\n--- start {self.starts}: {shlex.join(self.command)}\n")
            log.flush()
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            return False
        self.process.kill()
        self.process.wait()
        self.failures = 0
        return True

    def done(self) -> bool:
        """Whether it ended with status 0. One that failed by itself is started again, up to FAILURES times in a row."""
        status = self.process.poll()
        if status is None or status == 0:
            return status == 0
        self.statuses.append(status)
        self.failures += 1
        say(f"the driver ended by itself with status {status}; its output is in {self.log}")
        if self.failures == FAILURES:
            raise SystemExit(f"the driver failed {FAILURES} times in a row")
        time.sleep(AGAIN_S)
        self.start()
        return False


class Chaos:
    """Events by kind; each returns what it hit, or nothing where there was no target."""

    def __init__(self, cluster: Cluster, study: Path, driver: Driver | None, rng: Rng) -> None:
        self.cluster, self.study, self.driver, self.rng = cluster, study, driver, rng
        self.draws = 0
        self.repairs: list[tuple[float, str, Callable[[], None]]] = []  # by monotonic time, of one node each
        self.kinds: dict[str, Callable[[], str | None]] = {
            "requeue": lambda: self.on_job("scontrol", "requeue"),
            "kill": lambda: self.on_job(
                "scancel", "--signal=KILL", step=".0"
            ),  # of a whole job it is a person's cancel
            "warning": lambda: self.on_job("scancel", "--signal=USR2"),
            "time_limit": lambda: self.on_job(
                "scontrol", "update", "timelimit=1", key="jobid="
            ),  # of a minute, from now on
            "node_down": self.node_down,
            "node_lost": self.node_lost,
            "controller": self.controller,
        }
        if driver is not None:
            self.kinds["driver"] = self.kill_driver

    def draw(self) -> float:
        """The next number of this run's stream, in [0, 1)."""
        self.draws += 1
        return float(self.rng.uniform(self.draws, (1,)))

    def choose(self, things: list) -> object:
        return things[int(self.draw() * len(things))]

    def running(self) -> list[Job]:
        """The study's running jobs, in the order of their ids."""
        rows = self.cluster.squeue().values()
        return sorted(job for job in rows if job.state == "RUNNING" and self.of_study(job))

    def of_study(self, job: Job) -> bool:
        return any(self.study == path or self.study in path.parents for path in map(Path, (job.script, job.folder)))

    def on_job(self, *command: str, key: str = "", step: str = "") -> str | None:
        jobs = self.running()
        if not jobs:
            return None
        job = self.choose(jobs)
        done = self.cluster.ask(*command, f"{key}{job.id}{step}")
        return None if done.returncode or done.stderr else f"{job.id} {job.name} on {job.node}"

    def healthy_node(self) -> str | None:
        """A node that runs the study's jobs and is not broken already; one is always left."""
        broken = {node for _, node, _ in self.repairs}
        used = sorted({job.node for job in self.running()} - broken)
        return self.choose(used) if used and len(broken) + 1 < len(self.cluster.nodes()) else None

    def mend_later(self, node: str, repair: Callable[[], None]) -> str:
        low, high = MENDED_S
        after = low + (high - low) * self.draw()
        heapq.heappush(self.repairs, (time.monotonic() + after, node, repair))
        return f"{node}, to be mended after {after:.1f} s"

    def node_down(self) -> str | None:
        node = self.healthy_node()
        if node is None:
            return None
        # Planned before it is done, so that no interruption leaves the node down.
        hit = self.mend_later(node, lambda: self.resume(node))
        self.cluster.do("scontrol", "update", f"nodename={node}", "state=DOWN", "reason=chaos")
        return hit

    def node_lost(self) -> str | None:
        node = self.healthy_node()
        if node is None:
            return None
        hit = self.mend_later(node, lambda: (self.cluster.revive(), self.resume(node)))
        self.cluster.kill_node(int(node.removeprefix("n")))
        return hit

    def resume(self, node: str) -> None:
        """Let jobs onto the node again; one that has come back by itself refuses the command, which is as well."""
        if self.cluster.nodes()[node].startswith(("down", "drain")):
            self.cluster.ask("scontrol", "update", f"nodename={node}", "state=RESUME")

    def controller(self) -> str | None:
        if not self.running():
            return None
        try:
            self.cluster.kill_controller()
            time.sleep(OUTAGE_S)
        finally:
            self.cluster.revive()
        return f"slurmctld, away for {OUTAGE_S:g} s"

    def kill_driver(self) -> str | None:
        pid = self.driver.process.pid
        if not self.driver.kill():
            return None
        self.driver.start()
        return f"process {pid}, started again as {self.driver.process.pid}"

    def mend(self, everything: bool = False) -> None:
        """Do the repairs that are due."""
        while self.repairs and (everything or self.repairs[0][0] <= time.monotonic()):
            _, node, repair = self.repairs[0]
            repair()
            heapq.heappop(self.repairs)
            say(f"     mended     {node}")


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def attempt(chaos: Chaos, hits: Counter) -> None:
    """One event of a random kind; a command of SLURM's that fails just then means no event."""
    kind = chaos.choose(sorted(chaos.kinds))
    try:
        hit = chaos.kinds[kind]()
    except (AssertionError, subprocess.TimeoutExpired) as error:
        say(f"     {kind:<10} missed: {error}")
        return
    if hit is not None:
        hits[kind] += 1
        say(f"{hits.total():4d} {kind:<10} {hit}")


def events(chaos: Chaos, number: int, every_s: float) -> Counter:
    """Do events at exponential intervals of `every_s` on average until `number` have hit or the driver is done."""
    hits: Counter = Counter()
    last_hit = time.monotonic()
    while hits.total() < number:
        due = time.monotonic() - every_s * math.log(1 - chaos.draw())
        while time.monotonic() < due:
            chaos.mend()
            if chaos.driver is not None and chaos.driver.done():
                return hits
            time.sleep(0.1)
        before = hits.total()
        attempt(chaos, hits)
        if hits.total() > before:
            last_hit = time.monotonic()
        elif time.monotonic() - last_hit > STALE_S:
            say(f"nothing to hit for {STALE_S:g} s: no running job's script or folder lies in {chaos.study}")
            last_hit = time.monotonic()
    return hits


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between events, on average")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    asked, command = parser.parse_args(words[:split]), words[split + 1 :]
    if "SLURM_UP_DIR" not in os.environ:
        parser.error('no test cluster in this shell; next: eval "$(tests/cluster/slurm-up DIR)"')
    study = asked.study.resolve()
    study.parent.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(Path(os.environ["SLURM_UP_DIR"]), {"SLURM_CONF": os.environ["SLURM_CONF"]})
    driver = Driver(command, study.with_name(f"{study.name}.driver.log")) if command else None
    chaos = Chaos(cluster, study, driver, Rng(asked.seed).at("chaos"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    try:
        if driver is not None:
            driver.start()
        hits = events(chaos, asked.events, asked.every)
        chaos.mend(everything=True)
        while driver is not None and not driver.done():
            time.sleep(0.5)
    except BaseException:
        if driver is not None:
            driver.process.terminate()
        raise
    finally:
        chaos.mend(everything=True)
    summary = {
        "events": dict(sorted(hits.items())),
        "total": hits.total(),
        "wall_s": round(time.monotonic() - began, 1),
        "driver": None
        if driver is None
        else {"starts": driver.starts, "failed_by_itself": driver.statuses, "exit_status": driver.process.returncode},
    }
    print(json.dumps(summary, indent=1))
    return 0 if hits.total() == asked.events else 1


if __name__ == "__main__":
    sys.exit(main())
