"""What a driver submits, and when; the executor only takes it down."""

from __future__ import annotations

import threading

import pytest

from harness import store
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.launch.drive import Driver, over, settle, watch
from harness.launch.folders import Attempts, Batches, End
from harness.launch.queue import Unreachable
from harness.launch.show import left
from harness.launch.standing import TWICE_S, Seen
from harness.pretrain_run import opening
from harness.records import RunRecord
from harness.resolve import jobs
from harness.study import build
from tests.harness.launched import Fake, Told, attempt

ASKED = {"budget": "6step", "evals": "knn", "train": {"snapshots": []}}
NO = HarnessError("sbatch refused it: no such account", "", "--account")


class World:
    """A study's folder with an executor; drivers of it are made at will."""

    def __init__(self, path, methods: str) -> None:
        self.place, self.complete, self.lines = store.Study(path), set(), []
        self.study = build({**ASKED, "methods": methods})
        self.todo, self.fake = jobs(self.study), Fake(self.place)
        self.driver = self.another()

    def another(self) -> Driver:
        truth = Told(self.study, self.place, self.todo, complete_ones=self.complete)
        return Driver(truth, self.fake, "/code", say=self.lines.append)

    def batches(self) -> list[tuple[str, list[str], object]]:
        """Stage, methods and dependency of what was submitted, in order; of a dependency the stages it names."""
        named = {batch.name: stage for batch, _, stage, _ in self.fake.submitted}
        return [
            (
                stage,
                [self.short(name) for name in batch.tasks],
                after and (after[0], [named.get(b, b) for b in after[1]]),
            )
            for batch, _, stage, after in self.fake.submitted
        ]

    def short(self, name: str) -> str:
        kind, _, key = name.partition(" ")
        return f"{kind.removeprefix('evaluate-')[:3]} {key.partition('-')[0]}".strip()

    def task(self, short: str):
        return next(task for task in self.driver.tasks if self.short(task.name) == short)

    def finish(self, *shorts: str) -> None:
        for short in shorts:
            task = self.task(short)
            self.complete.add(task.name)
            Attempts(self.place, task).ended(Attempts(self.place, task).last().attempt, End(state="done"))


@pytest.fixture
def world(tmp_path):
    return lambda methods: World(tmp_path / "s", methods)


def test_the_first_round_submits_everything_that_can_be_told_to_wait(world):
    w = world("mae,ddae")
    w.driver.round()
    pretrain = ("aftercorr", ["pretrain"])
    assert w.batches() == [
        ("pretrain", ["pre mae", "pre ddae"], None),
        ("references", ["ref digits"], None),
        ("evaluate", ["0.0 mae", "0.0 ddae"], pretrain),
        ("evaluate", ["1.0 mae", "1.0 ddae"], pretrain),
        ("tables", ["tab"], ("afterany", ["pretrain", "references", "evaluate", "evaluate"])),
    ]
    assert all(attempts == [1] * len(attempts) for _, attempts, _, _ in w.fake.submitted)
    w.driver.round()
    assert len(w.fake.submitted) == 5, "and the second one nothing"


def test_readers_come_after_the_evaluation_of_their_source_one_batch_each(world):
    w = world("ddae,difformer,diffeed")
    w.driver.round()
    found = [batch for batch in w.batches() if batch[0] == "evaluate"]
    assert [shorts for _, shorts, _ in found] == [
        ["0.0 ddae"], ["1.0 ddae"], ["0.0 difformer"], ["0.0 diffeed"], ["1.0 difformer"], ["1.0 diffeed"],
    ]  # fmt: skip
    assert [after for _, _, after in found] == [("aftercorr", [stage]) for stage in ["pretrain"] * 2 + ["evaluate"] * 4]
    by_name = {batch.name: batch.tasks for batch, *_ in w.fake.submitted}
    for batch, _, stage, after in w.fake.submitted:
        if stage == "evaluate":
            (needed,) = after[1]
            assert w.task(w.short(batch.tasks[0])).needs[-1] == by_name[needed][0]


def test_readers_wait_where_indices_do_not_match_and_are_submitted_when_they_can_run(world):
    w = world("mae,ddae,difformer")
    w.driver.round()
    assert not [batch for batch in w.batches() if "difformer" in str(batch[1])]
    w.finish("pre mae", "pre ddae", "1.0 ddae")
    w.driver.round()
    assert ("evaluate", ["1.0 difformer"], None) in w.batches()
    assert w.batches()[-1] == ("tables", ["tab"], ("afterany", ["evaluate"]))


def test_nothing_is_told_to_wait_for_a_batch_without_an_id(world):
    w = world("mae")
    w.fake.ids = False
    w.driver.round()
    assert [stage for stage, _, _ in w.batches()] == ["pretrain", "references", "tables"]
    w.fake.ids = True
    w.driver.round()
    assert [(stage, after) for stage, _, after in w.batches()][3:5] == [("evaluate", ("aftercorr", ["pretrain"]))] * 2


def test_an_executor_that_cannot_chain_is_given_what_is_ready(world):
    w = world("mae")
    w.fake.chains = False
    w.driver.round()
    assert [stage for stage, _, _ in w.batches()] == ["pretrain", "references"]
    w.finish("pre mae")
    w.driver.round()
    assert [stage for stage, _, _ in w.batches()][2:] == ["evaluate", "evaluate"]


def test_no_array_is_larger_than_the_cluster_takes(world):
    w = world("mae,ddae")
    w.fake.largest = 1
    w.driver.round()
    assert all(len(shorts) == 1 for _, shorts, _ in w.batches())
    assert sum(stage == "evaluate" for stage, _, _ in w.batches()) == 4
    for batch, _, stage, after in w.fake.submitted:
        if stage == "evaluate":
            assert Batches(w.place).read(after[1][0]).tasks == [w.task(w.short(batch.tasks[0])).needs[0]]


def test_a_refused_submission_lets_its_claims_go_and_keeps_what_was_taken(world):
    w = world("mae")
    w.fake.refuse = lambda batch: NO if batch.name.startswith("evaluate") else None
    with pytest.raises(HarnessError, match="no such account"):
        w.driver.round()
    assert [stage for stage, _, _ in w.batches()] == ["pretrain", "references", "tables"], "a job goes on from there"
    end = Attempts(w.place, w.task("0.0 mae")).end(1)
    assert (end.kind, end.message) == ("void", "sbatch refused it: no such account")
    w.fake.refuse = lambda batch: None
    w.driver.round()
    assert sum(stage == "evaluate" for stage, _, _ in w.batches()) == 2
    assert [s.state for s in w.driver.look().values()] == ["queued"] * 4


def test_a_submission_that_may_have_worked_is_not_let_go(world):
    w = world("mae")
    w.fake.refuse = lambda batch: Unreachable("SLURM's controller does not answer")
    with pytest.raises(Unreachable):
        w.driver.round()
    assert Attempts(w.place, w.task("pre mae")).end(1) is None
    w.fake.refuse = lambda batch: None
    w.another().round()
    assert "pretrain" not in [stage for stage, _, _ in w.batches()], "the queue is asked for it first"


def test_a_closing_job_that_is_refused_does_not_end_the_command(world):
    w = world("mae")
    w.fake.refuse = lambda batch: NO if batch.tasks == ["tables"] else None
    w.driver.round()
    assert any("no such account" in line and "resume" in line for line in w.lines)
    assert not w.driver.is_closed() and "`resume` makes the tables" in left(w.driver)
    w.fake.refuse = lambda batch: None
    w.fake.seen[w.fake.submitted[0][0].name, 0] = Seen(False, word="NODE_FAIL", kind="node")
    w.driver.round()
    assert w.driver.is_closed() and "the last one makes the tables" in left(w.driver)


@pytest.mark.parametrize("gone", ["cancelled", "never submitted"])
def test_living_jobs_get_one_that_goes_on_after_them_where_theirs_is_gone(world, monkeypatch, gone):
    """A command that was killed before it submitted it leaves none; typed again, it makes one and no more."""
    w = world("mae")
    if gone == "never submitted":
        monkeypatch.setattr(w.driver, "_submit_closing", lambda made: None)
    w.driver.round()
    if gone == "cancelled":
        (closing,) = Batches(w.place).closing()
        w.fake.seen[closing, 0] = Seen(False, word="CANCELLED by 1000", kind="cancelled")
        assert not w.driver.is_closed()
    again, many = w.another(), len(w.fake.submitted)
    again.round()
    assert again.closed and again.is_closed() and len(w.fake.submitted) == many + 1
    stage, _, (kind, stages) = w.batches()[-1]
    assert (stage, kind, sorted(stages)) == ("tables", "afterany", ["evaluate", "evaluate", "pretrain", "references"])
    again.round()
    assert len(w.fake.submitted) == many + 1


def test_the_closing_job_itself_is_not_the_one_that_goes_on(world):
    w = world("mae")
    w.driver.round()
    inside = w.another()
    (inside.inside,) = Batches(w.place).closing()
    assert w.driver.is_closed() and not inside.is_closed()
    inside.round()
    assert w.batches()[-1][0] == "tables" and inside.is_closed()
    newest = Batches(w.place).closing()[0]
    w.fake.seen[newest, 0] = Seen(True, running=True)
    assert w.driver.is_closed() and not inside.is_closed(), "two that run would each leave the rest to the other"


def test_a_closing_job_that_an_outage_swallowed_is_submitted_again(world):
    w = world("mae")
    w.fake.refuse = lambda batch: Unreachable("no controller") if batch.tasks == ["tables"] else None
    w.driver.round()
    assert not w.driver.closed and "`resume` makes the tables" in left(w.driver)
    w.fake.refuse = lambda batch: None
    w.driver.round()
    assert w.driver.closed and w.batches()[-1][0] == "tables"


def test_two_drivers_at_once_submit_nothing_twice(world):
    w = world("mae,ddae,umd,lmd,dit")
    start = threading.Barrier(4)

    def drive(driver: Driver) -> None:
        start.wait()
        driver.round()

    threads = [threading.Thread(target=drive, args=(w.another(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    w.driver.round()
    waiting = {name for name, s in w.driver.look().items() if s.state == "waiting"}
    for task in w.driver.tasks:
        claims = Attempts(w.place, task).all()
        if not claims:  # the runs' array was claimed by several: indices match no more, and it waits for the run
            assert task.stage == "evaluate" and task.name in waiting, task.name
            continue
        assert [claim.attempt for claim in claims] == [1], task.name
        (claim,) = claims
        mine = [
            (batch.name, index)
            for batch, *_ in w.fake.submitted
            for index, name in enumerate(batch.tasks)
            if name == task.name and (batch.name, index) == (claim.batch, claim.index)
        ]
        assert len(mine) == 1, "in one batch that was submitted, at the place its claim names"


def test_what_was_lost_is_submitted_again_alone(world):
    w = world("mae,ddae")
    w.driver.round()
    w.fake.seen[w.fake.submitted[0][0].name, 1] = Seen(False, word="NODE_FAIL", kind="node")
    w.driver.round()
    assert w.batches()[5] == ("pretrain", ["pre ddae"], None)
    assert w.fake.submitted[5][1] == [2], "its second attempt"


def test_the_last_look_goes_on_while_it_is_uncertain_whether_a_job_is_lost(world):
    w, now = world("mae"), [0.0]
    w.driver.look.clock = lambda: now[0]
    attempt(w.place, w.task("pre mae"), 1)
    w.fake.wait = lambda s: now.__setitem__(0, now[0] + s)
    settle(w.driver)
    assert TWICE_S <= now[0] <= 2 * TWICE_S
    assert ("pretrain", ["pre mae"], None) in w.batches()


def test_a_job_that_was_cancelled_elsewhere_is_ended_once(world):
    w = world("mae")
    w.driver.round()
    Attempts(w.place, w.task("pre mae")).ended(1, End(state="stopped", kind="cancelled"))
    w.driver.round()
    w.driver.round()
    assert w.fake.cancelled == [Attempts(w.place, w.task("pre mae")).last()]


@pytest.mark.parametrize(("state", "shown"), [("running", "interrupted"), ("finished", "finished")])
def test_a_run_that_was_cancelled_while_it_trained_is_running_no_more(world, state, shown):
    w = world("mae")
    w.driver.round()
    task = w.task("pre mae")
    record = opening(w.todo[0], None).model_copy(update={"state": state})
    store.write(w.place.run(task.key).record, record)
    Attempts(w.place, task).ended(1, End(state="stopped", kind="cancelled"))
    for key in w.fake.seen:
        w.fake.seen[key] = Seen(False, word="CANCELLED by 1000", kind="cancelled")
    w.driver.round()
    assert store.read_as(RunRecord, w.place.run(task.key).record).state == shown, "while others may go on"


def test_a_run_that_came_to_its_end_after_it_was_given_up_is_not_marked_as_failed(world):
    w = world("mae")
    task = w.task("pre mae")
    for number in (1, 2, 3):
        attempt(w.place, task, number, End(state="failed", kind="error", message="RuntimeError: no"))
    standings = w.driver.look()
    record = opening(w.todo[0], None).model_copy(update={"state": "finished"})
    store.write(w.place.run(task.key).record, record)
    w.driver.failures(standings)
    assert store.read_as(RunRecord, w.place.run(task.key).record).state == "finished"
    assert not w.place.run(task.key).error.exists()


def test_failed_runs_are_recorded_with_the_end_of_their_log_and_so_are_their_readers(world):
    w = world("mae,ddae,difformer")
    task = w.task("pre ddae")
    for number in (1, 2, 3):
        claim = attempt(w.place, task, number)
        write_atomic(Batches(w.place).path(claim.batch) / str(1000 + number) / "0_log.err", "the disk fell off\n")
        w.fake.seen[claim.batch, 0] = Seen(False, word="SLURM ended it: FAILED", kind="killed")
        standings = w.driver.look()
    w.complete.update(t.name for t in w.driver.tasks if "mae-" in t.name or t.stage == "references")
    standings = w.another().look()
    assert over(standings)
    (line,) = w.driver.failures(standings)
    assert line.startswith("pretrain ddae digits") and "the disk fell off" in line
    for job in (job for job in w.todo if job.cell.method in ("ddae", "difformer")):
        record = store.read_as(RunRecord, w.place.run(job.key).record)
        assert (record.state, record.message, record.attempts) == ("failed", "SLURM ended it: FAILED", 3)
    assert "the disk fell off" in w.place.run(task.key).error.read_text()


def test_watching_ends_when_everything_is_over(world):
    w = world("mae")
    shown = []

    def show(standings) -> None:
        shown.append({s.state for s in standings.values()})
        w.finish(*[w.short(task.name) for task in w.driver.tasks])

    assert over(watch(w.driver, show, every_s=0))
    assert shown[-1] == {"done"} and len(shown) == 2
