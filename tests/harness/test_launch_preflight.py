"""What is refused before anything is submitted, and what to type instead."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.launch.options import Launch
from harness.launch.preflight import USUAL_LIMIT_S, check
from harness.launch.queue import Partition
from harness.study import build

CPU = Partition("main", True, True, None, 4, 0, "", 8, 16000)
GPU = Partition("gpu", False, True, 86400, 2, 8, "h100", 64, 500000)
SHORT = Partition("short", False, True, 60, 4, 0, "", 8, 16000)
DOWN = Partition("old", False, False, None, 4, 4, "", 8, 16000)
ALL = [CPU, GPU, SHORT, DOWN]


def study(budget: str = "6step", **train: object):
    return build({"methods": "mae", "budget": budget, "train": train})


def test_what_fits_is_said():
    fits = check(Launch(), ALL, study())
    assert (fits.partition, fits.gpus, fits.limit_s) == (CPU, 0, USUAL_LIMIT_S)
    fits = check(Launch(partition="gpu", time="12h"), ALL, study("1gpu-h"))
    assert (fits.partition, fits.gpus, fits.limit_s) == (GPU, 1, 12 * 3600)
    assert check(Launch(partition="gpu", gpus=0), ALL, study()).gpus == 0
    assert check(Launch(partition="short", signal_s=10), ALL, study(checkpoint_s=5)).limit_s == 60


@pytest.mark.parametrize(
    ("launch", "asked", "found", "next_step"),
    [
        (Launch(partition="gpus"), study(), "unknown partition 'gpus'", "--partition NAME"),
        (Launch(partition="old"), study(), "'old' is down", "--partition NAME"),
        (Launch(gpus=2), study(), "--gpus 2 on each node", "--gpus 0"),
        (Launch(partition="gpu", gpus=9), study(), "have 8", "--gpus 8"),
        (Launch(nodes=5), study(), "--nodes 5", "--nodes 4"),
        (Launch(cpus=9), study(), "9 CPU(s)", "cluster.cpus"),
        (Launch(cpus=4, processes=3), study(), "3 process(es) of 4 CPU(s)", "cluster.processes"),
        (Launch(processes=9), study(), "9 process(es)", "cluster.processes"),
        (Launch(), study("1gpu-h"), "--budget 1gpu-h is counted in GPU time", "--gpus 1"),
        (Launch(partition="gpu", gpus=0), study("1gpu-h"), "the jobs have no GPU", "--gpus 1"),
        (Launch(partition="gpu", time="2d"), study(), "--time 2d", "--time 1440min"),
        (Launch(partition="short"), study(), "0 s of work", "a longer --time"),
        (Launch(time="3min"), study(checkpoint_s=90), "one checkpoint is made every 90 s", "train.checkpoint_s"),
    ],
)
def test_what_the_cluster_cannot_do_is_refused_with_what_to_type(launch, asked, found, next_step):
    with pytest.raises(HarnessError) as refused:
        check(launch, ALL, asked)
    assert found in str(refused.value) and next_step in refused.value.next_step


def test_where_there_are_more_gpus_is_said():
    with pytest.raises(HarnessError, match="gpu has 8"):
        check(Launch(gpus=2), ALL, study())


def test_a_cluster_without_a_default_partition_needs_one_named():
    with pytest.raises(HarnessError, match="no default partition") as refused:
        check(Launch(), [GPU, SHORT], study())
    assert "--partition NAME" in refused.value.next_step and "gpu, short" in refused.value.expected
