"""What a method promises of a run: it resumes to the same bits, never sees the test split, and needs no network."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from harness.budget import Budget
from harness.checkpoint import find_snapshot
from harness.contract import closed
from harness.contract.subject import Broken, Subject, listed
from harness.evaluation import can
from harness.method import Method
from harness.rehearse import compare, hidden
from harness.rng import Rng
from harness.store import RunFolder
from harness.train.pretraining import Interrupted, Pretraining
from harness.train.settings import TrainConfig

STEPS, BATCH, IMAGES = 12, 16, 96
STOPPED, KILLED = 1, 8  # after which step: with a preparation in it, and in training beyond a checkpoint
SETTINGS = TrainConfig(precision="fp32", checkpoint_s=1e9, log_s=1e9)


class Killed(BaseException):
    """What SIGKILL is to a run: nothing handles it, nothing is saved."""


def pretraining(subject: Subject, method: Method, folder: Path) -> Pretraining:
    """A short run on a few images; it saves itself at its snapshots."""
    return Pretraining(
        method=method,
        fit=subject.data.fit.subset(torch.arange(min(IMAGES, len(subject.data.fit)))),
        mirror=subject.data.mirror,
        budget=Budget(STEPS, "step"),
        settings=SETTINGS,
        batch_size=BATCH,
        folder=RunFolder(folder),
        rng=Rng(3),
        device=torch.device("cpu"),
    )


def resume(subject: Subject) -> str:
    """A run that is stopped, goes on, is killed and goes on again ends in the bits of one that nothing disturbed."""
    with tempfile.TemporaryDirectory(dir=subject.out) as place:
        whole, again, broken = (Path(place) / name for name in ("whole", "again", "broken"))
        pretraining(subject, subject.build(), whole).run()
        _disturbed(subject, broken)
        one, two = (find_snapshot(folder / "snapshots", 1.0) for folder in (whole, broken))
        if one.name == two.name:  # the name carries the content's checksum
            return f"stopped after step {STOPPED}, killed after {KILLED}, equal at {STEPS}"
        pretraining(subject, subject.build(), again).run()
        if find_snapshot(again / "snapshots", 1.0).name != one.name:
            raise Broken(
                "two undisturbed runs of one seed end in different weights",
                "draw from the rng that `pretrain` is given, and keep nothing in classes and modules",
            )
        raise Broken(
            f"a run that was stopped after step {STOPPED} and killed after step {KILLED} of {STEPS} ends in other "
            f"weights than an undisturbed one: {'; '.join(compare.tensors(one, two)[:2])}" + _kept_apart(subject),
            "keep it in a buffer (register_buffer), or take it from `progress` and the rng that `pretrain` is given",
        )


def _disturbed(subject: Subject, folder: Path) -> None:
    work = pretraining(subject, subject.build(), folder)
    work.should_stop = lambda: work.step >= STOPPED
    with suppress(Interrupted):
        work.run()
    work = pretraining(subject, subject.build(), folder)

    def strike() -> bool:
        if work.step >= KILLED:
            raise Killed
        return False

    work.should_stop = strike
    with suppress(Killed):
        work.run()
    pretraining(subject, subject.build(), folder).run()


def _kept_apart(subject: Subject) -> str:
    """What training changes and no checkpoint holds, as far as looking finds it."""
    method = subject.build()
    with tempfile.TemporaryDirectory(dir=subject.out) as place:
        found = hidden.changed(method, pretraining(subject, method, Path(place)).run)
    return f". Changed by training and in no checkpoint: {listed(found)}" if found else ""


def test_split(subject: Subject) -> str:
    method = subject.build()
    with tempfile.TemporaryDirectory(dir=subject.out) as place:
        work = pretraining(subject, method, Path(place))
        with closed.test_split(subject.closed, subject.place) as refused:
            try:
                work.run()
            except Exception:
                if not refused:
                    raise
    if refused:
        raise Broken(
            f"training asked for {listed(dict.fromkeys(refused))}",
            "learn from the batches that `pretrain` is given, and load no data set",
        )
    return f"{STEPS} steps without it"


def network(subject: Subject) -> str:
    """Built, trained, read and drawn from behind the network that every check closes; also what others met there."""
    try:
        _life(subject)
    except Exception:
        if not subject.reached_out:
            raise
    if subject.reached_out:
        raise Broken(
            f"it asked the network for {listed(dict.fromkeys(subject.reached_out))}",
            "take what it needs from a file that a setting names, and say in the card what it borrows; "
            "nothing downloads while it trains",
        )
    return "closed, and not missed"


def _life(subject: Subject) -> None:
    method = subject.build()
    batch = subject.batch(method)
    subject.steps(method, batch, 2, lr=1e-3)
    subject.warm(method, batch)
    with torch.no_grad():
        method.features(subject.images(4), method.taps(), subject.rng)
        if can(subject.cls, "sample"):
            method.sample(2, subject.rng, steps=2)
