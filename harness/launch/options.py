"""What a user says of where and how jobs run: options, `slurm.KEY=VALUE` words, a profile in a file of their own.

None of it is part of a run's key: where a run ran does not change what it computes. No cluster is named in code.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from harness.config import override
from harness.errors import HarnessError, unknown

Where = Literal["auto", "inline", "local", "slurm"]
PROFILES = "cluster.toml"


@dataclass(frozen=True)
class Launch:
    """Defaults are the cluster's own wherever it has one."""

    cluster: Where = "auto"
    gpus: int | None = None  # of each node; None: one where the partition has GPUs, else none
    gpu_type: str = ""  # as sinfo names it; any, where a cluster has several
    nodes: int = 1  # of each pre-training job
    processes: int = 0  # of each node; 0: one per GPU, or one
    cpus: int = 0  # of each process; 0: the cluster's default
    mem: str = ""  # of each node, in SLURM's words: 64G
    partition: str = ""
    account: str = ""
    time: str = ""  # limit of a job: 30min, 4h, or SLURM's D-HH:MM:SS; longer runs are chained
    parallel: int = 0  # jobs of one array that run at the same time; 0: as many as the cluster lets
    tries: int = 3  # failures of one kind without progress until a task counts as failed
    signal_s: int = 120  # before the limit, at which a run is asked to save itself
    python: str = ""  # on the nodes; the one of this command by default
    rendezvous: Literal["tcp", "file"] = "tcp"  # how the processes of one job find each other
    slurm: dict[str, Any] = field(default_factory=dict)  # any further option of sbatch

    def __post_init__(self) -> None:
        if self.time and limit_s(self.time) < 60:
            raise ValueError("time is at least a minute, which SLURM counts in")
        for name, least in {"gpus": 0, "nodes": 1, "processes": 0, "cpus": 0, "parallel": 0, "tries": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is at least {least}")
        if self.signal_s < 5:
            raise ValueError("signal_s is at least 5 seconds")

    @property
    def limit_s(self) -> int | None:
        return limit_s(self.time) if self.time else None


def limit_s(text: str) -> int:
    """`90s`, `30min`, `4h`, `2d`, or SLURM's `MM`, `HH:MM:SS`, `D-HH:MM:SS`, in seconds. Raises ValueError."""
    from harness.launch.queue import seconds

    if found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)", text.strip()):
        return round(float(found[1]) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[found[2]])
    if text.strip().isdigit():
        return 60 * int(text)
    value = seconds(text.strip())
    if value is None:
        raise ValueError(f"time={text!r} is no time limit: 30min, 4h, or D-HH:MM:SS")
    return value


def split(asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A study's words without those of the launch, and those: its sections `[cluster]` and `[slurm]`."""
    study = {k: v for k, v in asked.items() if k not in ("cluster", "slurm")}
    section = asked.get("cluster", {})
    launch = {"cluster": section} if isinstance(section, str) else dict(_table("cluster", section))
    if "slurm" in asked:
        launch["slurm"] = {**_table("slurm", launch.get("slurm", {})), **_table("slurm", asked["slurm"])}
    return study, launch


def _table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HarnessError(f"{name}={value!r} is no section", f"{name}.KEY=VALUE", "for example: slurm.qos=normal")
    return value


TEXTS = ("account", "gpu_type", "partition", "time", "mem")
OPTIONS = ("cluster", "gpus", "nodes", "partition", "account", "time", "parallel")  # of the command line
SPELLED = {  # what sbatch calls what the harness sets, and what to set instead; "": nothing
    "cpus_per_task": "cpus", "gpus_per_node": "gpus", "gpus_per_task": "gpus", "gres": "gpus", "ntasks": "processes",
    "ntasks_per_node": "processes", "array": "parallel", "time_min": "time", "signal": "signal_s", "signal_delay_s":
    "signal_s", "output": "", "error": "", "open_mode": "", "dependency": "", "kill_on_invalid_dep": "", "job_name": "",
    "comment": "", "requeue": "", "no_requeue": "", "wckey": "",
}  # fmt: skip


def _refuse_own(key: str) -> None:
    """Raise HarnessError for an option of sbatch that the harness has an option of its own for."""
    name = key.replace("-", "_")
    own = {f.name: f.name for f in fields(Launch)}
    if name not in own | SPELLED:
        return
    instead = {**own, **SPELLED}[name]
    next_step = f"--{instead}" if instead in OPTIONS else f"cluster.{instead}=VALUE"
    raise HarnessError(
        f"slurm.{key} is set by the harness itself",
        "other options of sbatch",
        next_step if instead else "leave it out: the harness needs its own",
    )


def build(*layers: dict[str, Any]) -> Launch:
    """Later layers win; `slurm` is merged key by key. Raises HarnessError for an unknown key or a wrong value."""
    merged: dict[str, Any] = {}
    for layer in layers:
        further = {**merged.get("slurm", {}), **_table("slurm", layer.get("slurm", {}))}
        merged = {**merged, **{k: v for k, v in layer.items() if v is not None}, "slurm": further}
    further = merged.pop("slurm", {})
    for key in further:
        _refuse_own(key)
    for key in TEXTS:  # account=1234 and time=30 are numbers to TOML
        if isinstance(merged.get(key), int | float) and not isinstance(merged[key], bool):
            merged[key] = str(merged[key])
    return override(override(Launch(), merged, "cluster"), {"slurm": further} if further else {})


def profile(name: str | None) -> dict[str, Any]:
    """The user's own defaults: the table `name` of their file, or its table `default` where it has one.

    The file is $HARNESS_CLUSTER, or cluster.toml in the user's configuration folder. `name` may be a file, too.
    """
    named = os.environ.get("HARNESS_CLUSTER")
    path = Path(named or _configuration() / "recognise-and-draw" / PROFILES)
    if name is not None and name.endswith(".toml"):
        path, name, named = Path(name), None, name
    if named and not path.is_file():
        raise HarnessError(f"no profile at {path}", "a TOML file with tables of cluster settings, such as [default]")
    if not path.is_file():
        if name is not None:
            raise HarnessError(f"no profile {name!r}: there is no {path}", f"a table [{name}] in that file")
        return {}
    try:
        tables = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path} is no TOML: {error}", "", f"mend {path}") from None
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise HarnessError(
                f"{path} sets {key!r} outside of any table",
                "tables of cluster settings",
                f"write [default] above {key}",
            )
    if name is None:
        return tables.get("default", {})
    if name not in tables:
        raise unknown("profile", name, tables, f"profiles are tables of {path}")
    return tables[name]


def _configuration() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
