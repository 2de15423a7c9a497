"""Claims, ends and leases: what two commands or two copies of a job can do to each other."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from harness import store
from harness.errors import HarnessError
from harness.launch import folders
from harness.launch.folders import Attempts, Batches, Claim, End, Submitted, Superseded
from tests.harness.launched import EVALUATE, PRETRAIN, REFERENCES, batch

DONE, FAILED = End(state="done"), End(state="failed", kind="error", message="no")
CANCELLED = End(state="stopped", kind="cancelled")
DEAD = End(state="failed", kind="node", message="SLURM ended it: NODE_FAIL")


@pytest.fixture
def place(tmp_path) -> store.Study:
    return store.Study(tmp_path / "s")


@pytest.fixture
def attempts(place) -> Attempts:
    return Attempts(place, PRETRAIN)


def claim(number: int, by: str = "b", index: int = 0) -> Claim:
    return Claim(attempt=number, batch=by, index=index)


@pytest.mark.parametrize("links", [True, False], ids=["by link", "no hard links"])
def test_of_many_that_claim_one_attempt_exactly_one_wins(place, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    claimants, rounds, wins = 6, 40, []
    start = threading.Barrier(claimants)

    def claimant(name: str) -> None:
        for number in range(1, rounds + 1):
            start.wait()
            if Attempts(place, PRETRAIN).claim(claim(number, name)):
                wins.append((number, name))

    threads = [threading.Thread(target=claimant, args=(str(n),)) for n in range(claimants)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in wins) == list(range(1, rounds + 1))
    held = {found.attempt: found.batch for found in Attempts(place, PRETRAIN).all()}
    assert held == dict(wins), "what is written is the winner's"
    assert not list(place.path.rglob("*.tmp"))


def test_a_link_whose_answer_got_lost_was_made_all_the_same(attempts, monkeypatch):
    real = os.link

    def forgetful(source, target):
        real(source, target)
        raise FileExistsError(17, "File exists")  # NFS: the request was sent twice

    monkeypatch.setattr(os, "link", forgetful)
    assert attempts.claim(claim(1))
    monkeypatch.undo()
    assert not attempts.claim(claim(1, "another"))


def test_the_newest_attempt_is_the_last_and_tasks_do_not_mix(place, attempts):
    for number in (1, 2, 10, 1000):
        attempts.claim(claim(number))
    Attempts(place, EVALUATE).claim(claim(7))
    assert attempts.last().attempt == 1000 and [c.attempt for c in attempts.all()] == [1, 2, 10, 1000]
    assert Attempts(place, EVALUATE).last().attempt == 7
    assert Attempts(place, REFERENCES).last() is None
    assert attempts.of(3) is None


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        (None, FAILED, FAILED),
        (FAILED, DONE, DONE),
        (DONE, FAILED, DONE),
        (DONE, CANCELLED, DONE),
        (CANCELLED, FAILED, CANCELLED),
        (CANCELLED, End(state="stopped", kind="signal"), CANCELLED),
        (CANCELLED, DONE, DONE),
        (FAILED, CANCELLED, CANCELLED),
    ],
)
def test_what_is_done_stays_done_and_what_was_cancelled_cancelled(attempts, before, after, stays):
    if before is not None:
        attempts.ended(1, before)
    attempts.ended(1, after)
    assert attempts.end(1) == stays


@pytest.mark.parametrize(
    ("before", "stays"),
    [
        (None, DEAD),
        (End(state="stopped", kind="signal"), DEAD),
        (FAILED, FAILED),
        (DONE, DONE),
        (CANCELLED, CANCELLED),
    ],
)
def test_who_finds_a_job_dead_does_not_speak_over_its_own_last_word(attempts, before, stays):
    if before is not None:
        attempts.ended(1, before)
    assert attempts.found_dead(1, DEAD) == attempts.end(1) == stays


def test_a_last_word_that_a_slow_file_system_still_hides_is_not_lost(attempts, monkeypatch):
    attempts.ended(1, DONE)
    with monkeypatch.context() as slow:
        slow.setattr(Attempts, "end", lambda self, attempt: None)
        assert attempts.found_dead(1, DEAD) is None, "it is not known yet what it says"
    assert attempts.end(1) == DONE


def test_commands_that_forgive_at_once_forgive_what_each_of_them_meant(place):
    one, two = Batches(place), Batches(place)
    one.forgive({"a": 1, "b": 3})
    two.forgive({"a": 2, "b": 1})
    assert one.forgiven() == two.forgiven() == {"a": 2, "b": 3}


def test_a_copy_that_lives_on_finds_another_token_and_a_later_attempt_may_not_be_overtaken(attempts):
    old = attempts.take(1)
    old()
    again = attempts.take(1)  # the same attempt, requeued while its first copy lives
    again()
    with pytest.raises(Superseded):
        old()
    attempts.take(2)()
    with pytest.raises(Superseded):
        again()
    with pytest.raises(Superseded):
        attempts.take(1)
    folders.Guard()()  # of a process that writes nothing: never superseded


def test_being_superseded_is_no_failure_to_whoever_records_failures(attempts):
    guard = attempts.take(1)
    attempts.take(2)
    with pytest.raises(Superseded):
        try:
            guard()
        except Exception as error:
            pytest.fail(f"recorded as a failure: {error!r}")


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def test_time_in_the_queue_is_summed_over_attempts_and_never_negative(attempts):
    assert attempts.take(1, ago(100)).waited_s == pytest.approx(100, abs=5)
    attempts.ended(1, End(state="stopped", kind="signal", at=ago(30)))
    lease = folders.read(folders.Lease, attempts.folder / "pretrain.lease.json")
    folders.write_atomic(
        attempts.folder / "pretrain.lease.json", lease.model_copy(update={"at": ago(80)}).model_dump_json()
    )
    assert attempts.take(1, ago(100)).waited_s == pytest.approx(130, abs=5), "requeued: since it stopped"
    assert attempts.take(2, ago(-500)).waited_s == pytest.approx(130, abs=5), "a clock that is ahead"


@pytest.mark.parametrize(("kind", "stays"), [("signal", False), ("cancelled", True)])
def test_a_job_that_begins_its_next_turn_has_not_ended_unless_a_person_cancelled_it(attempts, kind, stays):
    attempts.take(1)
    attempts.ended(1, End(state="stopped", kind=kind))
    attempts.take(1)
    assert (attempts.end(1) is not None) == stays


def test_a_job_that_was_killed_waited_since_its_last_sign_of_life(attempts):
    attempts.take(1, ago(1000))
    lease = folders.read(folders.Lease, attempts.folder / "pretrain.lease.json")
    changed = lease.model_copy(update={"at": ago(900), "waited_s": 100.0})
    folders.write_atomic(attempts.folder / "pretrain.lease.json", changed.model_dump_json())
    log = attempts.folder.parent / "log.jsonl"
    log.write_text("{}\n")
    os.utime(log, (time.time() - 40,) * 2)
    assert attempts.take(1, ago(1000)).waited_s == pytest.approx(140, abs=5)


@pytest.mark.parametrize(
    "content", ['{"attempt": 1, "bat', "[]", '{"attempt": 1, "batch": "b", "index": 0, "x": 1}', "\xff"]
)
def test_a_file_that_is_not_ours_is_told_with_what_to_do(attempts, content):
    path = attempts.folder / "pretrain.001.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(HarnessError, match="does not fit") as told:
        attempts.last()
    assert told.value.next_step == f"delete {path} and repeat the command"


def test_a_claim_that_is_just_being_written_is_waited_for(attempts):
    path = attempts.folder / "pretrain.001.json"
    path.parent.mkdir(parents=True)
    path.touch()
    threading.Timer(0.1, lambda: path.write_text(claim(1).model_dump_json())).start()
    assert attempts.last() == claim(1)


def test_batches_are_known_with_their_ids(place):
    batches = Batches(place)
    assert batches.all() == [] and batches.read("b") is None and batches.forgiven() == {}
    batches.write(batch("b", PRETRAIN, EVALUATE))
    assert batches.all() == ["b"] and batches.read("b").tasks == [PRETRAIN.name, EVALUATE.name]
    assert batches.submitted("b") is None
    batches.write_submitted("b", Submitted(job="17", array=True))
    assert batches.submitted("b") == Submitted(job="17", array=True)
    assert folders.batch_name("x") != folders.batch_name("x")


def test_turns_that_the_time_limit_ends_are_counted_until_the_task_gets_further(attempts):
    for turn in (1, 2):
        attempts.take(1, reached=5)
        assert attempts.fruitless(1, 5) == turn
    attempts.take(1, reached=5)
    assert attempts.fruitless(1, 6) == 0, "it did get further in this one"
    attempts.take(1, reached=6)
    assert attempts.fruitless(1, 6) == 1
    attempts.take(2, reached=6)
    assert attempts.fruitless(2, 6) == 2, "where a job may not requeue itself, each turn is an attempt"
    assert attempts.fruitless(1, 6) == 0, "the lease is the later attempt's"
    Batches(attempts.place).forgive({PRETRAIN.name: 2})
    attempts.take(3, reached=6)
    assert attempts.fruitless(3, 6) == 1, "the user asked anew, with more time perhaps"
