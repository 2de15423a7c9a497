"""All promises, in the order in which they are checked, and the checking of one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.contract import about, building, closed, drawing, reading, runs, training
from harness.contract.subject import Broken, NotApplicable, Subject
from harness.errors import HarnessError

State = Literal["kept", "broken", "skipped"]


@dataclass(frozen=True)
class Promise:
    name: str
    title: str
    check: Callable[[Subject], str]


@dataclass(frozen=True)
class Outcome:
    promise: Promise
    state: State
    found: str
    change: str = ""  # of a broken one
    seconds: float = 0.0
    fault: str = ""  # of one that an exception of the method's broke: equal where the exception and its line are


_ALL = (
    Promise("card", "the card has what tables need, and says what the code can", about.card),
    Promise("settings", "every setting that the card names can be typed", about.settings),
    Promise("sizes", "every declared size is built, each larger than the last", building.sizes),
    Promise("cost", "declared cost is measured cost, and what is borrowed is named", about.cost),
    Promise("seed", "one seed builds one network", building.same_seed),
    Promise("weights-only", "the state is tensors that load with weights_only", building.weights_only),
    Promise("loss", "the loss falls on one batch of real images", training.loss_falls),
    Promise("gradients", "a finite gradient reaches every trained parameter", training.gradients),
    Promise("groups", "every trained parameter is in one optimizer group", training.groups),
    Promise("odd-batches", "the last batch may be small", training.odd_batches),
    Promise("shared", "several processes can share a batch", training.shared),
    Promise("features", "features are deterministic and of the declared shape", reading.features),
    Promise("features-differ", "features tell images apart", reading.features_differ),
    Promise("features-gradient", "features can be fine-tuned", reading.features_gradient),
    Promise("dense", "features come as maps", reading.dense),
    Promise("samples", "samples are images in range and follow the key", drawing.samples),
    Promise("labels", "labels teach it to draw a class", drawing.labelled),
    Promise("global-rng", "no global random generator is used", training.global_rng),
    Promise("resume", "a stopped and killed run goes on to the same bits", runs.resume),
    Promise("test-split", "training never opens the test split", runs.test_split),
    Promise("network", "no network is used", runs.network),  # last: it also tells what the others met
)
PROMISES = {promise.name: promise for promise in _ALL}


def check(promise: Promise, subject: Subject) -> Outcome:
    """Whether the method keeps the promise, with the network closed. Whatever the method raises is an answer."""
    begun, change, fault = time.perf_counter(), "", ""
    with closed.network(subject.place, subject.reached_out):
        try:
            state, found = "kept", promise.check(subject)
        except NotApplicable as reason:
            state, found = "skipped", str(reason)
        except Broken as broken:
            state, found, change = "broken", broken.found, broken.change
            fault = _fault(broken.__cause__, subject) if isinstance(broken.__cause__, Exception) else ""
        except HarnessError as error:  # says itself what was expected
            state, found = "broken", f"{error.found}{closed.raised_from(error, subject.place)}"
            change = "; ".join(filter(None, (error.expected and f"expected {error.expected}", error.next_step)))
            fault = _fault(error, subject)
        except Exception as error:
            state, found = "broken", f"{type(error).__name__}: {error}{closed.raised_from(error, subject.place)}"
            change = _mend(error, subject)
            fault = _fault(error, subject)
    return Outcome(promise, state, found, change, time.perf_counter() - begun, fault)


def _fault(error: Exception, subject: Subject) -> str:
    """The line of the method that raised; the message, which may tell of the batch, only where there is no line."""
    return type(error).__name__ + (closed.raised_from(error, subject.place) or f": {error}")


def _mend(error: Exception, subject: Subject) -> str:
    spec, asked = subject.spec, closed.raised_from(error, Path(__file__).parent).strip(" ()")
    return (
        f"let it run through on images [B, {spec.channels}, {spec.size}, {spec.size}] in [-1, 1]; the check is {asked}"
    )
