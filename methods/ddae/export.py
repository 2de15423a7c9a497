"""DDAE for others: a diffusers pipeline of its own U-Net and DDIM."""

from __future__ import annotations

from typing import Any

import torch

from backbones.diffusion import T
from harness.errors import HarnessError
from harness.export.to_diffusers import Pipeline
from methods.ddae.method import Config, Ddae


@torch.no_grad()
def to_diffusers(method: Ddae) -> Pipeline:
    """The U-Net with a table of time codes: diffusers counts timesteps from 0, DDAE tells (t + 1) / 1000."""
    import diffusers

    c, unet = method.config, method.network.unet
    _require_plain(c)
    changed = {"time_embedding_type": "learned", "num_train_timesteps": T, "sample_size": method.data.size}
    network = diffusers.UNet2DModel(**{k: v for k, v in unet.config.items() if not k.startswith("_")} | changed)
    told = (torch.arange(T) + 1) / T
    network.load_state_dict(unet.state_dict() | {"time_proj.weight": unet.time_proj(told)})
    labels = {"null_label": method.classes} if method.classes else {}
    if method.sees_labels:
        labels |= {"classes": method.data.classes, "guidance": c.guidance}
    return Pipeline(
        network,
        diffusers.DDIMScheduler(beta_schedule="linear"),
        c.sample_steps or 100,
        forward=lambda x, t: method.network(x, torch.full((len(x),), (t + 1) / T)),
        settings={"groups_out": c.net.groups_out} | labels,
    )


def _require_plain(c: Config) -> None:
    """Raise HarnessError for what diffusers' U-Net and DDIM cannot say."""
    found: dict[str, Any] = {
        "ADM's layout, whose levels and sampler the pipeline has not": c.layout != "ddae",
        "the EDM objective, whose preconditioning no scheduler of diffusers' does alike": c.objective != "ddpm",
        "a first level wider than the stem, which diffusers' U-Net has not": c.net.mults[0] != 1,
        "the reference's own schedule for sampling": c.ddim_schedule != "training",
    }
    for what, is_so in found.items():
        if is_so:
            raise HarnessError(f"a DDAE with {what}", "DDPM's objective, U-Net and schedule", "--to safetensors")
