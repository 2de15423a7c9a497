"""What training changes and no checkpoint holds: attributes of modules that are neither parameters nor buffers, and
global random generators. Found by looking at a method before and after some steps."""

from __future__ import annotations

import hashlib
import pickle
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from harness import machine
from harness.budget import Budget
from harness.method import Method
from harness.resolve import Job
from harness.rng import Rng
from harness.store import RunFolder
from harness.train.pretraining import Pretraining

STEPS = 12
OF_MODULES = frozenset(vars(nn.Module())) | {"_is_accelerate_prepared"}  # what torch and accelerate keep there
GENERATORS = {
    "torch's global generator": lambda: torch.get_rng_state().numpy().tobytes(),
    "Python's global random": lambda: repr(random.getstate()),
    "numpy's global random": lambda: repr(np.random.get_state()),
}


def generators() -> dict[str, Any]:
    """The state of each global generator, by its name."""
    return {name: draw() for name, draw in GENERATORS.items()}


def state(job: Job) -> list[str]:
    """A line for each thing that some steps of training changed and that no checkpoint holds.

    Some may be harmless: what is computed anew wherever it is missing.
    """
    method = job.build()
    with tempfile.TemporaryDirectory() as folder:
        work = Pretraining(
            method=method,
            fit=job.data.fit,
            mirror=job.data.mirror,
            budget=Budget(STEPS, "step"),
            settings=job.train,
            batch_size=min(job.train.batch_size, len(job.data.fit.images)),
            folder=RunFolder(Path(folder)),
            rng=Rng(job.cell.seed),
            device=machine.device(),
        )
        return changed(method, work.run)


def changed(method: Method, work: Callable[[], None]) -> list[str]:
    """A line for each thing that `work` changed of the method or of global generators and that no state_dict holds."""
    before, drawn = _attributes(method), generators()
    work()
    after = _attributes(method)
    kind = type(method).__name__
    names = [name for name in after if name not in before or before[name][0] != after[name][0]]
    lines = [f"{kind}.{name}: {before.get(name, (None, 'not there'))[1]} became {after[name][1]}" for name in names]
    return lines + [f"{name}, drawn from in training" for name, now in generators().items() if now != drawn[name]]


def _attributes(method: Method) -> dict[str, tuple[str, str]]:
    """Of every attribute of every module that is in no state_dict: a digest of its value, and how it is shown."""
    found = {}
    for place, module in method.named_modules():
        kept_apart = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        plain = {name: value for name, value in vars(module).items() if name not in OF_MODULES}
        for name, value in (plain | kept_apart).items():
            digest = _digest(value)
            if digest is not None:
                found[f"{place}.{name}".lstrip(".")] = digest, _shown(value)
    return found


def _digest(value: Any) -> str | None:
    """None for what cannot be written down, for functions, and for modules, which are looked at themselves."""
    if isinstance(value, nn.Module) or callable(value):
        return None
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # whatever a plugin's objects raise
        return None


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
