"""What this command holds until its turn comes: the part of an executor that local workers and this process share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from harness import store
from harness.errors import CannotWrite
from harness.launch.folders import Attempts, Batch, Batches, Claim, End, Submitted, now
from harness.launch.standing import Seen, submitter_lives
from harness.launch.tasks import parse

Key = tuple[str, int]  # a batch and an element of it


@dataclass
class Here:
    """Work on this machine. It ends with the command, so nothing is told to come after anything: it is asked again."""

    place: store.Study
    _: KW_ONLY
    # Whether this command has the study's lock: then what another computer had begun is over. One on this computer is
    # looked for all the same: the file system may have no locks.
    holds: bool = False
    name: str = "here"
    chains: bool = False
    _waiting: dict[Key, int] = field(default_factory=dict)  # the attempt, first come first

    def submit(self, batch: Batch, attempts: Sequence[int], stage: str, after: Any = None) -> Submitted:
        """Take the batch."""
        submitted = Submitted(job=f"{socket.gethostname()}-{os.getpid()}", array=True)
        Batches(self.place).write_submitted(batch.name, submitted)
        self._waiting |= {(batch.name, index): attempt for index, attempt in enumerate(attempts)}
        return submitted

    def look(self, batches: Iterable[str]) -> Callable[[Claim], Seen | None]:
        return self._seen

    def _seen(self, claim: Claim) -> Seen | None:
        if (claim.batch, claim.index) in self._waiting:
            return Seen(True, word="waiting for its turn")
        batch = Batches(self.place).read(claim.batch)
        if batch is None:
            return None
        alive = submitter_lives(batch)
        own = (batch.host, batch.pid) == (socket.gethostname(), os.getpid())
        if self.holds and (alive is None or own):
            alive = False
        if alive is False:
            return Seen(False, word="the command that ran it is gone", kind="signal")
        far = "" if alive else f" on {batch.host}, if that command lives; it cannot be seen from here"
        attempts = Attempts(self.place, parse(batch.tasks[claim.index]))
        end, lease = attempts.end(claim.attempt), attempts.lease()  # of another command's worker
        if end is not None and end.kind != "cancelled":  # that is told to the worker, which may be at it yet
            return Seen(False, word=end.message, kind="signal")
        if lease is not None and lease.attempt == claim.attempt:
            return Seen(True, running=True, word=f"running{far}")
        return Seen(True, word=f"waiting for its turn{far}")

    def after(self, stage: str, batches: Sequence[str], matching: bool) -> None:
        return None

    def most(self) -> int:
        return 10**6

    def drop(self, claims: Iterable[Claim]) -> set[Key]:
        """What waits and is of the claims never starts. The claims' keys."""
        keys = {(claim.batch, claim.index) for claim in claims}
        self._waiting = {key: attempt for key, attempt in self._waiting.items() if key not in keys}
        return keys

    def close(self) -> None:
        """What waits is over with this command, which is written down: another computer cannot see that it ended."""
        with suppress(CannotWrite):  # told already, or about to be; who looks on this computer finds out
            for key, attempt in self._waiting.items():
                end = End(state="stopped", kind="signal", message="its command ended before its turn", at=now())
                Attempts(self.place, parse(self.named(key))).ended(attempt, end)
        self._waiting.clear()

    def named(self, key: Key) -> str:
        """The name of the element's task."""
        batch, index = key
        return Batches(self.place).read(batch).tasks[index]

    def folder(self, key: Key) -> Path:
        """Where the element's logs go, made where it is missing."""
        batch, index = key
        path = Batches(self.place).path(batch) / f"{Batches(self.place).submitted(batch).job}_{index}"
        path.mkdir(parents=True, exist_ok=True)
        return path
