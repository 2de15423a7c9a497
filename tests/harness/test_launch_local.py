"""Workers on this machine: one task for each device, and none of them left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from harness import store
from harness.errors import HarnessError
from harness.launch import local
from harness.launch.folders import Attempts, Batches, Claim
from harness.launch.local import Local
from harness.processes import born, lives
from tests.harness.launched import PRETRAIN, batch, ended_process

SLEEP = "import time; print('asleep', flush=True); time.sleep(600)"


class Toy(Local):
    """Its workers run a line of Python instead of the harness: `says` has it, by index."""

    says: dict[int, str]

    def _worker(self, key, attempt, device):
        return subprocess.Popen([sys.executable, "-c", self.says.get(key[1], SLEEP)], stdout=subprocess.DEVNULL)


@pytest.fixture
def place(tmp_path) -> store.Study:
    return store.Study(tmp_path / "s")


@pytest.fixture
def toy(place):
    """A batch of three on two devices."""
    executor = Toy(place, ["0", "1"])
    executor.says = {0: "raise SystemExit(3)"}
    three = batch("b", *[PRETRAIN] * 3)
    Batches(place).write(three)
    executor.submit(three, [1, 1, 1], "pretrain")
    yield executor
    executor.close()


def seen(executor: Local, index: int):
    return executor.look({"b"})(Claim(attempt=1, batch="b", index=index))


def wait_for(what) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_device_has_one_worker_and_the_next_task_starts_when_it_is_free(toy):
    assert seen(toy, 1).running and seen(toy, 1).where == "1"
    wait_for(lambda: not seen(toy, 0).alive)
    assert seen(toy, 0).kind == "killed" and "exit status 3" in seen(toy, 0).word
    assert seen(toy, 2).running and seen(toy, 2).where == "0"


def test_what_is_cancelled_never_starts_or_is_asked_to_end(toy):
    toy.says[0] = SLEEP
    wait_for(lambda: seen(toy, 2).running)  # the first one has ended
    claims = [Claim(attempt=1, batch="b", index=index) for index in (1, 2)]
    assert sorted(toy.cancel(claims)) == ["b/1", "b/2"]
    wait_for(lambda: not seen(toy, 1).alive and not seen(toy, 2).alive)
    assert "SIGTERM" in seen(toy, 1).word


def test_no_worker_outlives_its_command(toy):
    processes = [process for process, _ in toy._running.values()]
    toy.close()
    assert processes and all(process.poll() is not None for process in processes)


def test_a_task_of_a_command_that_is_gone_is_known_as_that(place):
    Batches(place).write(batch("b", PRETRAIN, host=socket.gethostname(), pid=ended_process()))
    found = seen(Local(place, []), 0)
    assert (found.alive, found.kind) == (False, "signal")


def test_one_of_a_command_on_another_computer_is_not_taken_for_dead_by_a_look(place):
    Batches(place).write(batch("b", PRETRAIN, host="another", pid=1))
    found = seen(Local(place), 0)
    assert found.alive and found.word.startswith("waiting for its turn on another, if that command lives")
    assert not seen(Local(place, holds=True), 0).alive, "who holds the study's lock knows that it has ended"


def test_also_where_another_process_has_its_number_by_now(place):
    mine = batch("b", PRETRAIN, host=socket.gethostname(), pid=os.getpid(), born=born(os.getpid()))
    for who, alive in ((mine, True), (mine.model_copy(update={"born": "another boot 17"}), False)):
        Batches(place).write(who)
        assert seen(Local(place, []), 0).alive == alive


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [(None, 0, [""]), ("", 0, [""]), (None, 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), ("3,9", 1, ["3"])],
)
def test_there_is_a_worker_for_each_device_and_one_without_any(monkeypatch, visible, count, names):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.devices() == names


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent ended")
def test_a_worker_ends_with_a_command_that_is_killed(tmp_path):
    worker = f"import os; from harness.launch import local; local.end_with(os.getppid()); {SLEEP}"
    start = f"p = subprocess.Popen([sys.executable, '-c', {worker!r}])"
    parent = f"import subprocess, sys; {start}; print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    assert process.stdout.readline() == "asleep\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not lives(pid))
    process.stdout.close()


@pytest.mark.slow
def test_a_study_is_brought_to_its_end_by_workers_and_not_begun_anew(tmp_path, harness):
    words = [
        "--methods",
        "mae",
        "--budget",
        "4step",
        "--evals",
        "knn",
        "--cluster",
        "local",
        "--name",
        "s",
        "--out",
        tmp_path,
    ]
    words += ["train.batch_size=16", "train.snapshots=[]"]
    status, printed, _ = harness("run", *words)
    assert status == 0 and "4 of 4 tasks done" in printed
    (record,) = tmp_path.glob("s/runs/*/run.json")
    run = json.loads(record.read_text())
    assert (run["state"], run["spend"]["step"], run["attempts"]) == ("finished", 4, 1)
    assert (tmp_path / "s" / "tables" / "tables.csv").exists()
    assert len(list(tmp_path.glob("s/jobs/*/batch.json"))) == 4
    status, printed, _ = harness("run", *words)
    assert status == 0 and len(list(tmp_path.glob("s/jobs/*/batch.json"))) == 4, "everything is there"
    status, printed, _ = harness("logs", tmp_path / "s", "mae")
    assert status == 0 and printed.count("==> ") == 6, "output and errors of three jobs"


def test_gpus_are_as_many_as_were_asked_for_and_no_more_than_there_are(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.devices(2) == ["0", "1"] and local.devices(0) == [""]
    with pytest.raises(HarnessError, match="--gpus 5, and this machine has 4"):
        local.devices(5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--partition", "p"], "--partition is for a cluster"),
        (["--parallel", "2"], "--parallel is for a cluster"),
        (["slurm.qos=normal"], "slurm.KEY=VALUE is for a cluster"),
        (["cluster.mem=4G"], "cluster.mem is for a cluster"),
    ],
)
def test_what_workers_here_would_ignore_is_refused(tmp_path, harness, words, said):
    for action in ("run", "plan"):
        command = [action, "--methods", "mae", "--budget", "4step", "--out", tmp_path, "--cluster", "local", *words]
        status, printed, complained = harness(*command)
        assert said in printed + complained and (action == "plan" or status == 2)
    assert not list(tmp_path.iterdir())


def test_a_worker_of_another_command_is_seen_at_work(place):
    Batches(place).write(batch("b", PRETRAIN, host=socket.gethostname(), pid=os.getpid()))
    assert (seen(Local(place, []), 0).running, seen(Local(place, []), 0).word) == (False, "waiting for its turn")
    Attempts(place, PRETRAIN).take(1)
    assert (seen(Local(place, []), 0).running, seen(Local(place, []), 0).word) == (True, "running")
