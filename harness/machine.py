"""The machine: its devices, what it is called in records, and how much memory a run took."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import inspect
import os
import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from harness.records import Environment

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "diffusers",
    "accelerate",
    "torch-fidelity",
    "scikit-learn",
    "numpy",
)


PACKAGES = ("backbones", "evals", "harness", "methods")
COMMIT_FILE = "commit.txt"  # beside the packages of a frozen copy, which is no checkout


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """The model name of the device, as its maker writes it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model} ({os.cpu_count()} cores)"


@functools.cache
def commit() -> str | None:
    """The commit of the code that runs, with `+` when the tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if (here / COMMIT_FILE).exists():
        return (here / COMMIT_FILE).read_text() or None
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@functools.cache
def code(of: type) -> str:
    """A digest of the code that evaluates the class `of`: the project's packages, and the whole one of the class.

    It is that of the first call in a process: ask before long work, since files that are edited meanwhile do not run.
    """
    here = Path(__file__).resolve().parent.parent
    own = Path(inspect.getfile(of)).resolve()
    depth = of.__module__.count(".")  # the folder of its top-level package, or of a single module the file alone
    files = [path for package in PACKAGES for path in sorted((here / package).rglob("*.py"))]
    files += sorted(own.parents[depth - 1].rglob("*.py")) if depth else [own]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def environment(precision: str, compiled: bool, devices: int = 1) -> Environment:
    """Of this process; `devices` alike worked together, a process each."""
    return Environment(
        device=device_name(),
        devices=devices,
        cpu_threads=torch.get_num_threads(),
        precision=precision,
        compiled=compiled,
        versions=versions(),
        commit=commit(),
    )


def forget_peak_memory() -> bool:
    """Start a new peak, so that the peak of one run is not that of the run before it in the same process.

    Whether that worked: elsewhere than on a GPU or Linux the peak stays the process's own, an upper bound.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc: give back what earlier runs freed
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM
    except OSError:
        return torch.cuda.is_available()
    return True


def peak_memory_bytes() -> int:
    """Peak memory since `forget_peak_memory`: of the device where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        return _of_process("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bytes() -> int:
    """Memory in use now, counted as `peak_memory_bytes` counts it. Raises OSError where the system does not tell."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _of_process("VmRSS")


def _of_process(field: str) -> int:
    """Bytes of a field of Linux's process status. Raises OSError where there is none."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
