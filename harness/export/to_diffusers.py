"""A folder that diffusers draws with: its own network and scheduler classes, and `pipeline.py` beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.export.folders import made
from harness.method import Method
from harness.rng import Rng

TOLERANCE = 1e-4  # of the output's largest value; a wrong tensor is off by far more, float32 by far less
IMAGES = 4
TIMES = (0, 40, 500, 999)


@dataclass(frozen=True)
class Pipeline:
    """What `pipeline.HarnessPipeline` is made of."""

    network: nn.Module  # diffusers', with the method's weights
    scheduler: Any
    steps: int
    forward: Callable[[Tensor, int], Tensor]  # the method's own network at a timestep from 0, to compare with
    settings: dict[str, Any] = field(default_factory=dict)  # groups_out, null_label, classes, guidance


def write_diffusers(place: Path, method: Method, to_diffusers: Callable[[Method], Pipeline]) -> list[str]:
    """Write the pipeline; lines that say how to load it.

    Raises HarnessError, and leaves nothing, when its network's output differs from the method's.
    """
    from harness.export.pipeline import HarnessPipeline

    made_of = to_diffusers(method)
    with made(place) as folder:
        pipe = HarnessPipeline(made_of.network.eval(), made_of.scheduler, made_of.steps, **made_of.settings)
        _require_steps(pipe, made_of.steps)
        pipe.save_pretrained(folder)
        shutil.copyfile(Path(__file__).with_name("pipeline.py"), folder / "pipeline.py")
        difference = _difference(folder, method, made_of)
    words = f'"{place}", custom_pipeline="{place}", trust_remote_code=True'
    return [
        f"diffusers.DiffusionPipeline.from_pretrained({words})",
        f"{type(made_of.network).__name__} and {type(made_of.scheduler).__name__}; the code it asks to trust is "
        f"{place / 'pipeline.py'}",
        f"largest difference of the network's output to the method's: {difference:.1e} (relative)",
    ]


def _require_steps(pipe: Any, steps: int) -> None:
    """Raise HarnessError where diffusers' scheduler cannot take the method's own number of steps."""
    try:
        pipe.set_steps(steps)
    except ValueError as error:
        raise HarnessError(
            f"a pipeline of {steps} steps: {error}", "a number that it can", "--to safetensors"
        ) from error


@torch.no_grad()
def _difference(folder: Path, method: Method, made_of: Pipeline) -> float:
    """The largest difference between what is read back and the method's network, as a share of the largest output."""
    from diffusers.utils import logging

    from harness.export.pipeline import HarnessPipeline

    logging.disable_progress_bar()
    try:
        pipe = HarnessPipeline.from_pretrained(folder)
    finally:
        logging.enable_progress_bar()
    spec, found = method.data, 0.0
    for t in TIMES:
        x = Rng(0).normal("images", (IMAGES, spec.channels, spec.size, spec.size))
        ours, theirs = made_of.forward(x, t), pipe.denoise(x, t)
        gap = float((theirs - ours).abs().max() / ours.abs().max().clamp(min=1e-30)) if ours.any() else 0.0
        if theirs.shape != ours.shape or not gap < TOLERANCE:
            raise HarnessError(
                f"diffusers' output differs from the method's by {gap:.1e} of it, at timestep {t}",
                f"below {TOLERANCE:g}",
            )
        found = max(found, gap)
    return found
