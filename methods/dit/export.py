"""DiT for others: a timm ViT (on clean images the level is fixed, so the modulation folds), a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from backbones.dit_vit import DitVit
from backbones.timm_vit import FOLDED, TimmVit, args_of, folded, numbered, patch_kernel
from harness.errors import HarnessError
from harness.export.to_diffusers import Pipeline
from harness.method import Tap
from methods.dit.method import Config, Dit


@torch.no_grad()
def to_timm(method: Dit, tap: Tap) -> TimmVit:
    """The blocks up to `tap`; DiT has neither class token nor a norm between a block and its features."""
    net: DitVit = method.network
    trunk = method.config.trunk
    depth = int(tap.layer.removeprefix("block"))
    args = args_of(method.side, method.channels, net.patch, trunk.width, depth, trunk.heads, pool="avg", norm=False)
    args |= FOLDED | {"class_token": False}
    cond = net.condition(torch.zeros(1, dtype=torch.long, device=net.embed.weight.device))
    state = {
        "pos_embed": net.position[None],
        "patch_embed.proj.weight": patch_kernel(net.embed.weight, net.patch),
        "patch_embed.proj.bias": net.embed.bias,
    }
    state |= numbered("blocks", (folded(block, cond) for block in list(net.blocks)[:depth]))
    return TimmVit(args, state)


@torch.no_grad()
def to_diffusers(method: Dit) -> Pipeline:
    """DiT as diffusers has it, and the method's own sampler."""
    import diffusers

    c, net = method.config, method.network
    if method.vae is not None:
        raise HarnessError("a DiT on the latents of a VAE", "one on pixels", "--to safetensors")
    classes = net.classes or 1  # without labels a table of zeros stands where diffusers wants one
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=c.trunk.heads,
        attention_head_dim=c.trunk.width // c.trunk.heads,
        in_channels=method.channels,
        out_channels=method.channels * (2 if c.learn_sigma else 1),
        num_layers=c.trunk.depth,
        sample_size=method.side,
        patch_size=net.patch,
        num_embeds_ada_norm=classes,
        norm_eps=1e-6,
    )
    network.load_state_dict(dict(_as_diffusers(net, classes)))
    drawn = {"classes": method.data.classes, "guidance": c.guidance} if method.sees_labels else {}
    return Pipeline(
        network,
        _scheduler(c),
        c.sample_steps,
        forward=lambda x, t: net(x, torch.full((len(x),), t)),
        settings={"null_label": classes} | drawn,
    )


def _as_diffusers(net: DitVit, classes: int) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors under diffusers' names: every block there has the time and label codes to itself."""
    table = net.label_table.weight if net.classes else torch.zeros(classes + 1, net.embed.out_features)
    code = {f"timestep_embedder.linear_{i}": net.time_mlp[j] for i, j in ((1, 0), (2, 2))}
    yield "pos_embed.proj.weight", patch_kernel(net.embed.weight, net.patch)
    yield "pos_embed.proj.bias", net.embed.bias
    for i, block in enumerate(net.blocks):
        place = f"transformer_blocks.{i}"
        yield f"{place}.norm1.emb.class_embedder.embedding_table.weight", table
        parts = {f"norm1.emb.{name}": layer for name, layer in code.items()}
        parts |= {"norm1.linear": block.modulation, "attn1.to_out.0": block.attn.proj}
        parts |= {"ff.net.0.proj": block.mlp.fc1, "ff.net.2": block.mlp.fc2}
        for name, layer in parts.items():
            yield f"{place}.{name}.weight", layer.weight
            yield f"{place}.{name}.bias", layer.bias
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", getattr(block.attn.qkv, kind).chunk(3), strict=True):
                yield f"{place}.attn1.to_{name}.{kind}", part
    for name, layer in (("proj_out_1", net.final_modulation), ("proj_out_2", net.head)):
        yield f"{name}.weight", layer.weight
        yield f"{name}.bias", layer.bias


def _scheduler(c: Config) -> Any:
    """DDPM with the learned variance, or the upper bound where none is learned; or DDIM."""
    import diffusers

    betas = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    if c.sampler == "ddim":
        return diffusers.DDIMScheduler(beta_schedule=betas[c.schedule])
    variance = "learned_range" if c.learn_sigma else "fixed_large"
    return diffusers.DDPMScheduler(beta_schedule=betas[c.schedule], variance_type=variance)
