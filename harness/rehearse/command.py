"""Rehearsal: a toy run of a method, killed and repeated at random steps, has to end in the bits of an undisturbed one.

Every attempt is a process of its own, struck from outside: with SIGKILL, which nothing can handle, or with SIGTERM, at
which a run saves itself. The run's log, written at every step here, says when a step is reached; the blow falls at a
random moment of the step after it.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import store
from harness.config import parse_words
from harness.errors import HarnessError
from harness.records import RunRecord
from harness.rehearse import process
from harness.rehearse.process import Attempt, Blow
from harness.study import Study, build, merge

if TYPE_CHECKING:
    from harness.resolve import Job

STEPS, BATCH_SIZE = 40, 32
EVERY_STEP_S = 1e-9  # between log lines
OWN = ("methods", "evals", "name", "train.log_s")  # what a rehearsal sets itself


@dataclass(frozen=True)
class Rehearsal:
    """A run of `job`, made several times below `out`: undisturbed, and struck."""

    job: Job  # whose pre-training is rehearsed
    words: tuple[str, ...]  # of `harness run`
    out: Path

    def folder(self, name: str) -> store.RunFolder:
        return store.Study(self.out / name).run(self.job.key)

    def record(self, name: str) -> RunRecord | None:
        path = self.folder(name).record
        return store.read_as(RunRecord, path) if path.exists() else None

    def output(self, name: str) -> Path:
        """Where the attempts print to."""
        return self.out / f"{name}.txt"

    def outcome(self, name: str) -> str:
        """How the run's last attempt left it, with the error where there was one."""
        record, error = self.record(name), self.folder(name).error
        last = error.read_text().strip().splitlines()[-1:] if error.exists() else []
        return ": ".join(["no record" if record is None else record.state, *last])

    def attempt(self, name: str, blow: Blow | None = None, settings: Sequence[str] = ()) -> Attempt:
        words = [*self.words, *settings, f"--name={name}", f"--out={self.out}"]
        return process.attempt(words, self.folder(name).log, self.output(name), blow)


def rehearse(
    method: str,
    words: list[str],
    *,
    size: str = "nano",
    dataset: str = "digits",
    steps: int = STEPS,
    kills: int = 5,
    seed: int = 0,
    out: Path | None = None,
    data_dir: Path | None = None,
) -> int:
    """Rehearse and report. Returns 0 where the bits are equal, 1 where they differ or an attempt failed.

    The runs stay in `out`; without one in a temporary folder, and only where something is wrong. Raises HarnessError
    for what cannot be rehearsed.
    """
    asked = {"methods": method, "dataset": dataset, "size": size, "budget": f"{steps}step"}
    job, options = _asked(asked, words, data_dir)
    if kills < 1:
        raise HarnessError(f"--kills {kills}", "at least 1", "--kills 5")
    if out is not None and out.exists() and any(out.iterdir()):
        raise HarnessError(f"the folder {out} is not empty", "a folder for this rehearsal alone", "another --out")
    folder = Path(tempfile.mkdtemp(prefix="rehearsal-")) if out is None else out
    status = None
    try:
        status = 0 if _rehearsed(Rehearsal(job, options, folder), kills, seed) else 1
    finally:
        if out is None and status != 1:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"kept      {folder}")
    return status


def _asked(asked: dict[str, str], words: list[str], data_dir: Path | None) -> tuple[Job, tuple[str, ...]]:
    """The run to rehearse, and the words of `harness run` that make it."""
    from harness.resolve import jobs

    values = parse_words(words)
    for name in OWN:
        section, _, key = name.rpartition(".")
        if key in (values.get(section, {}) if section else values):
            raise HarnessError(f"{name} in a rehearsal", "settings of the method and its training", "leave it out")
    study = build(merge({**asked, "evals": "", "train": {"batch_size": BATCH_SIZE}}, values))
    _check(study)
    (job,) = jobs(study, data_dir)
    if job.source is not None:
        print(f"{job.cell.method} reads the pre-training of {job.source.cell.method}: that is what is rehearsed")
    options = [f"--{name}={','.join(getattr(study, name))}" for name in asked]
    options += [
        "--cluster=inline",
        "--evals=",
        f"train.batch_size={study.train.batch_size}",
        *words,
        f"train.log_s={EVERY_STEP_S}",
    ]
    options += [] if data_dir is None else [f"--data-dir={data_dir}"]
    return job.source or job, tuple(options)


def _check(study: Study) -> None:
    """Raise HarnessError for a study that is not one run, on a count, at a size that there is."""
    from harness.budget import parse_budget
    from harness.plugins import load_method

    cells = list(study.cells())
    if len(cells) > 1:
        raise HarnessError(f"{len(cells)} runs in a rehearsal", "one method, data set, size and seed", "one at a time")
    (cell,) = cells
    if parse_budget(cell.budget).is_time:
        raise HarnessError(
            f"a rehearsal on the budget {cell.budget}: there the clock decides how many steps are taken, so that no "
            "two runs are equal to the bit, killed or not",
            "a count: step, img, epoch or flop",
            f"--steps {STEPS}",
        )
    sizes = load_method(cell.method).sizes
    if cell.size not in sizes:
        raise HarnessError(
            f"{cell.method} has no size {cell.size!r}",
            f"one of {', '.join(sizes)}" if sizes else f"a method with sizes; those of {cell.method} are empty",
            f"--size {sizes[0]}" if sizes else "",
        )


# -- the rehearsal, in order ------------------------------------------------------------------------------------------


def _rehearsed(rehearsal: Rehearsal, kills: int, seed: int) -> bool:
    """Both runs and what was found, printed; whether the bits are equal."""
    print(f"rehearsal {rehearsal.job.label}: {kills} kills at random steps, seed {seed}", flush=True)
    calm = _undisturbed(rehearsal, "undisturbed")
    train_s = calm.ledger["prepare"] + calm.ledger["train"]
    print(f"unbroken  {calm.spend.step:.0f} steps in {train_s:.1f} s, loss {calm.final_loss:.6g}\n", flush=True)
    step_s = train_s / calm.spend.step
    landed = _struck(rehearsal, _blows(int(calm.spend.step), kills, step_s, seed), step_s)
    record = rehearsal.record("killed")
    if record is None or record.state != "finished":
        print(f"BROKEN    the run ended as {rehearsal.outcome('killed')}\n{process.tail(rehearsal.output('killed'))}")
        return False
    if not landed:
        raise HarnessError("the run ended before it was struck: its steps are short", "more", f"--steps {5 * STEPS}")
    if landed < kills:
        print(f"note      {landed} of {kills} blows fell before the run ended")
    return _compared(rehearsal, calm, record)


def _undisturbed(rehearsal: Rehearsal, name: str) -> RunRecord:
    rehearsal.attempt(name)
    record = rehearsal.record(name)
    if record is None or record.state != "finished":
        raise HarnessError(
            f"the undisturbed run ended as {rehearsal.outcome(name)}\n{process.tail(rehearsal.output(name))}",
            "a run that comes to its end where nothing disturbs it",
            f"python -m harness run {' '.join(rehearsal.words)}",
        )
    return record


def _blows(steps: int, kills: int, step_s: float, seed: int) -> list[Blow]:
    """At distinct random steps, in order, so that every attempt comes further than the one before it."""
    from harness.rng import Rng

    if kills >= steps:
        raise HarnessError(f"{kills} kills in {steps} steps", f"at most {steps - 1}", f"--steps {10 * kills}")
    rng = Rng(seed).at("rehearsal")
    at = sorted((rng.permutation("steps", steps - 1)[:kills] + 1).tolist())
    saving = rng.permutation("signals", kills)[: max(kills // 3, int(kills > 1))].tolist()
    late = rng.uniform("late", (kills,)).tolist()
    signals = [signal.SIGTERM if i in saving else signal.SIGKILL for i in range(kills)]
    return [Blow(step, number, share * step_s) for step, number, share in zip(at, signals, late, strict=True)]


def _struck(rehearsal: Rehearsal, blows: list[Blow], step_s: float) -> int:
    """The run under all blows and then to its end, a line for each attempt; how many blows fell before that end.

    A checkpoint is written every few steps, so that some work is lost and some is not.
    """
    every = max(2, blows[-1].step // (2 * len(blows)))
    set_by_user = any(word.startswith("train.checkpoint_s=") for word in rehearsal.words)
    settings = () if set_by_user else (f"train.checkpoint_s={max(every * step_s, 1e-3):.6g}",)
    print(f"{'attempt':>9} {'from step':>10} {'lost, s':>8} {'to step':>8}  ended by")
    landed, lost_s = 0, 0.0
    for number, blow in enumerate([*blows, None], start=1):
        attempt = rehearsal.attempt("killed", blow, settings)
        where = f" in {attempt.phase}" if attempt.phase else ""
        print(
            f"{number:>9} {attempt.began_at:>10} {attempt.lost_s - lost_s:>8.2f} {attempt.reached:>8}  "
            f"{attempt.ended_by}{where}",
            flush=True,
        )
        lost_s, record = attempt.lost_s, rehearsal.record("killed")
        fell = blow is not None and attempt.ended_by == blow.number.name
        landed += fell
        if not fell or (record is not None and record.state in ("finished", "failed", "diverged")):
            break
    print()
    return landed


def _compared(rehearsal: Rehearsal, calm: RunRecord, killed: RunRecord) -> bool:
    """Print what is equal and what is not; whether all is."""
    from harness.rehearse import compare

    print(f"lost      {killed.ledger['lost']:.2f} s of work done twice, in {killed.attempts} attempts; not charged")
    found = compare.differences(calm, rehearsal.folder("undisturbed"), killed, rehearsal.folder("killed"))
    if found:
        print("DIFFERENT", *found, _why(rehearsal, calm), sep="\n  ")
        return False
    spend, final = killed.spend, compare.weights(rehearsal.folder("killed"), "1.0000")
    print(f"spend     {spend.step:.0f} steps, {spend.img:.0f} img, {spend.flop:.4g} FLOP in both")
    print(f"bit-equal {final.stem}, and the snapshots at {', '.join(share for share in killed.snapshots)}")
    return True


def _why(rehearsal: Rehearsal, calm: RunRecord) -> str:
    """What makes the difference, as far as it can be found."""
    from harness.rehearse import compare, hidden

    again = _undisturbed(rehearsal, "again")
    if compare.differences(calm, rehearsal.folder("undisturbed"), again, rehearsal.folder("again")):
        return (
            "Two undisturbed runs differ as well: every run computes something else, and resuming is not to blame.\n"
            "  Draw from the rng that `pretrain` is given; on a GPU, whose sums may differ, rehearse on the CPU."
        )
    method = rehearsal.job.cell.method
    found = hidden.state(rehearsal.job) or ["nothing was found by looking at its attributes and at random generators"]
    return "\n  ".join(
        [
            f"Two undisturbed runs are equal: {method} keeps something that no checkpoint holds. Changed by training:",
            *(f"  {line}" for line in found),
            "Keep it in a buffer (register_buffer), or take it from `progress` and the rng that `pretrain` is given.",
        ]
    )
