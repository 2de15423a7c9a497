"""Pre-training of one run: prepare, cache, train, with its clock, its checkpoints and its snapshots.

It is long because it is one class: clock, log, snapshots and checkpoints all count on the same meter.

Whatever is killed, the same call goes on from the last checkpoint; what it has to do again is booked to `lost`.

All processes of a job make the same calls. The first one's clock decides, and it alone writes: after each step it tells
the others the share of the budget spent and what is due, so that all take the same steps at the same rates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from harness import checkpoint
from harness.budget import Budget, Meter, images_left
from harness.data.batches import Batches
from harness.data.dataset import Part
from harness.distributed import ALONE, Ranks
from harness.energy import EnergyMeter
from harness.errors import HarnessError
from harness.ledger import CHARGED, Ledger
from harness.method import Method, Objective
from harness.rng import Rng
from harness.store import RunFolder
from harness.train import calibrate, flops
from harness.train.latents import cached_latents
from harness.train.log import Tick, append_line, last_ledger
from harness.train.settings import TrainConfig
from harness.train.stage import Stage, run_stage

WITHIN = 0.01  # of a time budget, in which its spend is to land


class Interrupted(Exception):
    """The run was asked to stop and has saved itself."""


@dataclass
class Pretraining:
    """One run. `fit` is the only data it ever sees."""

    method: Method
    fit: Part
    mirror: bool
    budget: Budget
    settings: TrainConfig
    batch_size: int
    folder: RunFolder
    rng: Rng
    device: torch.device
    ranks: Ranks = ALONE
    notify: Callable[[Tick], None] = lambda tick: None
    say: Callable[[str], None] = lambda line: None
    should_stop: Callable[[], bool] = lambda: False
    guard: Callable[[], None] = lambda: None  # before anything is written; raises where another job has the run
    track: Callable[[dict[str, Any]], None] | None = None  # told every line of the log
    waited_s: float = 0.0  # in queues, over all attempts
    ledger: Ledger = field(default_factory=Ledger)
    energy: EnergyMeter = field(default_factory=EnergyMeter)  # of the charged accounts

    # what the meter counts besides time
    step: int = 0
    img: int = 0
    flop: float = 0.0
    train_img: int = 0
    snapshots: dict[float, dict[str, float]] = field(default_factory=dict)  # the meter at each share
    flop_per_image: dict[str, float] = field(default_factory=dict)
    prepared_in: str = "fp32"  # precision of the preparation
    worked_s: float = 0.0  # forward, backward and optimizer step of ended stages, and encoding into the cache
    stage: Stage | None = None

    def __post_init__(self) -> None:
        self._saved_at = self._logged_at = time.perf_counter()
        self._logged_img = 0
        self._resumed: dict[str, Any] | None = None
        self._share = 0.0  # of the budget spent, as all ranks know it

    @property
    def devices(self) -> int:
        """Of all ranks, one each, also on CPUs: device seconds are what all processes took together."""
        return self.ranks.world

    # -- the run, in order ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """From wherever it stands to the end of the budget. Raises Interrupted, Diverged or HarnessError."""
        self.method.to(self.device)
        self._resume()
        self.ledger.seconds["wait"] = max(self.waited_s, self.ledger.seconds["wait"])
        preparation = self.method.preparation()
        if preparation is not None and not self._resumed_in("train"):
            preparation.objective.requires_grad_(True)
            batch_size = preparation.batch_size or self.batch_size
            self._run_stage("prepare", preparation.objective, preparation.share, batch_size)
            self.prepared_in = self.stage.precision
        if preparation is not None:
            preparation.objective.requires_grad_(False)
        if self.stage is not None:
            self.worked_s += self.stage.timing.of(self.stage.step)
        again = self._resumed_in("train")
        with self._account("lost" if again else "prepare"):  # an undisturbed run does it once
            latents = cached_latents(self, again)
        self._run_stage("train", self.method, 1.0, self.batch_size, latents)

    def _resumed_in(self, stage: str) -> bool:
        """Whether the checkpoint that this attempt goes on from was made in that stage."""
        return self._resumed is not None and self._resumed["stage"]["name"] == stage

    def _run_stage(
        self, name: str, objective: Objective, ends_at: float, batch_size: int, latents: Tensor | None = None
    ) -> None:
        with self._account("compile"):
            self.stage = self._build(name, objective, ends_at, batch_size, latents)
            self.stage.warm_up()
        if self._resumed_in(name):
            self.stage.restore(self._resumed["stage"])
        elif name == "train":
            # At the shares that preparation took, too, the method is still untrained: the anytime curve says so.
            for share in [0.0, *self._due(self._agreed_share())]:
                self._snapshot(share)
            self._save()
        self._refuse_empty(name)
        self._agreed_share()
        self._logged_img, self._logged_at = self.img, time.perf_counter()
        with self._account(name):
            run_stage(self.stage, lambda: self._share, self._after_step)
        self._refuse_overspent(name)
        if self.budget.is_time and name == "train" and abs(self.spent() - 1) > WITHIN:
            self.say(f"spent {self.spent():.2%} of the budget: a step takes {self.stage.step_share:.1%} of it")
        if name == "train":
            self._snapshot(1.0)
        self._save()
        self._resumed = None

    def _build(self, name: str, objective: Objective, ends_at: float, batch_size: int, latents: Tensor | None) -> Stage:
        batches = Batches(
            self.fit,
            batch_size,
            self.rng.at(name),
            objective.augment(),
            self.mirror,
            latents,
            self.device,
            (self.ranks.rank, self.ranks.world),
            labels=objective.sees_labels,
        )
        rng = self.rng.at(name).to(self.device)
        probe, probing = batches.at(0), replace(rng, share=self.ranks.share(batch_size))
        objective.train()
        if name not in self.flop_per_image:
            of_part = flops.train_flop_per_image(objective, probe, probing)
            self.flop_per_image[name] = self.ranks.mean(of_part)  # of the whole batch, whose parts are equally large
        return Stage(
            name=name,
            objective=objective,
            batches=batches,
            batch_size=batch_size,
            rng=rng,
            device=self.device,
            precision=self._precision(name, objective, probe, probing),
            compiled=self.settings.compile,
            average=self.settings.ema if name == "train" else False,
            images_planned=self._images_planned(name, ends_at, batch_size),
            begun_at=self._agreed_share(),
            ends_at=ends_at,
            ranks=self.ranks,
        )

    def _precision(self, name: str, objective: Objective, probe: Any, rng: Rng) -> str:
        if self._resumed_in(name):
            return self._resumed["stage"]["precision"]
        if self.settings.precision != "auto":
            return self.settings.precision
        if not self.budget.is_time:
            return calibrate.by_device(self.device)
        return self.ranks.told(calibrate.fastest(objective, probe, rng, self.device)[0])

    def _images_planned(self, name: str, ends_at: float, batch_size: int) -> int | None:
        """Images of the stage for count budgets, fixed before its first step; None when time decides."""
        if self._resumed_in(name):
            return self._resumed["stage"]["images_planned"]
        per_image = self.flop_per_image[name]
        return images_left(self.budget, self.meter(), batch_size, len(self.fit.images), per_image, ends_at)

    def _refuse_empty(self, name: str) -> None:
        """A budget that the preparation used up, or that is smaller than one step, buys no result."""
        stage = self.stage
        if stage.images_planned is not None and stage.images_planned < 1:
            raise HarnessError(
                f"the budget {self.budget} is too small: nothing is left for {name!r}",
                f"room for at least one step of {stage.batch_size} images",
                "a larger --budget, or a smaller train.batch_size",
            )
        if stage.images_planned is None and stage.step == 0 and self._agreed_share() >= stage.ends_at:
            raise HarnessError(
                f"the budget {self.budget} was used up by preparation ({self.ledger.charged_s():.1f} s) "
                f"before {name!r} began",
                "a budget larger than what preparation costs",
                "a larger --budget, or a cheaper preparation (see the method's README)",
            )

    def _refuse_overspent(self, name: str) -> None:
        """A time budget that its first step alone overran bought no comparison."""
        stage = self.stage
        if stage.images_planned is None and stage.step == 1 and self._agreed_share() > 1.5 * stage.ends_at:
            raise HarnessError(
                f"the budget {self.budget} is too small: a step of {name!r} took {stage.step_share:.3g} times as much",
                "room for many steps",
                "a larger --budget, or a smaller train.batch_size",
            )

    # -- clock ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _account(self, name: str) -> Iterator[None]:
        """Seconds to the account, and joules to the sum where the account is charged."""
        with self.ledger.account(name), self.energy.counting(name in CHARGED):
            yield

    def meter(self) -> Meter:
        seconds = self.ledger.charged_s()
        return Meter(
            wall_s=seconds,
            device_s=seconds * self.devices,
            flop=self.flop,
            img=self.img,
            epoch=self.img / len(self.fit.images),
            step=self.step,
        )

    def spent(self) -> float:
        """Share of the budget spent, by this process's clock."""
        return self.budget.spent(self.meter())

    def _agreed_share(self) -> float:
        """Share of the budget spent, by the clock of rank 0."""
        (self._share,) = self.ranks.broadcast(self.spent())
        return self._share

    def joules(self) -> float | None:
        """Of the charged accounts, by all ranks; None where one of them could not be read."""
        own = self.energy.joules()
        every = [joules for (joules,) in self.ranks.gather(math.nan if own is None else own)]
        return None if any(map(math.isnan, every)) else sum(every)

    def outside_share(self) -> float | None:
        """Share of the charged time that went elsewhere: data, logging, bookkeeping. None before the first step."""
        charged = self.ledger.charged_s()
        inside = self.worked_s + (self.stage.timing.of(self.stage.step) if self.stage else 0.0)
        return max(0.0, 1 - inside / charged) if inside and charged > 0 else None

    # -- after each step ------------------------------------------------------------------------------------------

    def _after_step(self, stage: Stage, share: float, images: int) -> None:
        self.step += 1
        self.img += images
        self.flop += images * self.flop_per_image[stage.name]
        log, save = self._orders(stage)
        crossed = []
        if stage.name == "train":
            self.train_img += images
            crossed = self._due(self._share)
        if crossed:
            stage.check_finite()
            for due in crossed:
                self._snapshot(due)
            self._save()
        if log:
            self._log(self._share, time.perf_counter())
        # Rank 0 alone is asked: a signal reaches the others sooner or later, or not at all.
        if any(self.ranks.broadcast(self.should_stop())):
            self._save()
            raise Interrupted
        if save and not crossed:
            self._save()

    def after_chunk(self) -> None:
        """While what is trained on is cached, too, the log sees the time, and a wish to stop is honoured."""
        self.energy.keep_up()
        due = time.perf_counter() - self._logged_at >= self.settings.log_s
        log, stop = self.ranks.broadcast(due, self.should_stop())
        if log or stop:
            self._guarded()
            self._logged_at = time.perf_counter()
            self._write_line(event="caching")
        if stop:
            raise Interrupted

    def _orders(self, stage: Stage) -> list[float]:
        """What rank 0's clock says is due, for all ranks: to log, to save. And the share spent by now."""
        now, before = time.perf_counter(), self._share
        log, save = now - self._logged_at >= self.settings.log_s, now - self._saved_at >= self.settings.checkpoint_s
        self._share, *due = self.ranks.broadcast(self.spent(), log, save)
        stage.step_share = self._share - before
        return due

    def _log(self, share: float, now: float) -> None:
        self._guarded()
        stage = self.stage
        stage.check_finite()
        self.energy.keep_up()
        img_s = (self.img - self._logged_img) / (now - self._logged_at)
        self._logged_img, self._logged_at = self.img, now
        charged = self.ledger.charged_s()
        left_s = charged * (1 - share) / share if share > 0 else None
        self._write_line(
            phase=stage.name,
            share=round(share, 6),
            loss=stage.loss,
            terms={name: float(term.float().mean()) for name, term in stage.terms.items()},
            lr=stage.optimizer.param_groups[0]["lr"],
            img_s=round(img_s, 1),
        )
        self.notify(Tick(stage.name, share, stage.loss, img_s, left_s))

    def _write_line(self, **values: Any) -> None:
        if not self.ranks.first:
            return
        seconds = {name: round(s, 3) for name, s in self.ledger.snapshot().items() if s}
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "step": self.step, **values}
        append_line(self.folder.log, line | {"ledger": seconds})
        if self.track is not None:
            with self._account("wait"):  # for others than us: not the method's to pay
                self.track(line | {"ledger": seconds})

    def _guarded(self) -> None:
        """Ask the guard of rank 0; where it raises, all ranks do."""
        refused = None
        if self.ranks.first:
            try:
                self.guard()
            except BaseException as error:  # Superseded is no Exception
                if self.ranks.world == 1:
                    raise
                refused = error
        if (refused := self.ranks.told(refused)) is not None:
            raise refused

    # -- saving and resuming --------------------------------------------------------------------------------------

    def _due(self, share: float) -> list[float]:
        """The snapshots that should have been taken by now and were not."""
        return [s for s in self.settings.snapshots if s <= share and s not in self.snapshots]

    def _snapshot(self, share: float) -> None:
        self._guarded()
        with self._account("checkpoint"):
            if self.ranks.first:
                checkpoint.save_snapshot(self.folder.snapshots, share, self.stage.weights())
        self.snapshots[share] = vars(self.meter())

    def _save(self) -> None:
        self._guarded()
        if self.stage.step:
            # Before the account opens: a GPU's queued work belongs to training. And never save broken weights.
            self.stage.check_finite()
        energy = {"joules": self.joules(), "source": self.energy.source}
        with self._account("checkpoint"):
            if self.ranks.first:
                self._write_checkpoint(energy)
            self._saved_at = time.perf_counter()

    def _write_checkpoint(self, energy: dict[str, Any]) -> None:
        payload = {
            "method": self.method.state_dict(),
            "stage": self.stage.state(),
            "counters": [self.step, self.img, self.flop, self.train_img],
            "snapshots": dict(self.snapshots),
            "flop_per_image": dict(self.flop_per_image),
            "prepared_in": self.prepared_in,
            "worked_s": self.worked_s,
            "ledger": self.ledger.snapshot(),
            "energy": energy,
        }
        checkpoint.save(self.folder.checkpoints, self.step, payload)

    def _resume(self) -> None:
        payload = self._checkpoint()
        if payload is not None:
            self.method.load_state_dict(payload["method"])
            self.step, self.img, self.flop, self.train_img = payload["counters"]
            self.snapshots = payload["snapshots"]
            self.flop_per_image = payload["flop_per_image"]
            self.prepared_in = payload["prepared_in"]
            self.worked_s = payload["worked_s"]
            self.energy.restore(self._energy_before(payload.get("energy")))
            for name, seconds in payload["ledger"].items():
                self.ledger.add(name, seconds)
            self._resumed = payload
        if self.ranks.first:
            self._book_lost(last_ledger(self.folder.log))
        if self.folder.log.exists():
            self._write_line(event="resumed")

    def _checkpoint(self) -> dict[str, Any] | None:
        """What to go on from, the same on all ranks: rank 0 says which file."""
        payload, notices, name = None, [], None
        if self.ranks.first:
            payload, notices = checkpoint.load_latest(self.folder.checkpoints, self.device)
            name = None if payload is None else checkpoint.newest(self.folder.checkpoints).name
        for notice in notices:
            self.say(notice)
        if self.ranks.world > 1:
            name = self.ranks.told(name)
            if name is not None and not self.ranks.first:
                payload = checkpoint.load(self.folder.checkpoints / name, self.device)
        return payload

    def _energy_before(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """An earlier attempt's sum over all ranks is rank 0's to go on from; the others begin at 0."""
        if self.ranks.first or not state or state["joules"] is None:
            return state
        return {"joules": 0.0, "source": self.energy.source}

    def _book_lost(self, seen: dict[str, float]) -> None:
        """Whatever the log saw and the checkpoint does not know is done again: not charged, and shown."""
        known = self.ledger.snapshot()
        worked_s = sum(seen.values()) - seen.get("wait", 0.0)
        self.ledger.add("lost", max(0.0, worked_s - (sum(known.values()) - known["wait"])))
