"""The training loop: one objective, from where it stands to the end of its part of the budget."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.data.batches import Batches
from harness.distributed import ALONE, Ranks
from harness.errors import Diverged
from harness.method import Batch, Objective
from harness.rng import Rng
from harness.train.ema import Ema
from harness.train.optim import build_optimizer, rate, set_rate

TIMED_EVERY = {"cpu": 1, "cuda": 50}  # steps; timing the parts of a step stalls a GPU, so only some are timed


@dataclass
class Timing:
    """What the timed steps took inside forward, backward and optimizer step."""

    inside_s: float = 0.0
    steps: int = 0  # that were timed

    def of(self, steps: int) -> float:
        """Seconds that `steps` steps spent inside, those that were not timed like those that were."""
        return self.inside_s / self.steps * steps if self.steps else 0.0


@dataclass
class Stage:
    """One objective's training: its data, optimizer, average and position.

    With several `ranks`, `batches` are this process's parts, and gradients and losses are means over the whole batch.
    """

    name: str  # "prepare" or "train": also the account it is charged to
    objective: Objective
    batches: Batches
    batch_size: int
    rng: Rng
    device: torch.device
    precision: str
    compiled: bool
    average: bool | float  # keep a moving average of the weights; a number is its highest decay (Ema's `cap`)
    images_planned: int | None  # of a count budget; None when time decides
    begun_at: float = 0.0  # share of the whole budget spent when the stage began
    ends_at: float = 1.0  # share of the whole budget at which it ends
    ranks: Ranks = ALONE
    step: int = 0
    img: int = 0
    step_share: float = 0.0  # of the whole budget that the last step took
    timing: Timing = field(default_factory=Timing)
    loss: float = math.nan
    terms: dict[str, Tensor] = field(default_factory=dict)  # of the last step, over this process's part

    def __post_init__(self) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.optim = self.objective.optim(self.batch_size)
        self.objective.train()
        optimizer = build_optimizer(self.objective, self.optim)
        # Precision is process-wide state in accelerate, and the runs of a study choose it one by one.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="bf16" if self.precision == "bf16" else "no",
            kwargs_handlers=self._parallel(),
        )
        if self.ranks.world > 1:  # in the log of each process, for whoever looks why they do not act as one
            said = filter(None, map(str.strip, str(self.accelerator.state).splitlines()))
            print(f"accelerate: {'; '.join(said)}", flush=True)
        self.model, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        if self.compiled:
            self.objective.compile(dynamic=True)
        cap = None if isinstance(self.average, bool) else self.average
        self.ema = Ema(self.objective, cap) if self.average else None
        self._first_bad = torch.full((), math.inf, device=self.device)
        self._last = torch.full((), math.nan, device=self.device)

    def _parallel(self) -> list[Any]:
        """How accelerate is to share the objective among the processes of the group it finds.

        Buffers are rank 0's at every step: statistics that a step takes of its batch are of rank 0's part.
        """
        from accelerate.utils import DistributedDataParallelKwargs

        if self.ranks.world == 1:
            return []
        idle = any(idle for (idle,) in self.ranks.gather(self._leaves_idle()))
        return [DistributedDataParallelKwargs(find_unused_parameters=idle, gradient_as_bucket_view=True)]

    def _leaves_idle(self) -> bool:
        """Whether a step may reach the end without a gradient for some parameter: looking for those costs time.

        Asked of a step on a whole batch and of one on the short last batch, whose parts may differ in kind.
        """
        kept = {name: buffer.clone() for name, buffer in self.objective.named_buffers()}
        idle = False
        for whole in {self.batch_size, (self.images_planned or 0) % self.batch_size} - {0}:
            self.objective(self._mine(self.batches.at(0), whole), 0.0, self._stream(whole)).total.backward()
            idle |= any(p.grad is None for p in self.objective.parameters() if p.requires_grad)
            self.objective.zero_grad(set_to_none=True)
        for name, buffer in self.objective.named_buffers():
            buffer.copy_(kept[name])
        return idle

    def warm_up(self) -> None:
        """One step that leaves no trace, so that one-time work (imports, kernels, compilation) is not charged."""
        kept = [tensor.detach().clone() for tensor in self._tensors()]
        settings = self.optimizer.state_dict()  # of no step yet; Adan counts its steps in the groups
        set_rate(self.optimizer, 0.0)
        with warnings.catch_warnings():
            # Said once, of gradients whose memory is laid out otherwise than their weights'; a copy is all it costs.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self._descend(self.batches.at(0), 0.0, self.batch_size)
        self.optimizer.load_state_dict(settings)
        with torch.no_grad():
            for tensor, before in zip(self._tensors(), kept, strict=True):
                tensor.copy_(before)

    def _tensors(self) -> list[Tensor]:
        return [*self.objective.parameters(), *self.objective.buffers()]

    # -- position -------------------------------------------------------------------------------------------------

    def progress(self, spent: float) -> float:
        """Share of this stage done; `spent` is the share of the whole budget."""
        if self.images_planned is not None:
            return self.img / self.images_planned
        return min(1.0, max(0.0, (spent - self.begun_at) / (self.ends_at - self.begun_at)))

    def step_img(self) -> int:
        """Images of the current step's whole batch; the last one of a count budget takes only what is left."""
        left = self.batch_size if self.images_planned is None else self.images_planned - self.img
        return min(left, self.batch_size)

    def _mine(self, batch: Batch, whole: int) -> Batch:
        """What this process has of the first `whole` images of a batch, of which `batch` is its part."""
        if whole == self.batch_size:
            return batch
        share = self.ranks.share(whole)
        mine = whole if share is None else share.count
        return Batch(*(None if part is None else part[:mine] for part in batch))

    def _stream(self, whole: int) -> Rng:
        """Draws of the current step for a batch of `whole` images."""
        return replace(self.rng, share=self.ranks.share(whole)).at("step", self.step)

    # -- one step -------------------------------------------------------------------------------------------------

    def advance(self, progress: float) -> int:
        """Take one optimizer step; returns the images it used, of all ranks.

        Raises Diverged when the loss is not finite.
        """
        timed = self.step % TIMED_EVERY[self.device.type] == 0
        size = self.step_img()
        batch = self._mine(self.batches.at(self.step), size)
        set_rate(self.optimizer, rate(self.optim, progress))
        entered = self._now(timed)
        total = self._descend(batch, progress, size)
        left = self._now(timed)
        self.step += 1
        self.img += size
        if self.ema is not None:
            self.ema.update(self.img, size, self.step)
        self._watch(total)
        if timed:
            self.timing.inside_s += left - entered
            self.timing.steps += 1
        return size

    def _descend(self, batch: Batch, progress: float, whole: int) -> Tensor:
        """Forward, backward, clip, step. `batch` is this process's part of `whole` images."""
        total, terms = self.model(batch, progress, self._stream(whole))
        self.terms = {name: term.detach() for name, term in terms.items()}
        weight = self.ranks.weight(whole)
        if weight != 1:
            total = total * weight
        self.accelerator.backward(total)
        if self.optim.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.detach()

    def _now(self, synchronised: bool) -> float:
        if synchronised and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _watch(self, total: Tensor) -> None:
        """Remember the first step whose loss is not finite; asking a GPU for it waits for the GPU, so ask rarely."""
        here = torch.full_like(self._first_bad, self.step)
        self._first_bad = torch.where(total.isfinite(), self._first_bad, torch.minimum(self._first_bad, here))
        self._last = total
        if self.step % TIMED_EVERY[self.device.type] == 0:
            self.check_finite()

    def check_finite(self) -> None:
        """Raise Diverged, naming the step, when a loss so far was not finite; refreshes `loss`. All ranks call it."""
        every = self.ranks.gather(float(self._first_bad), float(self._last))
        bad = min(first for first, _ in every)
        self.loss = sum(last for _, last in every) / len(every)
        if math.isfinite(bad):
            raise Diverged(int(bad), "loss", self.loss)

    # -- saving ---------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """What is evaluated: the average where one is kept."""
        return self.ema.settled(self.objective) if self.ema is not None else self.objective.state_dict()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the stage, the objective's own weights apart."""
        return {
            "name": self.name,
            "step": self.step,
            "img": self.img,
            "step_share": self.step_share,
            "begun_at": self.begun_at,
            "images_planned": self.images_planned,
            "precision": self.precision,
            "timing": [self.timing.inside_s, self.timing.steps],
            "loss": self.loss,
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.averaged if self.ema is not None else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.img, self.step_share = state["step"], state["img"], state["step_share"]
        self.begun_at = state["begun_at"]
        self.timing = Timing(*state["timing"])
        self.loss = state["loss"]
        self._last.fill_(self.loss)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            for name, tensor in self.ema.averaged.items():
                tensor.copy_(state["ema"][name])


def run_stage(
    stage: Stage,
    spent: Callable[[], float],
    after_step: Callable[[Stage, float, int], None],
) -> None:
    """Step until the stage's part of the budget is spent.

    `spent()` is the share of the whole budget spent; `after_step(stage, share, images)` books, logs, saves and may
    raise to stop. A time budget ends at the step boundary nearest to it, half a step early or late.
    """
    before = spent()
    while not _over(stage, before):
        images = stage.advance(stage.progress(before))
        share = spent()
        stage.step_share = share - before
        after_step(stage, share, images)
        before = spent()
    stage.check_finite()


def _over(stage: Stage, share: float) -> bool:
    if stage.images_planned is not None:
        return stage.img >= stage.images_planned
    return stage.step > 0 and share + stage.step_share / 2 >= stage.ends_at
