"""What SLURM's commands print, as shell scripts print it here; the lines are those of a real 22.05."""

from __future__ import annotations

import os

import pytest

from harness.errors import HarnessError
from harness.launch import queue
from harness.launch.queue import Nodes, Queue, Unreachable
from tests.harness.launched import called, programs

AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
JOBS = """cat <<'END'
17722001_0|FAILED|NonZeroExitCode|n1|harness-a
17722001_1|RUNNING|None|n1|harness-a
17722002_0|PENDING|DependencyNeverSatisfied||harness-b
17722003_0|CANCELLED|DependencyNeverSatisfied||harness-c
17722004|COMPLETING|None|n2|a b|c
17722005|REQUEUE_HOLD|JobHeldUser||harness-d
a line of something else
END"""
PARTITIONS = """cat <<'END'
main*|infinite|gpu:4|4|up|8
main*|infinite|(null)|2|up|64+
main*|infinite|gpu:4|1|up|8
short|1:00|gpu:a100:8(S:0-1)|4|up|8
day|1-02:03:04|gpu:a100:2(S:0,2-3),gpu:v100:4,lustre:1|1|down|8
hour|4:00:00|(null)|0|up|0
END"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return lambda **scripts: programs(tmp_path / "bin", monkeypatch, **scripts)


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """The pauses; time goes on by them alone."""
    pauses: list[float] = []
    monkeypatch.setattr(queue.time, "sleep", pauses.append)
    monkeypatch.setattr(queue.time, "monotonic", lambda: sum(pauses))
    return pauses


def test_jobs_are_told_apart_and_ended_ones_are_no_more_alive(slurm):
    slurm(squeue=JOBS)
    jobs = Queue().jobs()
    assert [id for id, job in jobs.items() if job.alive] == ["17722001_1", "17722002_0", "17722004", "17722005"]
    assert (jobs["17722001_1"].nodes, jobs["17722002_0"].reason) == ("n1", "DependencyNeverSatisfied")
    assert jobs["17722004"].name == "a b|c"
    assert len(jobs) == 6


def test_one_call_asks_for_all_jobs_of_this_user_and_is_counted(slurm):
    folder, asking = slurm(squeue=JOBS), Queue()
    asking.jobs()
    asking.jobs()
    assert asking.calls == {"squeue": 2} and len(called(folder, "squeue")) == 2
    assert f"-u {os.getuid()} " in called(folder, "squeue")[0] and " -r " in called(folder, "squeue")[0]


def test_accounts_say_how_jobs_ended(slurm):
    text = "17722003_0|CANCELLED by 0|0:0|harness-c\n17722001_0|FAILED|3:0|a|b\n17722002_[1-3]|PENDING|0:0|harness-b\n"
    folder = slurm(sacct=f"printf '{text}'")
    found = Queue().accounts(["17722001", "17722003"])
    assert (found["17722003_0"].state, found["17722003_0"].code) == ("CANCELLED", "0:0")
    assert (found["17722001_0"].state, found["17722001_0"].code, found["17722001_0"].name) == ("FAILED", "3:0", "a|b")
    assert "-j 17722001,17722003" in called(folder, "sacct")[0]
    assert Queue().accounts([]) == {} and len(called(folder, "sacct")) == 1


@pytest.mark.parametrize("said", ["Slurm accounting storage is disabled", "Connection refused"])
def test_without_accounting_nothing_is_known_and_nothing_waits(slurm, slept, said):
    folder = slurm(sacct=f"echo '{said}' >&2; exit 1")
    assert Queue().accounts(["1"]) is None
    assert len(called(folder, "sacct")) == 1 and sum(slept) == 0


def test_partitions_with_their_limits_and_gpus(slurm):
    slurm(sinfo=PARTITIONS)
    main, short, day, hour = Queue().partitions()
    assert (main.default, main.up, main.limit_s, main.gpus(), main.gpu_types) == (True, True, None, 4, [])
    assert main.kinds == (Nodes(5, (("", 4),), 8), Nodes(2, (), 64)), "alike nodes are counted together"
    assert (short.default, short.limit_s, short.gpus(), short.gpu_types) == (False, 60, 8, ["a100"])
    assert (day.up, day.limit_s, day.gpus(), day.gpus("a100"), day.gpus("h100")) == (False, 93784, 6, 2, 0)
    assert (hour.limit_s, hour.gpus(), hour.kinds[0].count) == (4 * 3600, 0, 0)


def test_the_largest_array(slurm):
    slurm(scontrol="echo 'MaxArraySize            = 1001'; echo 'MaxJobCount = 5'")
    assert Queue().largest_array() == 1000


def test_an_outage_is_waited_out(slurm, slept, tmp_path):
    back = tmp_path / "bin" / "squeue.calls"
    folder = slurm(squeue=f"if [ $(wc -l < {back}) -lt 4 ]; then {AWAY}; fi\n{JOBS}")
    assert len(Queue().jobs()) == 6
    assert len(called(folder, "squeue")) == 4 and slept == [1.0, 2.0, 4.0], "with longer and longer pauses"


def test_where_nobody_vouches_for_the_user_that_is_an_outage_too(slurm, slept):
    slurm(squeue="echo 'slurm_load_jobs error: Protocol authentication error' >&2; exit 1")
    with pytest.raises(Unreachable):
        Queue(patience_s=0.05).jobs()


def test_patience_ends_and_says_that_jobs_go_on(slurm, slept):
    slurm(squeue=AWAY)
    with pytest.raises(Unreachable, match="does not answer: slurm_load_jobs error: Unable to contact") as told:
        Queue(patience_s=60).jobs()
    assert sum(slept) == 60 and "jobs in the queue go on" in told.value.next_step


def test_another_failure_is_told_at_once(slurm, slept):
    folder = slurm(squeue="echo 'squeue: error: Invalid user: 0' >&2; exit 1")
    with pytest.raises(HarnessError, match="squeue failed: squeue: error: Invalid user") as told:
        Queue().jobs()
    assert not isinstance(told.value, Unreachable) and len(called(folder, "squeue")) == 1 and not slept


def test_a_machine_without_slurm_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not queue.here()
    with pytest.raises(HarnessError, match="no squeue on this machine") as told:
        Queue().jobs()
    assert "--cluster inline" in told.value.next_step


def test_programs_that_were_told_of_no_cluster_say_where_to_go(slurm):
    slurm(sinfo="echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1")
    with pytest.raises(HarnessError, match="sinfo finds no configuration source of a cluster") as told:
        Queue().partitions()
    assert told.value.expected == "slurm.conf, or SLURM_CONF=PATH" and "--cluster inline" in told.value.next_step


def test_a_configuration_that_is_named_and_missing_is_not_waited_for(slurm, monkeypatch):
    folder = slurm(sbatch="exit 1", squeue="exit 1")
    monkeypatch.setenv("SLURM_CONF", "/nosuch/slurm.conf")
    with pytest.raises(HarnessError, match="no such file"):
        queue.here()
    monkeypatch.delenv("SLURM_CONF")
    assert queue.here()
    assert not called(folder, "squeue"), "the commands would look for it for a minute"


def test_nothing_is_cancelled_by_a_call_without_jobs(slurm):
    folder = slurm(scancel="exit 0")
    Queue().cancel([])
    Queue().cancel(["1_0", "1_3"])
    assert called(folder, "scancel") == ["1_0 1_3"]
