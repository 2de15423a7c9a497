"""Where each task stands: every verdict, from a table of what the executor sees and real folders."""

from __future__ import annotations

import os

import pytest

from harness import store
from harness.files import write_atomic
from harness.launch.folders import Attempts, Batches, End
from harness.launch.standing import MOST_TRIES, OUTAGE_S, SUBMITTING_S, TWICE_S, UNSEEN, Look, Seen
from harness.launch.tasks import Task
from tests.harness.launched import EVALUATE, PRETRAIN, Fake, attempt, batch, ended_process

READER = Task("evaluate", "reader-0", 1.0, (PRETRAIN.name, EVALUATE.name))
ERROR = End(state="failed", kind="error", message="RuntimeError: no")
RUNNING = Seen(True, running=True, word="running", where="n1")


class World:
    """A study's folder, a clock, and what executor and store say."""

    def __init__(self, path) -> None:
        self.place, self.now, self.complete = store.Study(path), 0.0, set()
        self.executor = Fake(self.place)
        self.look = self.looker()

    def looker(self, tries: int = 3) -> Look:
        """Of a command that begins now."""
        tasks = [PRETRAIN, EVALUATE, READER]
        return Look(self.place, tasks, lambda t: t.name in self.complete, self.executor, tries, lambda: self.now)

    def state(self, task: Task = PRETRAIN) -> str:
        return self.look()[task.name].state

    def why(self, task: Task = PRETRAIN) -> str:
        return self.look()[task.name].why

    def sees(self, claim, seen: Seen | None) -> None:
        self.executor.seen[claim.batch, claim.index] = seen

    def gets_to(self, step: int) -> None:
        write_atomic(self.place.run(PRETRAIN.key).checkpoints / f"step-{step:09d}-ab.pt", b"x")

    def fails(self, number: int, end: End = ERROR, reached: int = 0) -> None:
        attempt(self.place, PRETRAIN, number, end, reached=reached)


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "s")


def test_what_nobody_began_is_missing_and_what_needs_it_waits(world):
    assert [s.state for s in world.look().values()] == ["missing", "waiting", "waiting"]
    world.complete.add(PRETRAIN.name)
    assert [s.state for s in world.looker()().values()] == ["done", "missing", "waiting"]


def test_a_job_that_the_executor_knows_is_alive_and_where_it_runs_is_told(world):
    claim = attempt(world.place, PRETRAIN, 1)
    world.sees(claim, Seen(True, word="pending (Resources)"))
    assert (world.state(), world.why()) == ("queued", "pending (Resources)")
    world.sees(claim, RUNNING)
    assert (world.state(), world.look()[PRETRAIN.name].where) == ("running", "n1")
    Attempts(world.place, PRETRAIN).ended(1, End(state="stopped", kind="signal"))
    assert world.state() == "running", "it saved itself and goes back into the queue"


def test_an_absence_is_believed_only_after_two_looks_some_seconds_apart(world):
    claim = attempt(world.place, PRETRAIN, 1)
    assert (world.state(), world.why()) == ("queued", UNSEEN)
    world.now = TWICE_S - 0.1
    assert world.state() == "queued"
    world.sees(claim, RUNNING)
    assert world.state() == "running"
    world.sees(claim, None)
    world.now += 100
    assert world.state() == "queued", "the first look that misses it again"
    world.now += TWICE_S
    assert world.state() == "missing"
    end = Attempts(world.place, PRETRAIN).end(1)
    assert (end.state, end.kind) == ("failed", "lost")


def test_another_command_that_looks_once_believes_no_absence(world):
    attempt(world.place, PRETRAIN, 1)
    for world.now in (0.0, 1000.0, 2000.0):
        assert world.looker()()[PRETRAIN.name].state == "queued"


@pytest.mark.parametrize("kind", ["node", "preempted", "signal"])
def test_what_the_cluster_took_costs_nothing_and_goes_on_however_often(world, kind):
    for number in range(1, 8):
        world.sees(attempt(world.place, PRETRAIN, number), Seen(False, word="SLURM ended it", kind=kind))
        assert world.state() == "missing"
    world.fails(8)
    world.fails(9)
    assert world.state() == "missing", "two failures, and seven that do not count"
    world.fails(10)
    assert world.state() == "failed"


def test_a_job_that_only_the_time_limit_ends_is_tried_as_often_as_one_that_fails_unless_it_gets_further(world):
    for number in range(1, 5):
        claim = attempt(world.place, PRETRAIN, number, reached=100 * (number > 1))
        world.sees(claim, Seen(False, word="SLURM ended it: TIMEOUT", kind="time limit"))
        if number == 1:
            world.gets_to(100)
        assert world.state() == ("missing" if number < 4 else "failed")


def test_a_task_that_is_always_taken_away_ends_after_very_many_attempts(world):
    attempt(world.place, PRETRAIN, MOST_TRIES, End(state="stopped", kind="signal"))
    assert world.state() == "failed"


def test_three_failures_of_one_kind_without_progress_are_failed(world):
    for number in (1, 2):
        world.fails(number)
        assert world.state() == "missing"
    world.fails(3)
    assert (world.state(), world.why()) == ("failed", "RuntimeError: no")
    assert world.looker(tries=4)()[PRETRAIN.name].state == "missing"


def test_with_progress_between_them_they_are_not(world):
    world.fails(1, reached=0)
    world.gets_to(100)
    world.fails(2, reached=100)
    world.fails(3, reached=100)
    assert world.state() == "missing"
    world.fails(4, reached=100)
    assert world.state() == "failed"


def test_the_attempt_that_got_further_before_it_failed_is_none_of_them(world):
    world.fails(1)
    world.fails(2)
    world.fails(3)
    world.gets_to(50)
    assert world.state() == "missing"


def test_errors_that_say_something_else_are_of_another_kind_but_for_their_numbers(world):
    for number, said in enumerate(["ValueError: a", "ValueError: a", "KeyError: b", "KeyError: b"], 1):
        world.fails(number, End(state="failed", kind="error", message=said))
    assert world.state() == "missing"
    for number, said in enumerate(["MemoryError: 512 MB at 0x7f3a", "MemoryError: 513 MB at 0x7fbb"], 5):
        world.fails(number, End(state="failed", kind="error", message=said))
    assert world.state() == "missing"
    world.fails(7, End(state="failed", kind="error", message="MemoryError: 7 MB at 0x1"))
    assert world.state() == "failed"


def test_killed_and_failed_are_different_kinds(world):
    for number in (1, 2):
        world.sees(attempt(world.place, PRETRAIN, number), Seen(False, word="FAILED", kind="killed"))
        assert world.state() == "missing"
    world.fails(3)
    assert world.state() == "missing"


def test_a_late_word_that_it_is_done_wins_over_an_earlier_verdict(world):
    attempt(world.place, PRETRAIN, 1)
    world.state()
    world.now = TWICE_S
    assert world.state() == "missing", "lost"
    Attempts(world.place, PRETRAIN).ended(1, End(state="done"))
    world.complete.add(PRETRAIN.name)
    assert world.state() == "done" and world.state(EVALUATE) == "missing"


def test_and_also_when_the_next_attempt_waits_in_the_queue(world):
    attempt(world.place, PRETRAIN, 1, End(state="failed", kind="lost"))
    world.sees(attempt(world.place, PRETRAIN, 2), Seen(True, word="pending"))
    assert world.state() == "queued"
    Attempts(world.place, PRETRAIN).ended(1, End(state="done"))
    world.complete.add(PRETRAIN.name)
    assert world.state() == "done"


def test_a_job_that_ends_while_the_queue_is_asked_is_not_submitted_again(world):
    claim = attempt(world.place, PRETRAIN, 1)

    def look(batches):
        Attempts(world.place, PRETRAIN).ended(1, End(state="done"))
        world.complete.add(PRETRAIN.name)
        return {(claim.batch, 0): Seen(False, kind="killed")}.get

    world.executor.look = look
    assert world.state() == "done"


def test_done_is_what_the_store_says_not_the_job(world):
    attempt(world.place, PRETRAIN, 1, End(state="done"))
    assert world.state() == "missing"


def test_what_needs_a_failed_pre_training_is_skipped(world):
    for number in (1, 2, 3):
        world.fails(number)
    assert [s.state for s in world.look().values()] == ["failed", "skipped", "skipped"]
    assert PRETRAIN.name in world.why(EVALUATE)


def test_a_reader_is_evaluated_although_the_evaluation_of_its_source_failed(world):
    world.complete.add(PRETRAIN.name)
    for number in (1, 2, 3):
        attempt(world.place, EVALUATE, number, ERROR)
    assert [s.state for s in world.look().values()] == ["done", "failed", "missing"]


def test_one_whose_need_did_not_come_waits_for_the_next_at_no_cost(world):
    for number in range(1, 6):
        attempt(world.place, PRETRAIN, number, End(state="failed", kind="node"))
        chained(world, number, after=number)  # by SLURM: the dependency was not fulfilled
        assert world.state(EVALUATE) == "waiting"
    assert Attempts(world.place, EVALUATE).end(5).kind == "dependency"
    attempt(world.place, EVALUATE, 6, End(state="stopped", kind="dependency", message="not pre-trained"))
    world.complete.add(PRETRAIN.name)
    assert world.looker()()[EVALUATE.name].state == "missing"


def test_what_a_person_cancelled_is_not_tried_again_until_somebody_asks(world):
    world.sees(attempt(world.place, PRETRAIN, 1), Seen(False, word="CANCELLED by 0", kind="cancelled"))
    assert [s.state for s in world.look().values()] == ["cancelled", "skipped", "skipped"]
    world.looker().forgive()
    assert world.state() == "missing", "jobs and commands that look already know it, too"
    assert world.looker()()[PRETRAIN.name].state == "missing", "and those that look later"


def test_what_a_person_cancels_after_a_second_command_came_stays_cancelled(world):
    claim = attempt(world.place, PRETRAIN, 1)
    world.sees(claim, RUNNING)
    second = world.looker()
    second.forgive()
    world.sees(claim, Seen(False, word="CANCELLED by 0", kind="cancelled"))
    assert second()[PRETRAIN.name].state == world.looker()()[PRETRAIN.name].state == "cancelled"


def test_one_that_saved_itself_when_it_was_cancelled_is_cancelled(world):
    claim = attempt(world.place, PRETRAIN, 1, End(state="stopped", kind="signal"))
    world.sees(claim, Seen(False, word="CANCELLED by 0", kind="cancelled"))
    assert world.state() == "cancelled"


def test_a_cancelled_one_that_is_still_alive_is_told_apart(world):
    claim = attempt(world.place, PRETRAIN, 1, End(state="stopped", kind="cancelled"))
    world.sees(claim, RUNNING)
    standing = world.look()[PRETRAIN.name]
    assert standing.state == "running" and standing.cancelled


def test_failures_are_forgiven_when_the_user_asks_again_and_count_anew_from_there(world):
    for number in (1, 2, 3):
        world.fails(number)
    assert world.state() == "failed"
    world.look.forgive()
    for number in (4, 5):
        assert world.state() == "missing"
        world.fails(number)
    assert world.looker()()[PRETRAIN.name].state == "missing", "a later look counts from the same place"
    world.fails(6)
    assert world.state() == "failed"


@pytest.mark.parametrize("reused", [False, True])
def test_a_batch_whose_submitter_died_before_it_had_an_id_is_void_soon(world, reused):
    claim = attempt(world.place, PRETRAIN, 1, submitted=False)
    who = {"pid": os.getpid(), "born": "another boot 17"} if reused else {"pid": ended_process()}
    Batches(world.place).write(batch(claim.batch, PRETRAIN, host=os.uname().nodename, **who))
    assert world.state() == "queued"
    world.now = TWICE_S
    assert world.state() == "missing"
    assert Attempts(world.place, PRETRAIN).end(1).kind == "void"


@pytest.mark.parametrize(("host", "patience_s"), [("elsewhere", SUBMITTING_S), (os.uname().nodename, OUTAGE_S)])
def test_one_whose_submitter_may_live_is_given_more_time(world, host, patience_s):
    claim = attempt(world.place, PRETRAIN, 1, submitted=False)
    Batches(world.place).write(batch(claim.batch, PRETRAIN, host=host, pid=os.getpid()))
    assert world.state() == "queued"
    world.now = patience_s - 0.1
    assert world.state() == "queued"
    world.now = patience_s
    assert world.state() == "missing"


def test_what_killed_it_is_told_with_the_end_of_its_log(world):
    claim = attempt(world.place, PRETRAIN, 1)
    folder = Batches(world.place).path(claim.batch) / "1001"
    write_atomic(folder / "0_log.out", "went well\n")
    write_atomic(folder / "0_log.err", "submitit INFO (now) - Starting\nout of luck\n")
    world.sees(claim, Seen(False, word="SLURM ended it: FAILED", kind="killed"))
    world.state()
    assert Attempts(world.place, PRETRAIN).end(1).message == "SLURM ended it: FAILED\nout of luck"


def chained(world: World, number: int, after: int) -> None:
    """An evaluation that was to come after that attempt at the run, and that SLURM shows as cancelled."""
    world.sees(attempt(world.place, EVALUATE, number, after=after), Seen(False, word="CANCELLED", kind="cancelled"))


def test_a_person_may_cancel_what_waits_for_a_run_that_is_alive(world):
    world.sees(attempt(world.place, PRETRAIN, 1), RUNNING)
    chained(world, 1, after=1)
    assert [s.state for s in world.look().values()] == ["running", "cancelled", "waiting"]


def test_also_where_that_run_has_saved_itself_and_goes_back_into_the_queue(world):
    world.sees(attempt(world.place, PRETRAIN, 1, End(state="stopped", kind="signal")), RUNNING)
    chained(world, 1, after=1)
    assert world.state(EVALUATE) == "cancelled"


def test_what_slurm_ended_with_its_need_is_no_persons_doing_although_the_next_attempt_came_through(world):
    attempt(world.place, PRETRAIN, 1, End(state="failed", kind="node"))
    attempt(world.place, PRETRAIN, 2, End(state="done"))
    world.complete.add(PRETRAIN.name)
    chained(world, 1, after=1)
    assert world.state(EVALUATE) == "missing"
    assert Attempts(world.place, EVALUATE).end(1).kind == "dependency"


def test_and_it_is_not_judged_before_it_is_certain_what_became_of_its_need(world):
    attempt(world.place, PRETRAIN, 1)  # nobody knows it any more
    chained(world, 1, after=1)
    assert (world.state(EVALUATE), world.why(EVALUATE)) == ("queued", UNSEEN)
    world.now = TWICE_S
    assert world.state(EVALUATE) == "waiting"
    assert Attempts(world.place, EVALUATE).end(1).kind == "dependency"


@pytest.mark.parametrize("kind", ["memory", "no progress"])
def test_what_would_end_in_the_same_way_again_fails_at_once_unless_it_got_further(world, kind):
    world.fails(1, End(state="failed", kind=kind))
    assert world.state() == "failed"
    world.gets_to(100)
    assert world.state() == "missing"


def test_the_work_of_another_executor_is_over_whoever_has_its_number_now(world):
    claim = attempt(world.place, PRETRAIN, 1)
    Batches(world.place).write(batch(claim.batch, PRETRAIN, executor="another"))
    world.sees(claim, RUNNING)  # a job of another study, say
    assert world.state() == "missing"
    assert "begun in another way" in Attempts(world.place, PRETRAIN).end(1).message
