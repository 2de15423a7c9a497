"""Training settings that all methods of a study share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.errors import HarnessError

# Same batch for every method of a comparison (card evaluation, section 10); a method's rate follows from it. A VAE that
# is trained first has a batch size of its own.
BATCH = {"nano": 128, "ti": 256, "s": 512, "b": 1024, "l": 1024, "xl": 1024}
SIZES = tuple(BATCH)  # from small to large; here and not beside Method, so that tables need no torch

# Part of every run's key: raised whenever equal settings give another run, by a change of the method interface, in the
# batches or their augmentation, or in the training loop.
INTERFACE = 2

# Settings that change how a run is watched and saved, not what it computes: no part of its key.
UNKEYED = ("checkpoint_s", "log_s", "track")

# What else may be told what a run logs, and the package that each needs (train/track.py).
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@dataclass(frozen=True)
class TrainConfig:
    """`train.*` of a study."""

    batch_size: int = 0  # images a step, over all devices; 0 takes BATCH[size]
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: calibrated (time budgets) or by device (counts)
    compile: bool = False  # torch.compile; no gain was measured on CPU at nano, where it costs a minute
    ema: bool | float = True  # evaluate averaged weights; a number is the highest decay of DDAE's rule (train/ema.py)
    snapshots: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2)  # shares of the budget to evaluate, besides 0 and 1
    checkpoint_s: float = 30.0  # seconds between checkpoints
    log_s: float = 2.0  # seconds between log lines
    track: tuple[str, ...] = ()  # names of TRACKERS

    def __post_init__(self) -> None:
        if self.batch_size < 0:
            raise ValueError("the batch size must be at least 1 (or 0 for the size's own)")
        if not isinstance(self.ema, bool) and not 0 < self.ema < 1:
            raise ValueError("ema is true, false, or a decay between 0 and 1")
        if any(not 0 < round(share, 4) < 1 for share in self.snapshots):  # files are named by four decimals
            raise ValueError("snapshots lie strictly between 0 and 1; 0 and 1 are always taken")
        if not (self.checkpoint_s > 0 and self.log_s > 0):
            raise ValueError("seconds between checkpoints and log lines must be above 0")
        if unknown := [name for name in self.track if name not in TRACKERS]:
            raise ValueError(f"no tracker {unknown[0]!r}; known: {', '.join(TRACKERS)}")


def check_batch(batch_size: int, of: str, processes: int) -> None:
    """Raise HarnessError where the batch does not divide into equal parts."""
    if batch_size % processes:
        below, above = batch_size - batch_size % processes, batch_size + -batch_size % processes
        raise HarnessError(
            f"{of}={batch_size} over {processes} processes",
            f"a multiple of {processes}, so that every process has as many images of a batch",
            f"{of}={above}{f' or {of}={below}' if below else ''}, or another number of GPUs",
        )
