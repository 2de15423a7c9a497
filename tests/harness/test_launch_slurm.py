"""What SLURM is taken to say of a claim's job, and what it is told; the queue is a table, or shell scripts."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from submitit.core.utils import DelayedSubmission

from harness import store
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.launch import queue as queues
from harness.launch import submit
from harness.launch.folders import Attempts, Batches, Claim, Submitted
from harness.launch.options import Launch
from harness.launch.queue import Account, InQueue, Queue, Unreachable
from harness.launch.slurm import Slurm
from tests.harness.launched import EVALUATE, PRETRAIN, batch, called, programs


@dataclass
class Table(Queue):
    """A queue that is told what it says."""

    rows: list[InQueue] = field(default_factory=list)
    accounted: dict[str, Account] | None = field(default_factory=dict)
    asked: int = 0

    def jobs(self, patience_s: float | None = None) -> dict[str, InQueue]:
        return {row.id: row for row in self.rows}

    def accounts(self, ids) -> dict[str, Account] | None:
        self.asked += 1
        return self.accounted


@pytest.fixture
def place(tmp_path) -> store.Study:
    return store.Study(tmp_path / "s")


@pytest.fixture
def slurm(place) -> Slurm:
    batches = Batches(place)
    batches.write(batch("b", PRETRAIN, EVALUATE))
    batches.write_submitted("b", Submitted(job="17", array=True))
    return Slurm(place, Launch(), 0, 3600, Table(), every_s=0)


def row(id: str, state: str, reason: str = "None", name: str = "harness-b", nodes: str = "n1") -> InQueue:
    return InQueue(id, state, reason, nodes, name)


def seen(slurm: Slurm, index: int = 0, of: str = "b", after: int = 0):
    return slurm.look({of})(Claim(attempt=1, batch=of, index=index, after=after))


def test_cancel_ends_what_is_ours_and_alive_and_no_other_job_that_has_the_number(slurm, monkeypatch):
    slurm.queue.rows = [row("17_0", "RUNNING", name="harness-another"), row("17_1", "PENDING")]
    asked = []
    monkeypatch.setattr(slurm.queue, "cancel", asked.extend)
    slurm.every_s = 3600  # a look of just now is not what an end is decided by
    claims = [Claim(attempt=1, batch="b", index=index) for index in (0, 1, 2)]
    assert slurm.cancel(claims) == asked == ["17_1"]


def test_alive_is_what_the_queue_says_whatever_the_accounting_does(slurm):
    slurm.queue.accounted = {"17_0": Account("NODE_FAIL", "0:0", "harness-b")}
    slurm.queue.rows = [row("17_0", "PENDING", "BeginTime"), row("17_1", "RUNNING")]
    found = seen(slurm)
    assert found.alive and not found.running and found.word == "pending (BeginTime)"
    assert seen(slurm, 1).running and seen(slurm, 1).where == "n1"
    assert slurm.queue.asked == 0, "and it is not even asked"


@pytest.mark.parametrize(
    ("state", "code", "kind"),
    [
        ("NODE_FAIL", "0:0", "node"), ("PREEMPTED", "0:0", "preempted"), ("TIMEOUT", "0:0", "time limit"),
        ("CANCELLED", "0:0", "cancelled"), ("OUT_OF_MEMORY", "0:125", "memory"), ("FAILED", "12:0", "signal"),
        ("FAILED", "0:12", "signal"), ("FAILED", "1:0", "killed"), ("COMPLETED", "0:0", "killed"),
    ],
)  # fmt: skip
def test_how_a_job_ended_is_sorted_by_kind(slurm, state, code, kind):
    slurm.queue.accounted = {"17_0": Account(state, code, "harness-b")}
    assert (seen(slurm).alive, seen(slurm).kind) == (False, kind)
    slurm.queue.rows = [row("17_0", "FAILED" if state == "OUT_OF_MEMORY" else state)]
    assert seen(slurm).kind == kind, "and also while the queue still shows it"


@pytest.mark.parametrize(
    ("reason", "said", "kind"),
    [
        ("DependencyNeverSatisfied", None, "dependency"), ("Dependency", None, "cancelled"),
        (None, "CANCELLED", "dependency"), (None, "CANCELLED by 1000", "cancelled"),
        ("Dependency", "CANCELLED by 1000", "cancelled"),
    ],
)  # fmt: skip
def test_what_slurm_ended_with_its_need_is_told_from_a_persons_scancel(slurm, reason, said, kind):
    slurm.queue.rows = [row("17_0", "CANCELLED", reason)] if reason else []
    slurm.queue.accounted = {"17_0": Account(said, "0:0", "harness-b")} if said else None
    assert (seen(slurm, after=1).alive, seen(slurm, after=1).kind) == (False, kind)


def test_a_job_that_the_time_limit_ended_says_what_would_help(slurm):
    slurm.queue.rows = [row("17_0", "TIMEOUT", "TimeLimit")]
    assert "a longer --time" in seen(slurm).word


def test_without_accounting_the_queue_alone_says_it(slurm):
    slurm.queue.accounted = None
    slurm.queue.rows = [row("17_0", "FAILED", "NonZeroExitCode"), row("17_1", "CANCELLED")]
    assert (seen(slurm).kind, seen(slurm, 1).kind) == ("killed", "cancelled")


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "REQUEUED", ""])
def test_what_only_the_accounting_takes_for_alive_is_unknown(slurm, state):
    slurm.queue.accounted = {"17_0": Account(state, "0:0", "harness-b")} if state else {}
    assert seen(slurm) is None


def test_a_number_that_was_given_to_another_job_is_not_ours(slurm):
    slurm.queue.rows = [row("17_0", "RUNNING", name="harness-other"), row("17_1", "FAILED", name="somebody")]
    slurm.queue.accounted = {"17_0": Account("RUNNING", "0:0", "harness-other")}
    assert seen(slurm) is None and seen(slurm, 1) is None
    slurm.queue.rows = []
    slurm.queue.accounted = {"17_0": Account("FAILED", "1:0", "harness-other")}
    assert seen(slurm) is None, "nor is its end"


def test_memory_is_known_by_the_log_where_no_cgroup_says_it(slurm, place):
    slurm.queue.rows = [row("17_0", "FAILED")]
    write_atomic(Batches(place).path("b") / "17_0" / "0_log.err", "error: Step exceeded memory limit, being killed\n")
    assert seen(slurm).kind == "memory"


def test_a_batch_whose_id_nobody_wrote_down_is_known_by_its_name(slurm, place):
    Batches(place).write(batch("c", PRETRAIN))
    Attempts(place, PRETRAIN).claim(Claim(attempt=3, batch="c", index=0))
    assert seen(slurm, of="c") is None
    slurm.queue.rows = [row("23", "RUNNING", name="harness-c")]
    assert seen(slurm, of="c").running
    assert Batches(place).submitted("c") == Submitted(job="23", array=False)
    assert handed(place, "c", "23") == (0, 3), "its command died before the job had its files"
    Batches(place).write(batch("d", PRETRAIN, EVALUATE))
    slurm.queue.rows = [row("24_1", "RUNNING", name="harness-d")]
    assert seen(slurm, 1, of="d").running and Batches(place).submitted("d").array


def test_the_accounting_is_asked_once_a_look_and_the_queue_no_oftener_than_it_may(slurm, monkeypatch):
    seen_by = slurm.look({"b"})
    for index in range(5):
        seen_by(Claim(attempt=1, batch="b", index=index))
    assert slurm.queue.asked == 1
    slurm.every_s, looks = 3600, []
    monkeypatch.setattr(slurm.queue, "jobs", lambda: looks.append(1) or {})
    for _ in range(5):
        seen(slurm)
    assert not looks and slurm.queue.asked == 1


def test_what_comes_after_what(slurm, place):
    Batches(place).write_submitted("one", Submitted(job="18", array=False))
    slurm.look({"b", "one", "unknown"})
    assert str(slurm.after("evaluate", ["b"], matching=True)) == "aftercorr:17"
    assert str(slurm.after("evaluate", ["one"], matching=True)) == "afterok:18"
    assert str(slurm.after("tables", ["b", "one", "unknown"], matching=False)) == "afterany:17:18"
    assert slurm.after("evaluate", ["unknown"], matching=True) is None


# -- submission, through submitit, to shell scripts --------------------------------------------------------------------

GONE = "Unable to contact slurm controller (connect failure)"
AWAY = f"echo 'sbatch: error: Batch job submission failed: {GONE}' >&2; exit 1"


@pytest.fixture
def given(place, tmp_path, monkeypatch):
    """Submit a batch of two to these programs; how often sbatch was called, and what was written down."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(queues.time, "sleep", lambda s: None)

    def give(sbatch: str, squeue: str = "exit 0", scancel: str = "exit 1"):
        folder = programs(
            tmp_path / "bin", monkeypatch, sbatch=sbatch, squeue=squeue, srun="exit 0", scancel=scancel
        )  # fmt: skip
        executor = Slurm(place, Launch(), 0, 3600, Queue(patience_s=0))
        error = None
        try:
            executor.submit(batch("new", PRETRAIN, EVALUATE), [1, 1], "pretrain")
        except HarnessError as told:
            error = told
        return error, len(called(folder, "sbatch")), Batches(place).submitted("new")

    return give


def test_a_batch_is_one_array_whose_id_is_written_down(given):
    assert given("echo 'Submitted batch job 4711'") == (None, 1, Submitted(job="4711", array=True))


def test_a_submission_that_worked_although_the_controller_went_away_is_not_made_twice(given, place):
    error, calls, submitted = given(
        AWAY, "echo '88_1|PENDING|None||harness-new'; echo '88_0|PENDING|None||harness-new'"
    )
    assert (error, calls, submitted) == (None, 1, Submitted(job="88", array=True))
    assert [handed(place, "new", f"88_{index}") for index in (0, 1)] == [(0, 1), (1, 1)], "its jobs find their work"


def handed(place: store.Study, batch: str, job: str) -> tuple[int, int]:
    """What the job finds that it is to do: its index and the attempt."""
    path = Batches(place).path(batch) / job / f"{job}_submitted.pkl"
    work = DelayedSubmission.load(path).function
    assert (work.study, work.batch) == (str(place.path.resolve()), batch)
    return work.index, work.attempt


def test_an_sbatch_that_was_taken_late_and_repeated_leaves_one_job(given, tmp_path):
    calls, cancelled = tmp_path / "bin" / "sbatch.calls", tmp_path / "cancelled"
    sbatch = f"if [ $(wc -l < {calls}) -lt 2 ]; then {AWAY}; fi\necho 'Submitted batch job 90'"
    squeue = f"[ $(wc -l < {calls}) -lt 2 ] || printf '%s||harness-new\\n' '89_0|PENDING|None' '90_0|PENDING|None'"
    assert given(sbatch, squeue, scancel=f'echo "$@" >> {cancelled}') == (None, 2, Submitted(job="90", array=True))
    assert cancelled.read_text() == "89\n"


@pytest.mark.parametrize(
    ("said", "passes"),
    [("Invalid job id 17", True), ("Kill job error on job id 17: Invalid job id specified", True), ("denied", False)],
)
def test_what_the_controller_has_forgotten_needs_no_end(tmp_path, monkeypatch, said, passes):
    programs(tmp_path / "bin", monkeypatch, scancel=f"echo 'scancel: error: {said}' >&2; exit 1")
    with nullcontext() if passes else pytest.raises(HarnessError, match="denied"):
        Queue().cancel(["17"])


def test_one_that_did_not_is_made_again_when_it_is_back(given, tmp_path):
    calls = tmp_path / "bin" / "sbatch.calls"
    sbatch = f"if [ $(wc -l < {calls}) -lt 2 ]; then {AWAY}; fi\necho 'Submitted batch job 4712'"
    assert given(sbatch) == (None, 2, Submitted(job="4712", array=True))


def test_an_outage_without_end_is_told_as_one(given):
    error, _, submitted = given(AWAY, "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert isinstance(error, Unreachable) and submitted is None


@pytest.mark.parametrize(
    ("said", "next_step"),
    [
        ("invalid partition specified: nosuch", "--partition NAME"),
        ("Batch job submission failed: Invalid account or account/partition combination specified", "--account"),
        ("Batch job submission failed: Requested node configuration is not available", "--gpus"),
        ("Memory specification can not be satisfied\nRequested node configuration is not available", "cluster.mem"),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "--time"),
        ("Batch job submission failed: Invalid qos specification", "slurm.qos"),
        (
            "QOSMaxSubmitJobPerUserLimit\nBatch job submission failed: Job violates accounting/QOS policy "
            "(job submit limit, user's size and/or time limits)",
            "fewer cells",
        ),
        ("something new", "--dry-run"),
    ],
)
def test_a_refusal_says_what_to_change(given, said, next_step):
    lines = "\n".join(f'echo "sbatch: error: {line}" >&2' for line in said.splitlines())
    error, calls, submitted = given(f"{lines}\nexit 1")
    assert "sbatch refused" in str(error) and said.splitlines()[0] in str(error)
    assert next_step in error.next_step and calls == 1 and submitted is None


def test_the_script_says_what_was_asked_for(place):
    launch = Launch(nodes=2, mem="8G", partition="p", account="a", slurm={"qos": "low", "nice": 5}, parallel=1)
    after = submit.After("aftercorr", ("17",))
    shape = submit.Shape.of("pretrain", launch, 4)
    made = submit.executor(Batches(place).path("b"), batch("b", PRETRAIN, EVALUATE), shape, launch, 90, after)
    text = submit.script(made, 2)
    for line in (
        "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--mem=8G", "--partition=p", "--account=a",
        "--qos=low", "--nice=5", "--array=0-1%1", "--dependency=aftercorr:17", "--kill-on-invalid-dep=yes",
        "--requeue", "--time=2", "--job-name=harness-b", "--signal=USR2@120",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in text, line
    assert "wckey" not in text and "PYTHONPATH=/nowhere" in text and 'sh -c \'trap "" USR2; exec "$@"\'' in text
    assert submit.Shape.of("evaluate", launch, 4) == submit.Shape(1, mem="8G")
    typed = submit.executor(Batches(place).path("b"), batch("b"), shape, Launch(gpu_type="h100"), 90, None)
    assert "#SBATCH --gpus-per-node=h100:4\n" in submit.script(typed, 1)
    large = Launch(cpus=8, mem="64G")
    made = submit.executor(Batches(place).path("b"), batch("b"), submit.Shape.of("tables", large, 4), large, 90, after)
    text = submit.script(made, 1)
    assert not any(word in text for word in ("gpus", "cpus-per-task", "--mem")), "tables wait for no large node"


def test_a_full_disk_while_a_batch_is_written_is_no_refusal_of_sbatch(place):
    def full(_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    made = SimpleNamespace(batch=nullcontext, submit=full)
    with pytest.raises(HarnessError, match=r"no space left to write .*/jobs/b\n.*quota"):
        submit.submit(place, batch("b", PRETRAIN), [1], made, Table())


def test_what_sbatch_did_not_refuse_itself_is_looked_for_in_the_queue(given):
    """It was submitted, and its answer could not be read."""
    error, _, submitted = given("echo 'a word of the site'")
    assert "sbatch refused" in str(error) and submitted is None
    error, calls, submitted = given("echo 'a word of the site'", "echo '88_1|PENDING|None||harness-new'")
    assert (error, calls, submitted) == (None, 2, Submitted(job="88", array=True)), "one call each"


@pytest.mark.parametrize(
    ("row", "by_limit"), [("57:50|1:00:00", True), ("50:00|1:00:00", False), ("50:00|UNLIMITED", False), ("", False)]
)
def test_a_job_knows_whether_its_time_is_up(tmp_path, monkeypatch, row, by_limit):
    programs(tmp_path / "bin", monkeypatch, squeue=f"echo '{row}'")
    monkeypatch.setattr("submitit.JobEnvironment", lambda: SimpleNamespace(job_id="7"))
    assert submit.by_time_limit(60) == by_limit


def test_too_little_memory_is_told_with_what_to_change(place):
    found = Slurm(place, Launch(mem="8G"), 0, None)._dead(
        Claim(attempt=1, batch="b", index=0), "OUT_OF_MEMORY", "0:125"
    )
    assert found.kind == "memory" and "cluster.mem=8G was too little" in found.word and "a larger" in found.word
