"""A real SLURM for tests: `slurm` with accounting, `slurm_no_accounting` without.

Each worker of pytest-xdist that comes to such a test starts a cluster of its own and keeps it to the end of the run:
nothing is shared, so a test may break its cluster as it likes. The cluster ends with the process that started it,
however that ends (Ctrl-C, a kill).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import CannotRun, Cluster, down, up

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"slurm", "slurm_no_accounting"} & set(getattr(item, "fixturenames", ())):
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
