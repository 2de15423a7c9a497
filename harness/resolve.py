"""Resolving a cell: its method's config, its key, its data set. The heavy half of reading a study.

torch is imported with the first method or data set, not with this module: a plan asks it for keys alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.budget import Budget, check_devices, parse_budget
from harness.config import override, plain
from harness.errors import HarnessError
from harness.plugins import card, load_eval, load_method, method_plugins
from harness.records import Cell
from harness.study import Study, slug
from harness.train.settings import BATCH, INTERFACE, UNKEYED, TrainConfig

if TYPE_CHECKING:
    from harness.data.dataset import Dataset
    from harness.data.glance import Glance
    from harness.data.spec import DataSpec
    from harness.method import Method


@dataclass(frozen=True)
class Job:
    """A cell with everything it needs to run."""

    cell: Cell
    key: str
    budget: Budget
    method_class: type[Method]
    config: Any
    train: TrainConfig  # batch_size settled
    data: Dataset
    source: Job | None = None  # whose pre-training this one reads, where that is not its own

    @property
    def label(self) -> str:
        return self.cell.label

    @property
    def verbs(self) -> frozenset[str]:
        """What its method does of what the interface names (`evaluation.can`)."""
        from harness.evaluation import verbs

        return verbs(self.method_class)

    @property
    def departs(self) -> frozenset[str] | None:
        """Of a reader: what of the interface it does otherwise than its source (`shared.departures`)."""
        from harness.shared import departures

        return None if self.source is None else departures(self.method_class, self.source.method_class)

    def build(self) -> Method:
        """The method, freshly initialised from the cell's seed."""
        import torch

        from harness.rng import Rng

        # Layers initialise from torch's global generator, which is seeded here and put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Rng(self.cell.seed).number("init"))
            return self.method_class.create(self.config, self.data.spec)


@cache
def dataset(name: str, data_dir: Path | None) -> Dataset:
    """The data set of that name, read once."""
    from harness.data.dataset import load

    return load(name, data_dir)


def jobs(study: Study, data_dir: Path | None = None, gpus: int | None = None) -> list[Job]:
    """Every cell of the study, resolved. Raises HarnessError before any work when one of them cannot run.

    `gpus` are those of the machine that does the work, where it is not this one.
    """
    if gpus is None:
        from harness import machine

        gpus = int(machine.device().type == "cuda")
    resolved = []
    for cell in study.cells():
        check_devices(parse_budget(cell.budget), gpus)
        resolved.append(resolve(study, cell, lambda name: dataset(name, data_dir)))
    require_all(study, data_dir)
    check_idle_sections(study, resolved[0].data.spec)
    return sorted(resolved, key=lambda job: job.source is not None)  # readers after what they read


def resolve(study: Study, cell: Cell, read: Callable[[str], Dataset | Glance]) -> Job:
    """One cell of the study; `read` gives its data set by name. Raises HarnessError when it cannot run."""
    method = load_method(cell.method)
    card(cell.method)  # its faults, too, come to light before any work
    if cell.size not in method.sizes:
        raise HarnessError(
            f"{cell.method} has no size {cell.size!r}", f"one of {', '.join(method.sizes)}", "--size nano"
        )
    data = read(cell.dataset)
    cell, train = settled(study, cell, data)
    return _job(cell, parse_budget(cell.budget), _config(study, method, cell, data), train, data)


def settled(study: Study, cell: Cell, data: Dataset | Glance) -> tuple[Cell, TrainConfig]:
    """The cell under the name of the data that were found, and the training with its batch size."""
    # `cifar10` may be its JPEG form, which is another data set (harness data says so).
    cell = cell.model_copy(update={"dataset": data.spec.name})
    return cell, replace(study.train, batch_size=study.train.batch_size or BATCH[cell.size])


def _config(study: Study, method: type[Method], cell: Cell, data: Dataset | Glance) -> Any:
    """The recipe with the study's settings; those of a shared pre-training hold for its readers too."""
    config = method.recipe(cell.size, data.spec)
    for section in filter(None, (method.pretrained_as, cell.method)):
        config = override(config, study.overrides.get(section, {}), section)
    return config


def _job(cell: Cell, budget: Budget, config: Any, train: TrainConfig, data: Dataset | Glance) -> Job:
    method = load_method(cell.method)
    source = None
    if method.pretrained_as:
        if method.Config is not load_method(method.pretrained_as).Config:
            raise HarnessError(
                f"{cell.method} reads the pre-training of {method.pretrained_as}, but has a Config of its own",
                "the same Config class, so that equal settings are equal weights",
                f"Config = {load_method(method.pretrained_as).__name__}.Config in methods/{cell.method}/method.py",
            )
        source = _job(cell.model_copy(update={"method": method.pretrained_as}), budget, config, train, data)
    return Job(cell, key(cell, plain(config), train, data.revision), budget, method, config, train, data, source)


def check_idle_sections(study: Study, data: DataSpec) -> None:
    """Settings of methods and evals that the study does not use: legal, as a study file may be shared, but no typos."""
    for name, values in study.overrides.items():
        if name in study.methods or name in study.evals:
            continue
        plugin = load_method(name) if name in method_plugins() else load_eval(name)
        recipe = plugin.recipe("nano", data) if name in method_plugins() else plugin.recipe("nano")
        override(recipe, values, name)


def key(cell: Cell, config: dict[str, Any], train: TrainConfig, revision: str) -> str:
    """A run's name, which changes whenever the computation would: a readable part and a hash of everything.

    `config` is the method's as plain values, `revision` the data set's.
    """
    keyed = {k: v for k, v in plain(train).items() if k not in UNKEYED}
    content = [INTERFACE, cell.model_dump(), config, keyed, revision]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return f"{slug(f'{cell.method}-{cell.dataset}-{cell.size}-{cell.budget}-s{cell.seed}')}-{digest}"


def readable(key: str) -> str:
    """The part of a run's key that tells its cell."""
    return key.rpartition("-")[0]


def require(name: str, config: Any, data_dir: Path | None) -> None:
    """Raise HarnessError where the eval lacks something that it needs beside a checkpoint: data sets of its own."""
    check = getattr(load_eval(name), "require", None)
    if check is not None:
        check(config, data_dir)


def require_all(study: Study, data_dir: Path | None) -> None:
    for name in study.evals:
        for size in study.size:
            require(name, eval_config(study, name, size), data_dir)


def eval_config(study: Study, name: str, size: str) -> Any:
    """An eval's settings for a size, with the study's overrides."""
    return override(load_eval(name).recipe(size), study.overrides.get(name, {}), name)
