"""What a method promises of its objective: it descends, reaches every weight, and draws from its own stream only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from harness.contract import closed
from harness.contract.subject import Broken, Subject, listed, prepared
from harness.errors import said
from harness.evaluation import can
from harness.rehearse.hidden import generators
from harness.rng import Share

FALL = 0.1  # of the loss, in
STEPS = 40  # on one batch of
IMAGES = 64
LR = 1e-3
PART = 8  # images of one of two processes


def loss_falls(subject: Subject) -> str:
    method = subject.build()
    losses = subject.steps(method, subject.batch(method, IMAGES), STEPS, LR)
    broken = [step for step, loss in enumerate(losses) if not math.isfinite(loss)]
    if broken:
        raise Broken(
            f"the loss is {losses[broken[0]]} at step {broken[0]} of {STEPS} at the rate {LR:g}",
            "look for a division by zero, a logarithm or root of nothing, or an exponential in `pretrain`",
        )
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    if first - last <= FALL * abs(first):
        raise Broken(
            f"{STEPS} steps on one batch of {IMAGES} images at the rate {LR:g} take the loss from {first:.4g} to "
            f"{last:.4g}: less than {FALL:.0%} down",
            "check in `pretrain` that the total is what is to become small, that nothing on its way is detached, and "
            "that its target can be learned",
        )
    return f"{first:.3g} to {last:.3g} in {STEPS} steps on one batch"


def gradients(subject: Subject) -> str:
    """After two steps: gates that start at zero open in the first."""
    method = subject.build()
    subject.steps(method, subject.batch(method), 3, lr=1e-2)
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    infinite = [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
    if infinite:
        raise Broken(
            f"the gradient of {listed(infinite)} is not finite after two steps",
            "look for a division by zero or an overflow between these and the loss",
        )
    idle = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    if idle:
        raise Broken(
            f"after two steps no gradient reaches {listed(idle)}",
            "use it in `pretrain` without detaching it, remove it, or set its requires_grad to False",
        )
    return f"{len(trained)} tensors, {sum(p.numel() for p in trained.values()):,} numbers"


def groups(subject: Subject) -> str:
    method = subject.build()
    found, apart = method.param_groups(), prepared(method)
    grouped = [id(p) for group in found for p in group["params"]]
    names = {id(p): name for name, p in method.named_parameters()}
    trained = {id(p) for p in method.parameters() if p.requires_grad} - apart
    change = "let `param_groups` hold every trained parameter in one group, and no other"
    twice = {i for i in grouped if grouped.count(i) > 1}
    if twice:
        raise Broken(f"{listed(names.get(i, '?') for i in twice)} is in more than one of `param_groups`", change)
    if left := trained - {*grouped}:
        raise Broken(f"{listed(names[i] for i in left)} is trained and in none of `param_groups`", change)
    if more := {*grouped} - trained - apart:
        raise Broken(f"{listed(names.get(i, 'a stranger') for i in more)} is in `param_groups` and not trained", change)
    return f"{len(found)} groups"


def odd_batches(subject: Subject) -> str:
    """A count budget ends on a batch of whatever is left."""
    method = subject.build()
    for n in (1, 3):
        try:
            loss = method(subject.batch(method, n), 0.9, subject.rng).total
        except Exception as error:
            raise Broken(
                f"`pretrain` fails on a batch of {n}: {said(error)}{closed.raised_from(error, subject.place)}",
                "let it work on any number of images: the last batch of a count budget has what is left",
            ) from error
        if not loss.isfinite():
            raise Broken(
                f"the loss of a batch of {n} is {loss.item()}",
                "let it work on any number of images (statistics over the batch need a floor)",
            )
    return "batches of 1 and 3"


def shared(subject: Subject) -> str:
    """As one of two processes: every draw has a row for each of its images, or says that it is none of an image's.

    A draw of another shape is refused by the rng itself, in a run on several GPUs.
    """
    method = subject.build()
    mine = replace(subject.rng, share=Share(first=0, ranks=2, whole=2 * PART))
    loss = method(subject.batch(method, PART), 0.5, mine).total
    if not loss.isfinite():
        raise Broken(f"the loss of half a batch is {loss.item()}", "let it work on the images that `pretrain` is given")
    return f"the loss of {PART} images out of {2 * PART}"


def global_rng(subject: Subject) -> str:
    """Training, reading and drawing leave every global generator as it was."""
    method = subject.build()
    batch = subject.batch(method)

    works = {
        "pretrain": lambda: subject.warm(method, batch),
        "features": lambda: method.features(subject.images(4), method.taps(), subject.rng),
    }
    works |= {"sample": lambda: method.sample(2, subject.rng, steps=2)} if can(subject.cls, "sample") else {}
    for verb, work in works.items():
        before = generators()
        with torch.no_grad():
            work()
        drawn = [name for name, state in generators().items() if state != before[name]]
        if drawn:
            raise Broken(
                f"`{verb}` draws from {listed(drawn)}{_where(work, subject)}",
                "draw from the rng that it is given (rng.normal, rng.uniform, rng.permutation; rng.lent for layers "
                "such as dropout)",
            )
    return f"untouched by {', '.join(works)}"


@torch.no_grad()
def _where(work: Callable[[], object], subject: Subject) -> str:
    """` (method.py:57, in view)`: its lines that move a global generator, found by doing the work once more."""
    if subject.place is None:
        return ""
    with closed.lines_that_change(generators, subject.place) as lines:
        work()
    return f" ({listed(lines)})" if lines else ""
