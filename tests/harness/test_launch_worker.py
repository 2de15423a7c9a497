"""What a job does with its element of a batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch

from harness import store
from harness.display import Plain
from harness.distributed import Ranks
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.launch import worker
from harness.launch.command import LAUNCH
from harness.launch.folders import Attempts, Batches, Claim, End, Superseded
from harness.launch.job import Work
from harness.launch.queue import Unreachable
from harness.launch.tasks import graph
from harness.launch.worker import work
from harness.pretrain_run import pretrain_run
from harness.records import RunRecord
from harness.resolve import jobs
from harness.signals import Stopper
from harness.study import build
from harness.train.pretraining import Interrupted
from tests.harness.launched import batch
from tests.toys import Toy

ASKED = {"methods": "mae", "budget": "4step", "evals": "knn", "train": {"batch_size": 8, "snapshots": []}}
LONG_AGO = "2020-01-01T00:00:00+00:00"


class World:
    def __init__(self, path) -> None:
        self.place, self.study = store.Study(path), build(ASKED)
        (self.job,) = jobs(self.study)
        self.tasks = {task.stage: task for task in reversed(graph(self.study, [self.job]))}
        self.record = self.place.run(self.job.key).record

    def claim(self, stage: str = "pretrain", number: int = 1, of: str = "b", **changes: object) -> Work:
        """The work of an attempt; its claim is that of the batch `of`."""
        task = self.tasks[stage]
        Batches(self.place).write(batch("b", task, request=self.study.asked(), **changes))
        Attempts(self.place, task).claim(Claim(attempt=number, batch=of, index=0))
        return Work(str(self.place.path), "b", 0, number)

    def end(self, stage: str = "pretrain", number: int = 1) -> End | None:
        return Attempts(self.place, self.tasks[stage]).end(number)

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.place.path.rglob("*") if path.is_file()}


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "s")


@pytest.fixture
def trains(monkeypatch):
    """Pre-training replaced by what the test does instead; it is given the guard and the time waited."""

    def replace(instead) -> None:
        monkeypatch.setattr(
            worker,
            "pretrain_run",
            lambda job, folder, before, display, stopper, guard, ranks, waited_s: instead(guard, waited_s),
        )

    return replace


def test_an_element_whose_claim_is_anothers_does_nothing(world, trains, capsys):
    trains(lambda *_: pytest.fail("it worked"))
    item = world.claim(of="another-batch")
    before = world.files()
    assert work(item, Stopper()) == "done"
    assert world.files() == before
    assert "another command's job has this attempt" in capsys.readouterr().out


def test_an_attempt_that_was_cancelled_before_it_began_does_nothing(world, trains):
    trains(lambda *_: pytest.fail("it worked"))
    item = world.claim()
    Attempts(world.place, world.tasks["pretrain"]).ended(1, End(state="stopped", kind="cancelled"))
    before = world.files()
    assert work(item, Stopper()) == "done"
    assert world.files() == before


def test_what_needs_a_run_that_is_not_there_stops_at_no_cost(world):
    assert work(world.claim("evaluate"), Stopper()) == "stopped"
    end = world.end("evaluate")
    assert (end.state, end.kind) == ("stopped", "dependency") and "not pre-trained" in end.message


@pytest.mark.parametrize(
    ("error", "state", "kind"),
    [
        (RuntimeError("no luck"), "failed", "error"),
        (HarnessError("the data are gone", "data", "bring them back"), "failed", "error"),
        (Interrupted(), "stopped", "signal"),
        (KeyboardInterrupt(), "stopped", "signal"),
    ],
)
def test_every_way_out_is_written_down(world, trains, error, state, kind):
    def fail(*_):
        raise error

    trains(fail)
    assert work(world.claim(), Stopper()) == state
    end = world.end()
    assert (end.state, end.kind) == (state, kind)
    assert kind == "signal" or str(error).splitlines()[0] in end.message


def test_also_that_the_study_is_another_one_here(world, trains):
    item = world.claim(tasks=["pretrain mae-of-other-settings"])
    task = world.tasks["pretrain"].__class__("pretrain", "mae-of-other-settings")
    Attempts(world.place, task).claim(Claim(attempt=1, batch="b", index=0))
    assert work(item, Stopper()) == "failed"
    assert "not one of its study here" in Attempts(world.place, task).end(1).message


def test_a_job_that_was_superseded_writes_nothing_more(world, trains, capsys):
    kept = {}

    def train(guard, waited_s):
        guard()
        Attempts(world.place, world.tasks["pretrain"]).take(2)  # the one that took its place
        kept.update(world.files())
        guard()

    trains(train)
    assert work(world.claim(), Stopper()) == "done"
    assert world.files() == kept and world.end() is None
    assert "this one stops and writes nothing" in capsys.readouterr().out


def test_a_job_that_is_superseded_while_it_trains_leaves_the_record_to_the_other(world):
    folder, calls, kept = world.place.run(world.job.key), [], {}

    def guard():
        calls.append(1)
        if len(calls) > 4:
            kept.update(world.files())
            raise Superseded

    with pytest.raises(Superseded):
        pretrain_run(world.job, folder, None, Plain(), Stopper(), guard)
    assert world.files() == kept
    assert store.read_as(RunRecord, folder.record).state == "running"


def test_the_work_is_done_once_and_the_time_in_the_queue_stands_in_the_ledger(world):
    assert work(world.claim(at=LONG_AGO), Stopper()) == "done"
    assert world.end().state == "done"
    record = store.read_as(RunRecord, world.record)
    assert record.state == "finished" and record.ledger["wait"] > 5 * 365 * 86400
    assert record.ledger["lost"] == 0 and record.spend.wall_s < 1000, "and is charged to nobody"
    before = world.record.read_bytes()
    assert work(world.claim(number=2, at=LONG_AGO), Stopper()) == "done"
    assert world.record.read_bytes() == before and world.end(number=2).state == "done"


class Second:
    """The second of two processes; the first one told it `said`."""

    first, rank, world = False, 1, 2

    def __init__(self, said: str = "") -> None:
        self.said = said

    def told(self, thing: str) -> str:
        return self.said


@pytest.fixture
def second(monkeypatch):
    """This process is the second of its job."""

    def be(said: str = "") -> None:
        monkeypatch.setattr(worker, "ranks", Second)
        monkeypatch.setattr(worker, "joined", lambda: nullcontext(Second(said)))

    return be


def test_only_the_first_of_several_processes_takes_the_task(world, trains, second):
    guards = []
    trains(lambda guard, waited_s: (guard(), guards.append(guard)))
    first = Attempts(world.place, world.tasks["pretrain"]).take(1)
    second()
    assert work(world.claim(), Stopper()) == "done"
    assert world.end() is None, "nor writes how it ended"
    first()
    assert guards[0].path is None


@pytest.mark.parametrize("said", ["superseded", "complete"])
def test_the_others_do_not_wait_for_a_first_one_that_has_nothing_to_do(world, trains, second, said):
    trains(lambda *_: pytest.fail("it worked"))
    second(said)
    assert work(world.claim(), Stopper()) == "done"


@pytest.mark.parametrize(("by_limit", "failed"), [(True, True), (False, False)])
def test_an_evaluation_that_no_time_limit_is_long_enough_for_fails(world, monkeypatch, by_limit, failed):
    """Its turns end one after another, and none brings anything to its end."""
    write_atomic(world.place.path / LAUNCH, '{"launch": {"time": "10min", "tries": 3}, "data_dir": null}')
    monkeypatch.setattr("harness.launch.submit.by_time_limit", lambda signal_s: by_limit)
    item = world.claim("evaluate")
    for turn in (1, 2, 3):
        Attempts(world.place, world.tasks["evaluate"]).take(1)
        Attempts(world.place, world.tasks["evaluate"]).ended(1, End(state="stopped", kind="signal"))
        assert worker.fruitless(item) == (failed and turn == 3)
    end = world.end("evaluate")
    assert end.kind == ("no progress" if failed else "signal")
    assert not failed or ("3 turns one after another" in end.message and "--time" in end.message)


def test_time_in_the_queue_is_not_taken_for_work_that_was_lost(toy_run):
    """Killed after its log saw a wait that no checkpoint knows, the run books that wait once, as wait."""
    first = toy_run("40step", log_s=1e-9, checkpoint_s=1e9, should_stop=lambda: first.step == 20)
    first.waited_s = 100.0
    with pytest.raises(Interrupted):
        first.run()
    second = toy_run("40step", log_s=1e-9, should_stop=lambda: second.step == 30)
    second.waited_s = 150.0
    second._save = lambda: None  # killed before it saved anything
    with pytest.raises(Interrupted):
        second.run()
    third = toy_run("40step")
    third.waited_s = 175.0
    third.run()
    seconds = third.ledger.snapshot()
    assert seconds["wait"] == 175.0 and seconds["lost"] < 50.0
    assert isinstance(third.method, Toy) and int(third.method.calls) and torch.isfinite(third.method.mean).all()


def test_a_closing_job_that_is_stopped_asks_to_be_started_again(world, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.launch.command.close", stopped)
    Batches(world.place).write(batch("b", request=world.study.asked()).model_copy(update={"tasks": ["tables"]}))
    assert work(Work(str(world.place.path), "b", 0, 1), Stopper()) == "stopped"


def test_a_closing_job_sits_out_an_outage_and_says_what_stopped_it(world, monkeypatch, capsys):
    Batches(world.place).write(batch("b", request=world.study.asked()).model_copy(update={"tasks": ["tables"]}))
    item, turns = Work(str(world.place.path), "b", 0, 1), []

    def close(*_):
        turns.append(1)
        if len(turns) < 3:
            raise Unreachable("SLURM's controller does not answer")

    monkeypatch.setattr("harness.launch.command.close", close)
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: None)
    assert work(item, Stopper()) == "done" and len(turns) == 3
    assert "does not answer" in capsys.readouterr().out and Batches(world.place).error("b") is None

    turns.clear()
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: signal.raise_signal(signal.SIGTERM))
    with Stopper().installed(in_job=True) as stopper:
        assert work(item, stopper) == "stopped"
    assert Batches(world.place).error("b") == "stopped by SIGTERM"


@pytest.mark.parametrize("stage", ["evaluate", "references", "tables"])
def test_a_signal_while_the_job_imports_sends_it_back_into_the_queue(world, monkeypatch, stage):
    monkeypatch.setattr(worker, "evaluate_references", lambda *_, **__: pytest.fail("it worked"))
    monkeypatch.setattr("harness.launch.command.close", lambda *_: pytest.fail("it worked"))
    if stage == "tables":
        Batches(world.place).write(batch("b", request=world.study.asked()).model_copy(update={"tasks": ["tables"]}))
        item = Work(str(world.place.path), "b", 0, 1)
    else:
        item = world.claim(stage)
    with Stopper().installed(in_job=True) as stopper:
        with stopper.graceful():
            signal.raise_signal(signal.SIGUSR2)
        assert work(item, stopper) == "stopped" and stopper.again
    assert stage == "tables" or world.end(stage).message == "stopped by SIGUSR2"


@pytest.fixture
def job(monkeypatch):
    """What a job of the given rank does after its work ended in `state`: its exit status, and whether it asked SLURM
    to be started again."""

    def of(rank: int, state: str, signalled: bool = True) -> tuple[object, int]:
        asked = []

        def worked(item, stopper):
            if signalled:
                with stopper.graceful():
                    signal.raise_signal(signal.SIGUSR2)
            return state

        monkeypatch.setattr("harness.launch.submit.inside_job", lambda *_: None)
        monkeypatch.setattr("harness.launch.submit.requeue_self", lambda: asked.append(1) or True)
        monkeypatch.setattr(worker, "work", worked)
        monkeypatch.setattr(worker, "ranks", lambda: Ranks(rank, 2))
        monkeypatch.setattr(worker, "fruitless", lambda item: False)
        try:
            return Work("s", "b", 0, 1)(), len(asked)
        except SystemExit as end:
            return end.code, len(asked)

    return of


def test_the_first_process_of_a_job_goes_back_into_the_queue_and_no_other_ends_it_at_that(job):
    assert job(0, "done", signalled=False) == ("done", 0)
    assert job(0, "stopped") == (0, 1)
    assert job(0, "stopped", signalled=False) == (worker.AGAIN, 0), "by SIGTERM, say: a command submits it again"
    assert job(0, "failed") == (1, 0)
    assert job(1, "stopped") == ("stopped", 0)
    assert job(1, "stopped", signalled=False) == ("stopped", 0), "it followed the first, and never got the signal"
    assert job(1, "failed") == ("failed", 0), "it lost the first, which is at its last words"
    assert job(1, "failed", signalled=False) == (1, 0)


RANK = """
import sys, time, signal
from pathlib import Path
from harness.launch import worker
from harness.launch.job import Work
from harness.signals import Stopper
study, rank = Path(sys.argv[1]), int(sys.argv[2])
with Stopper().installed(in_job=True) as stopper:
    with stopper.graceful():
        (study / f"up{rank}").touch()
        while rank == 0 and not stopper.asked:  # its imports take longer than the other's
            time.sleep(0.05)
    print(worker.work(Work(str(study), "b", 0, 1), stopper), stopper.again)
"""


def test_a_signal_that_finds_one_process_importing_stops_both(world):
    world.claim()
    path = world.place.path
    processes = []
    for rank in (0, 1):
        about = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
        env = os.environ | {k: str(v) for k, v in about.items()} | {"HARNESS_RENDEZVOUS": str(path / "meeting")}
        words = [sys.executable, "-c", RANK, str(path), str(rank)]
        processes.append(subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True))
    try:
        while not all((path / f"up{rank}").exists() for rank in (0, 1)):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        for process in reversed(processes):
            process.send_signal(signal.SIGUSR2)
        said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert said == ["stopped True"] * 2
    assert (world.end().state, world.end().kind) == ("stopped", "signal")


def test_a_job_begins_without_what_takes_seconds_to_import():
    """So that a signal finds its handler from the first moment on."""
    seen = "import sys, harness.launch.job, harness.launch.submit; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", seen], text=True).strip() == "False"
