"""A real SLURM for tests: `slurm` with accounting, `slurm_no_accounting` without.

Each worker of pytest-xdist that comes to such a test starts a cluster of its own and keeps it to the end of the run:
nothing is shared, so a test may break its cluster as it likes. The cluster ends with the process that started it,
however that ends (Ctrl-C, a kill).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import CannotRun, Cluster, down, up
from tests.cluster.studies import Toys, at_work, install

LOG_LINES = 15


def started(folder, *options: str) -> Iterator[Cluster]:
    """The cluster, stopped and purged afterwards; skips with the reason where none can run."""
    if sys.platform != "linux":
        pytest.skip(f"SLURM runs on Linux, not on {sys.platform}")
    try:
        yield up(folder, "--while", str(os.getpid()), *options)
    except CannotRun as reason:
        pytest.skip(str(reason))
    finally:
        down(folder)


def lent(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster for one test: its environment is set inside, the cluster is whole and empty again afterwards."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.clear()


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory) -> Iterator[Cluster]:
    yield from started(tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="session")
def _cluster_no_accounting(tmp_path_factory) -> Iterator[Cluster]:
    yield from started(tmp_path_factory.mktemp("slurm"), "--accounting", "none")


@pytest.fixture
def slurm(_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    yield from lent(_cluster, monkeypatch)


@pytest.fixture
def slurm_no_accounting(_cluster_no_accounting: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    yield from lent(_cluster_no_accounting, monkeypatch)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A folder for the path in which the toy methods are installed."""
    folder = tmp_path_factory.mktemp("site")
    install(folder)
    return folder


@pytest.fixture
def toys(slurm: Cluster, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toys]:
    yield from _toys(slurm, site, tmp_path, monkeypatch)


@pytest.fixture
def toys_no_accounting(
    slurm_no_accounting: Cluster, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Toys]:
    yield from _toys(slurm_no_accounting, site, tmp_path, monkeypatch)


@pytest.fixture
def toys_on_a_small_disk(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toys]:
    """With a cluster of their own, since nodes see the mounts that were there when they started."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk here: {mounted.stderr.strip()}")
    try:
        for cluster in started(tmp_path / "slurm", "--accounting", "none"):
            for _ in lent(cluster, monkeypatch):
                yield from _toys(cluster, site, disk, monkeypatch)
    finally:
        monkeypatch.chdir(tmp_path)
        subprocess.run(["umount", disk], check=True)


def _toys(cluster: Cluster, site: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toys]:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(site)
    yield from at_work(cluster, folder, site, monkeypatch.setenv)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"slurm", "slurm_no_accounting", "toys_on_a_small_disk"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator:
    """A failed test also shows the end of its controller's log."""
    report = yield
    for name in ("slurm", "slurm_no_accounting"):
        cluster = getattr(item, "funcargs", {}).get(name)
        if report.failed and cluster is not None and (log := cluster.folder / "log/slurmctld.log").exists():
            report.sections.append((f"{name}: slurmctld.log", "\n".join(log.read_text().splitlines()[-LOG_LINES:])))
    return report
