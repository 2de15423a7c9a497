"""What is refused before anything is submitted, and what to type instead."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.errors import HarnessError
from harness.launch.options import Launch
from harness.launch.preflight import USUAL_LIMIT_S, check
from harness.launch.queue import Nodes, Partition
from harness.plan.survey import _room
from harness.study import build

CPU = Partition("main", True, True, None, (Nodes(4, (), 8),))
GPU = Partition("gpu", False, True, 86400, (Nodes(2, (("h100", 8),), 64),))
SHORT = Partition("short", False, True, 60, (Nodes(4, (), 8),))
DOWN = Partition("old", False, False, None, (Nodes(4, (("", 4),), 8),))
MIXED = Partition(
    "all", False, True, None, (Nodes(2, (("h100", 8),), 64), Nodes(28, (("rtx", 4),), 32), Nodes(5, (), 128))
)
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


@pytest.mark.parametrize(
    ("launch", "found", "expected", "next_step"),
    [
        (
            Launch(gpus=8, nodes=3),
            "--nodes 3, and the partition 'all' has 2 with as many GPUs",
            "at most 2",
            "--nodes 2",
        ),
        (Launch(gpus=8, gpu_type="rtx"), "--gpus 8 of type rtx", "at most 4", "--gpus 4"),
        (Launch(gpu_type="a100"), "cluster.gpu_type=a100", "h100, rtx", "leave it out"),
        (Launch(gpus=2, cpus=40), "2 process(es) of 40 CPU(s)", "as many as one node has", "cluster.cpus"),
    ],
)
def test_of_a_partition_with_several_kinds_of_nodes_those_count_that_have_the_gpus(launch, found, expected, next_step):
    with pytest.raises(HarnessError) as refused:
        check(replace(launch, partition="all"), [CPU, MIXED], study())
    assert found in str(refused.value) and expected in refused.value.expected
    assert next_step in refused.value.next_step


def test_a_type_that_another_partition_has_is_named_with_it():
    with pytest.raises(HarnessError) as refused:
        check(Launch(partition="gpu", gpu_type="rtx"), [GPU, MIXED], study())
    assert refused.value.next_step == "--partition all, or leave it out"


@pytest.mark.parametrize(
    ("launch", "room"),
    [
        (Launch(gpus=8), 2),
        (Launch(gpus=4), 2 * 2 + 28),
        (Launch(gpus=4, gpu_type="rtx"), 28),
        (Launch(gpus=4, nodes=2, gpu_type="h100"), 2),
    ],
)
def test_there_is_room_on_the_nodes_that_have_the_gpus(launch, room):
    launch = replace(launch, partition="all")
    assert _room(launch, check(launch, [MIXED], study())) == room
