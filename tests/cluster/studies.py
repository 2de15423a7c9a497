"""Studies of toy methods on the test cluster: commands typed as a user types them, and what they left."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import store
from harness.__main__ import main
from harness.launch.folders import Attempts, Batches, Claim, End
from harness.launch.tasks import Task
from harness.records import RunRecord
from tests.cluster.cluster import HERE, Cluster

ROOT = HERE.parent.parent
METHODS = ("Held", "Other", "Broken", "Exits", "Reader")
SMALL = ("--evals=", "train.snapshots=[]", "train.batch_size=32", "train.log_s=0.2", "train.checkpoint_s=0.5")
SLURM = ("--cluster=slurm", "--gpus=0")


def install(site: Path) -> None:
    """The toys of `held.py` as an installed package, for whoever has `site` on the path."""
    package, about = site / "held", site / "held-1.0.dist-info"
    package.mkdir(parents=True)
    about.mkdir()
    (package / "__init__.py").touch()
    shutil.copyfile(HERE / "held.py", package / "method.py")
    (package / "card.toml").write_text('title = "A toy"\narxiv = "2401.00001"\nyear = 2024\n')
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: held\nVersion: 1.0\n")
    points = "".join(f"{name.lower()} = held.method:{name}\n" for name in METHODS)
    (about / "entry_points.txt").write_text(f"[harness.methods]\n{points}")


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str = ""


@dataclass
class Study:
    """A study's folder."""

    path: Path
    place: store.Study = field(init=False)

    def __post_init__(self) -> None:
        self.place = store.Study(self.path)

    @property
    def keys(self) -> list[str]:
        """Of the study's runs."""
        path = self.path / "study.json"
        return sorted(json.loads(path.read_text())["keys"]) if path.exists() else []

    def record(self, key: str) -> RunRecord | None:
        path = self.place.run(key).record
        return store.read_as(RunRecord, path) if path.exists() else None

    def states(self) -> list[str | None]:
        records = [self.record(key) for key in self.keys]
        return [record and record.state for record in records]

    def lines(self, key: str) -> list[dict[str, Any]]:
        """Of the run's log."""
        path = self.place.run(key).log
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def step(self, key: str) -> int:
        return max((line["step"] for line in self.lines(key)), default=0)

    def saved(self, key: str) -> int:
        """The step of the run's newest checkpoint."""
        paths = self.place.run(key).checkpoints.glob("step-*.pt")
        return max((int(path.name.split("-")[1]) for path in paths), default=0)

    def resumed(self, key: str) -> list[int]:
        """The steps from which the run went on."""
        return [line["step"] for line in self.lines(key) if line.get("event") == "resumed"]

    def weights(self, key: str) -> str:
        """The name of the final snapshot, which holds the checksum of its content."""
        (path,) = self.place.run(key).snapshots.glob("1.0000-*")
        return path.name

    def claims(self, task: Task) -> list[Claim]:
        return Attempts(self.place, task).all()

    def end(self, task: Task) -> End | None:
        """Of the newest attempt."""
        attempts = Attempts(self.place, task)
        claim = attempts.last()
        return None if claim is None else attempts.end(claim.attempt)

    def job(self, task: Task) -> str | None:
        """The job of the newest attempt, as squeue names it."""
        claim = Attempts(self.place, task).last()
        submitted = None if claim is None else Batches(self.place).submitted(claim.batch)
        if claim is None or submitted is None:
            return None
        return f"{submitted.job}_{claim.index}" if submitted.array else submitted.job

    def batches(self, stage: str) -> list[str]:
        """Names of the batches of a stage, in the order of their submission."""
        return [name for name in Batches(self.place).all() if name.startswith(f"{stage}-")]


def pretraining(key: str) -> Task:
    return Task("pretrain", key)


@dataclass
class Toys:
    """A place of its own for a test's studies, in which it types commands. `hold` is there: runs are held."""

    folder: Path
    cluster: Cluster
    hold: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def typed(self, *words: str) -> Said:
        """A command, in this process."""
        out, err, before = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = ["harness", *words]
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            sys.argv = before
        return Said(status, out.getvalue(), err.getvalue())

    def begun(self, *words: str) -> subprocess.Popen[str]:
        """A command in a process of its own; it ends with the test at the latest."""
        process = subprocess.Popen(
            [sys.executable, "-m", "harness", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def ended(self, process: subprocess.Popen[str], seconds: float = 300) -> Said:
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"after {seconds:g} s: {process.communicate()[0]}") from None
        return Said(process.returncode, out)

    def study(self, name: str) -> Study:
        return Study(self.folder / "runs" / name)

    def release(self) -> None:
        self.hold.unlink()

    def wait(self, condition: Callable[[], Any], why: str, seconds: float = 240) -> Any:
        return self.cluster.wait(condition, seconds, why)

    def running(self, study: Study, runs: int, steps: int = 2) -> list[str]:
        """The keys of the study once it has that many runs that have all taken some steps."""
        self.wait(lambda: len(study.keys) == runs, "the study's folder")
        self.wait(lambda: all(study.step(key) >= steps for key in study.keys), f"{runs} runs in training")
        return study.keys

    def park(self, *stages: str) -> None:
        """Keep the jobs of these stages from ever starting: a test that is not about them does not pay for them."""
        names = tuple(f"harness-{stage}-" for stage in stages)
        waiting = [j for j in self.cluster.squeue().values() if j.state == "PENDING" and j.name.startswith(names)]
        jobs = {job.id.partition("_")[0] for job in waiting}
        assert jobs, f"no job of {stages} in the queue"
        self.cluster.do("scontrol", "hold", *sorted(jobs))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


def at_work(cluster: Cluster, folder: Path, site: Path, setenv: Callable[[str, str], None]) -> Iterator[Toys]:
    """The toys in a folder, for as long as a test takes."""
    hold = folder / "hold"
    hold.touch()
    setenv("HELD", str(hold))
    setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
    setenv("OMP_NUM_THREADS", "1")
    toys = Toys(folder, cluster, hold)
    try:
        yield toys
    finally:
        toys.close()
