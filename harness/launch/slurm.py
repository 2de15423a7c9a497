"""SLURM as an executor: what it knows of a claim's job, and the submission of batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from harness import store
from harness.launch import submit
from harness.launch.folders import Batch, Batches, Claim, Submitted
from harness.launch.options import Launch
from harness.launch.queue import ALIVE, Account, InQueue, Queue
from harness.launch.standing import WITH_ITS_NEED, Seen
from harness.launch.truth import log_tail, logs

ENDINGS = {  # SLURM's words for how a job ended, in ours
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "PREEMPTED": "preempted",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "CANCELLED": "cancelled",
    "OUT_OF_MEMORY": "memory",
}
STUCK = {  # reasons for which a job waits for ever, and what would help
    "PartitionTimeLimit": "longer than the partition allows: a shorter --time",
    "PartitionNodeLimit": "more nodes than the partition has: fewer --nodes",
    "PartitionConfig": "no node of the partition is like that: fewer --gpus, cpus or mem",
    "BadConstraints": "no node is like that: other slurm.* options",
    "InvalidAccount": "not an account of yours: --account",
    "InvalidQOS": "not a QOS of yours: slurm.qos",
    "JobHeldUser": "held: scontrol release",
    "JobHeldAdmin": "held by an administrator",
}
NEVER = "DependencyNeverSatisfied"  # the reason that an ended job keeps where SLURM cancelled it with its need
EARLY_SIGNAL = ("12:0", "0:12")  # exit codes of a job that got SIGUSR2 before it could handle it


@dataclass
class Slurm:
    """Asks the queue at most every `every_s` seconds, whoever asks it."""

    place: store.Study
    launch: Launch
    gpus: int
    limit_s: int | None
    queue: Queue = field(default_factory=Queue)
    every_s: float = 3.0
    name: str = "slurm"
    chains: bool = True  # a batch can be told to come after another
    _rows: dict[str, InQueue] = field(default_factory=dict)
    _accounts: dict[str, Account] | None = None  # None: not asked since the queue was
    _asked_at: float = float("-inf")
    _most: int = 0
    _submitted: dict[str, Submitted] = field(default_factory=dict)

    # -- what it knows ------------------------------------------------------------------------------------------------

    def look(self, batches: Iterable[str]) -> Callable[[Claim], Seen | None]:
        wanted = set(batches)
        if wanted and time.monotonic() - self._asked_at >= self.every_s:
            self._rows, self._accounts = self.queue.jobs(), None
            self._asked_at = time.monotonic()
        for name in wanted - self._submitted.keys():
            self._find(name)
        return self._seen

    def _seen(self, claim: Claim) -> Seen | None:
        id, name = self.id_of(claim), submit.PREFIX + claim.batch
        if id is None:
            return None
        row = self._rows.get(id)
        if row is not None and row.name != name:
            row = None  # the controller lost our job and gave its number to another
        if row is not None and row.alive:
            running = row.state in ("RUNNING", "COMPLETING")
            reason = "" if row.reason in ("None", "") else f" ({STUCK.get(row.reason, row.reason)})"
            return Seen(True, running, row.state.lower() + reason, where=row.nodes)
        if self._accounts is None:
            self._accounts = self.queue.accounts(sorted({s.job for s in self._submitted.values()})) or {}
        account = self._accounts.get(id)
        if account is None or account.name != name:
            account = Account("", "", name)
        if row is None and account.state in ("", *ALIVE):
            return None
        by_slurm = (row is not None and row.reason == NEVER) or account.said == "CANCELLED"  # a person's has "by 1000"
        if claim.after and by_slurm:
            return Seen(False, word=WITH_ITS_NEED, kind="dependency")
        return self._dead(claim, account.state if account.state in ENDINGS or row is None else row.state, account.code)

    def _dead(self, claim: Claim, state: str, code: str) -> Seen:
        kind = ENDINGS.get(state, "killed")
        if code in EARLY_SIGNAL:
            kind = "signal"
        if kind == "killed" and "memory limit" in log_tail(self.place, claim):
            kind = "memory"
        word = f"SLURM ended it: {state}{f', exit code {code}' if code else ''}"
        if kind == "memory":
            word += f"; {f'cluster.mem={self.launch.mem}' if self.launch.mem else 'the memory'} was too little for it: "
            word += "a larger cluster.mem, or a smaller train.batch_size"
        if kind == "time limit":
            word += "; it did not save itself in time: a longer --time, or a larger cluster.signal_s"
        if kind == "killed" and not logs(self.place, claim):
            word += f"; it left no log: is {self.place.path.resolve()} on a file system that the nodes share?"
        return Seen(False, word=word, kind=kind)

    def _find(self, batch: str) -> None:
        """The job id of a batch: written down by who submitted it, or known to the queue by the batch's name."""
        batches = Batches(self.place)
        submitted = batches.submitted(batch)
        if submitted is None:
            submitted = submit.of_name(batch, self._rows.values())
            if submitted is None:
                return
            meant = batches.read(batch)
            if meant is not None:  # who submitted it may have died before the jobs had their files
                submit.give(self.place, meant, submit.attempts_of(self.place, meant), submitted)
            batches.write_submitted(batch, submitted)
        self._submitted[batch] = submitted

    def id_of(self, claim: Claim) -> str | None:
        """The job, or the element of an array, that works on the claim."""
        if claim.batch not in self._submitted:
            self._find(claim.batch)
        submitted = self._submitted.get(claim.batch)
        if submitted is None:
            return None
        return f"{submitted.job}_{claim.index}" if submitted.array else submitted.job

    # -- what it does -------------------------------------------------------------------------------------------------

    def submit(self, batch: Batch, attempts: Sequence[int], stage: str, after: submit.After | None = None) -> Submitted:
        """Submit the batch. Raises Unreachable, or HarnessError with what sbatch refused."""
        shape = submit.Shape.of(stage, self.launch, self.gpus)
        made = submit.executor(Batches(self.place).path(batch.name), batch, shape, self.launch, self.limit_s, after)
        submitted = submit.submit(self.place, batch, list(attempts), made, self.queue)
        self._submitted[batch.name] = submitted
        self._asked_at = float("-inf")
        return submitted

    def after(self, stage: str, batches: Sequence[str], matching: bool) -> submit.After | None:
        """The dependency on batches: element by element where they match, else on their end, however that is."""
        found = [self._submitted[name] for name in batches if name in self._submitted]
        if not found:
            return None
        if not matching:
            return submit.After("afterany", tuple(s.job for s in found))
        return submit.After("aftercorr" if found[0].array else "afterok", (found[0].job,))

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def most(self) -> int:
        """Jobs of one batch."""
        self._most = self._most or self.queue.largest_array()
        return self._most

    def close(self) -> None:
        """Nothing: the jobs go on."""

    def cancel(self, claims: Iterable[Claim]) -> list[str]:
        """End the jobs of the claims that are alive; their ids. An id may be another job's by now: its name says so."""
        claims = list(claims)
        self._asked_at = float("-inf")
        seen = self.look({claim.batch for claim in claims})
        living = [claim for claim in claims if (job := seen(claim)) is not None and job.alive]
        ids = [id for claim in living if (id := self.id_of(claim)) is not None]
        self.queue.cancel(ids)
        return ids
