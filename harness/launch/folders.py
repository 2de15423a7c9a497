"""What the tasks of a study leave in its folder while they are worked on.

KEY's folder/jobs/KIND.003.json       the claim of the third attempt: which batch has it, and where in it
KEY's folder/jobs/KIND.003.end.json   how that attempt ended, written by the job itself
KEY's folder/jobs/KIND.lease.json     the token of the job that may write; a job that finds another one stops
KEY's folder/jobs/KIND.turns.json     how many turns in a row the time limit ended before the task got any further
STUDY/jobs/BATCH/batch.json           a batch of jobs as it was meant, written before it is submitted
STUDY/jobs/BATCH/submitted.json       its job id, written after
STUDY/jobs/forgiven/*.json            up to which attempt failures do not count, each command's since which asked again

Files appear whole, by rename or by link, and no lock is held: two commands that claim one attempt cannot both win.
"""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from harness import store
from harness.errors import HarnessError
from harness.files import explain, write_atomic
from harness.launch.tasks import Task
from harness.records import Model
from harness.study import slug

M = TypeVar("M", bound=Model)
LOOKS, BETWEEN_S = 20, 0.05  # at a file that another computer is just writing
ENDS = Literal["done", "failed", "stopped"]


class Claim(Model):
    """An attempt at a task, and the element of the batch that makes it."""

    attempt: int
    batch: str
    index: int
    reached: int = 0  # `progress` when it was claimed: whether the attempt before got any further
    after: int = 0  # which attempt at the last of its needs the cluster was told to wait for; 0: none


class End(Model):
    """How an attempt ended: in the job's own words, or, for one that was killed, in those of who found it dead."""

    state: ENDS
    kind: str = ""  # "error", or what killed it; three ends of one kind without progress are enough
    message: str = ""
    at: str = ""


class Lease(Model):
    token: str
    attempt: int
    waited_s: float = 0.0  # that the task has stood in queues up to now, over all its attempts
    at: str = ""
    reached: int = 0  # `progress` when this turn began


class Turns(Model):
    """That the time limit ended one after another, over all attempts, without the task getting any further."""

    attempt: int  # the last of them
    reached: int
    count: int


class Batch(Model):
    """Jobs that are submitted together. `request` is the study as it was asked for at that moment."""

    name: str
    tasks: list[str]  # by index
    request: dict[str, Any]
    data_dir: str | None = None
    code: str
    executor: str
    rendezvous: str = "tcp"
    host: str = ""
    pid: int = 0
    born: str = ""  # that process, told from a later one of its number
    at: str = ""


class Submitted(Model):
    job: str  # the id of the array, or of the single job
    array: bool


class Forgiven(Model):
    """What failed or was cancelled up to these attempts, by task, does not count: the user asked for it again."""

    attempts: dict[str, int]


class Superseded(BaseException):
    """Another job has the task now; this one is to stop and write nothing.

    No Exception, so that nothing which records failures takes it for one.
    """


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def batch_name(stage: str) -> str:
    return f"{stage}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:8]}"


def home(place: store.Study, task: Task) -> Path:
    """The folder in which the task's claims lie."""
    if task.stage == "references":
        return place.path / "jobs" / f"references-{slug(task.key)}"  # beside their records every JSON file is a record
    return place.run(task.key).jobs


class Attempts:
    """The attempts at one task."""

    def __init__(self, place: store.Study, task: Task) -> None:
        self.place, self.task = place, task
        self.folder, self.kind = home(place, task), task.kind

    def _path(self, attempt: int, what: str = "") -> Path:
        return self.folder / f"{self.kind}.{attempt:03d}{what}.json"

    def last(self) -> Claim | None:
        """The claim of the newest attempt."""
        number = max(self._numbers(), default=0)
        return read(Claim, self._path(number)) if number else None

    def of(self, attempt: int) -> Claim | None:
        return read(Claim, self._path(attempt))

    def all(self) -> list[Claim]:
        found = [read(Claim, self._path(number)) for number in sorted(self._numbers())]
        return [claim for claim in found if claim is not None]

    def _numbers(self) -> Iterator[int]:
        pattern = re.compile(re.escape(self.kind) + r"\.(\d{3,})\.json")
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return
        for name in names:
            if found := pattern.fullmatch(name):
                yield int(found[1])

    def claim(self, claim: Claim) -> bool:
        """Take the attempt; False where somebody else has it."""
        return create(self._path(claim.attempt), claim)

    def end(self, attempt: int) -> End | None:
        return read(End, self._path(attempt, ".end"))

    def found_dead(self, attempt: int, end: End) -> End | None:
        """Write how the attempt ended in the words of who found it dead, unless it has had its own; what is written.

        Only the server knows whether it has: on NFS a look may still show a moment in which the file was not there,
        but nobody can create it a second time.
        """
        if not create(self._path(attempt, ".end"), end):
            written = self.end(attempt)
            if written is None or written.state != "stopped":
                return written
            self.ended(attempt, end)
        return self.end(attempt)

    def ended(self, attempt: int, end: End) -> None:
        """Write how the attempt ended. One that is done stays that, whatever a copy of it says later; and one that a
        person cancelled stays cancelled, unless it was done by then."""
        before = self.end(attempt)
        if before is None or end.state == "done" or (before.state != "done" and before.kind != "cancelled"):
            write_atomic(self._path(attempt, ".end"), end.model_dump_json() + "\n")

    # A job that was thought lost may live on beside the one that took its place. The token of the newest is in the
    # lease; a job compares before it writes. Tokens are compared, never times: clocks of nodes may differ.

    @property
    def _lease(self) -> Path:
        return self.folder / f"{self.kind}.lease.json"

    def lease(self) -> Lease | None:
        """Of the attempt that began last."""
        return read(Lease, self._lease)

    def take(self, attempt: int, submitted_at: str = "", reached: int = 0) -> Guard:
        """Begin the attempt, or its next turn: from now on every other job of this task is superseded.

        `reached` is the task's `progress`. Raises Superseded where a later attempt has begun already.
        """
        path, held = self._lease, self.lease()
        if held is not None and held.attempt > attempt:
            raise Superseded
        waited_s = (held.waited_s if held else 0.0) + self._waited_s(attempt, submitted_at, held)
        token = uuid.uuid4().hex
        lease = Lease(token=token, attempt=attempt, waited_s=waited_s, at=now(), reached=reached)
        write_atomic(path, lease.model_dump_json() + "\n")
        end = self.end(attempt)
        if end is not None and end.state == "stopped" and end.kind != "cancelled":
            # Of an earlier turn of this job, which was requeued: how this turn ends is not known yet.
            self._path(attempt, ".end").unlink(missing_ok=True)
        return Guard(path, lease.token, waited_s)

    def fruitless(self, attempt: int, reached: int) -> int:
        """Note that the time limit ends this turn; how many in a row it now ended before the task got any further."""
        held = self.lease()
        if held is None or held.attempt != attempt:  # a later attempt has begun: the lease is its own
            return 0
        path = self.folder / f"{self.kind}.turns.json"  # not the lease, which a later attempt may take meanwhile
        before, count = read(Turns, path), 0
        if held.reached >= reached:
            since = Batches(self.place).forgiven().get(self.task.name, 0)  # the user asked anew, with more time, say
            goes_on = before is not None and before.attempt > since and before.reached >= reached
            count = 1 + (before.count if goes_on else 0)
        turns = Turns(attempt=attempt, reached=reached, count=count)
        write_atomic(path, turns.model_dump_json() + "\n")
        return count

    def _waited_s(self, attempt: int, submitted_at: str, held: Lease | None) -> float:
        """Seconds in the queue: since the submission, or since the last sign of a job that went back into it.

        Moments are of several computers' clocks, so it is as good as those agree, and never negative.
        """
        if not submitted_at:
            return 0.0
        end = self.end(attempt)
        signs = [submitted_at, *([end.at] if end else []), *([held.at] if held else [])]
        if (self.folder.parent / "log.jsonl").exists():  # the last sign of one that was killed
            written = (self.folder.parent / "log.jsonl").stat().st_mtime
            signs.append(datetime.fromtimestamp(written, UTC).isoformat())
        since = max(datetime.fromisoformat(sign) for sign in signs if sign)
        return max(0.0, (datetime.now(UTC) - since).total_seconds())


class Guard:
    """Called before anything is written; raises Superseded once another job has taken the task.

    Without a path it is that of a process which writes nothing.
    """

    def __init__(self, path: Path | None = None, token: str = "", waited_s: float = 0.0) -> None:
        self.path, self.token, self.waited_s = path, token, waited_s

    def __call__(self) -> None:
        held = None if self.path is None else read(Lease, self.path)
        if held is not None and held.token != self.token:
            raise Superseded


class Batches:
    """The batches of a study, submitted or meant."""

    def __init__(self, place: store.Study) -> None:
        self.folder = place.path / "jobs"

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, batch: Batch) -> None:
        write_atomic(self.path(batch.name) / "batch.json", batch.model_dump_json(indent=1) + "\n")

    def read(self, name: str) -> Batch | None:
        return read(Batch, self.path(name) / "batch.json")

    def submitted(self, name: str) -> Submitted | None:
        return read(Submitted, self.path(name) / "submitted.json")

    def write_submitted(self, name: str, submitted: Submitted) -> None:
        write_atomic(self.path(name) / "submitted.json", submitted.model_dump_json() + "\n")

    def all(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("*/batch.json"))

    def closing(self) -> list[str]:
        """The jobs that were to make the tables, the newest first by the file system's clock: nodes' may differ."""
        found = [(self.written_at(name), name) for name in self.all() if name.startswith("tables-")]
        return [name for _, name in sorted(found, reverse=True)]

    def written_at(self, name: str) -> float:
        """When the batch was meant to be submitted, by the file system's clock."""
        return (self.path(name) / "batch.json").stat().st_mtime

    def error(self, name: str) -> str | None:
        """What the closing job `name` failed of."""
        path = self.path(name) / "error.txt"
        return path.read_text().strip() if path.exists() else None

    def write_error(self, name: str, said: str) -> None:
        write_atomic(self.path(name) / "error.txt", said + "\n")

    def forgiven(self) -> dict[str, int]:
        """Up to which attempt failures do not count, by task."""
        found: dict[str, int] = {}
        for path in (self.folder / "forgiven").glob("[!.]*.json"):
            one = read(Forgiven, path)
            for task, attempt in ({} if one is None else one.attempts).items():
                found[task] = max(attempt, found.get(task, 0))
        return found

    def forgive(self, attempts: dict[str, int]) -> None:
        """In a file of its own: two commands that add to one would each drop what the other wrote."""
        before = self.forgiven()
        new = {task: attempt for task, attempt in attempts.items() if attempt > before.get(task, 0)}
        if new:
            path = self.folder / "forgiven" / f"{uuid.uuid4().hex[:8]}.json"
            write_atomic(path, Forgiven(attempts=new).model_dump_json() + "\n")


def read(kind: type[M], path: Path) -> M | None:
    """The file's content, None where there is none. Raises HarnessError for one that does not fit."""
    try:
        content = _content(path)
        return None if content is None else kind.model_validate_json(content)
    except ValidationError as error:
        raise HarnessError(
            f"{path} does not fit: {error.errors()[0]['msg']}",
            f"a {kind.__name__.lower()} as the harness wrote it",
            f"delete {path} and repeat the command",
        ) from None


def _content(path: Path) -> bytes | None:
    """The file's bytes, None where there is none. Looks again at one that is being created or replaced just now."""
    for look in range(LOOKS):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ESTALE or look + 1 == LOOKS:  # NFS: it was replaced while it was open
                raise HarnessError(
                    f"cannot read {path}: {error.strerror or error}", "a file that you may read"
                ) from error
        else:
            if content:  # else its name was taken, where the file system has no hard links, and no more yet
                return content
        time.sleep(BETWEEN_S)
    return b""


def create(path: Path, content: Model) -> bool:
    """Write `path` whole unless it is there; whether this call made it. Atomic on NFS too, where O_EXCL was not."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content.model_dump_json() + "\n")
        try:
            os.link(temporary, path)
        except FileExistsError:
            return os.stat(temporary).st_nlink == 2  # NFS: the answer to a link that worked can get lost
        except OSError:  # a file system without hard links
            return _create_exclusively(path, content)
        return True
    except OSError as error:
        raise explain(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _create_exclusively(path: Path, content: Model) -> bool:
    try:
        with open(path, "x") as file:
            file.write(content.model_dump_json() + "\n")
    except FileExistsError:
        return False
    return True
