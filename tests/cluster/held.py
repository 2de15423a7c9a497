"""Toy methods that studies on the test cluster run, as a plugin: `studies.py` copies this file to where it is found.

While the file that HELD names exists a step takes half a second, so that a test can strike a run before its end and
let it go on at full speed afterwards.
"""

from __future__ import annotations

import atexit
import os
import time
from pathlib import Path

import torch

from harness.method import Batch, Loss
from harness.rng import Rng
from tests.toys import Toy

VERSION = 1  # of the code that ran: stands in every line of the log
STEP_S = 0.5


class Held(Toy):
    inputs = 64  # digits

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        if Path(os.environ["HELD"]).exists():
            time.sleep(STEP_S)
        loss = super().pretrain(batch, progress, rng)
        return loss._replace(terms=loss.terms | {"version": torch.tensor(VERSION)})


class Other(Held):
    """A second method."""


class Broken(Held):
    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        raise RuntimeError("this toy is broken")


class Exits(Held):
    """Its process ends badly after its work is done, as a library's clean-up at the exit may."""

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        atexit.register(os._exit, 3)
        return super().pretrain(batch, progress, rng)


class Reader(Broken):
    pretrained_as = "broken"
