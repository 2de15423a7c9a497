"""The tiny ADM of the golden numbers: official names and shapes, the rule that fills them, images, noise and heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from backbones.adaln_vit import sinusoid
from backbones.adm_unet import mapped
from backbones.diffusion import Diffusion
from backbones.feedback import Feedback, FeedbackHead
from backbones.heads import FusionHead, MapShape, Measures
from backbones.unet import NETS, Unet

TWIN = replace(NETS["adm256"], width=32, head=32)
SIDE, CLASSES, LABELS = 64, 10, torch.tensor([3, 1, 4, 1])
MEASURES = Measures(width=32, depth=2, heads=8, side=8)
PRINTED = 1e-8  # relative to the largest number of a part; ten digits are printed


def official(width: int, mults: tuple[int, ...], blocks: int, attention: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of guided-diffusion's state dict, for images of 3 channels and learned variance."""
    found: dict[str, tuple[int, ...]] = {}
    code, widths = 4 * width, [width * m for m in mults]

    def layer(name: str, *shape: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def residual(name: str, inside: int, out: int) -> None:
        layer(f"{name}.in_layers.0", inside)
        layer(f"{name}.in_layers.2", out, inside, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * out, code)
        layer(f"{name}.out_layers.0", out)
        layer(f"{name}.out_layers.3", out, out, 3, 3)
        if inside != out:
            layer(f"{name}.skip_connection", out, inside, 1, 1)

    def attend(name: str, channels: int) -> None:
        layer(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, 1)
        layer(f"{name}.proj_out", channels, channels, 1)

    layer("time_embed.0", code, width)
    layer("time_embed.2", code, code)
    layer("input_blocks.0.0", widths[0], 3, 3, 3)
    skips = [widths[0]]
    for level, out in enumerate(widths):
        for _ in range(blocks):
            residual(f"input_blocks.{len(skips)}.0", skips[-1], out)
            if level in attention:
                attend(f"input_blocks.{len(skips)}.1", out)
            skips.append(out)
        if level < len(widths) - 1:
            residual(f"input_blocks.{len(skips)}.0", out, out)
            skips.append(out)
    for i, part in enumerate((residual, attend, residual)):
        part(f"middle_block.{i}", *[widths[-1]] * (1 if part is attend else 2))
    number, before = 0, widths[-1]
    for level, out in reversed(list(enumerate(widths))):
        for i in range(blocks + 1):
            residual(f"output_blocks.{number}.0", before + skips.pop(), out)
            if level in attention:
                attend(f"output_blocks.{number}.1", out)
            if level and i == blocks:
                residual(f"output_blocks.{number}.{1 + (level in attention)}", out, out)
            number, before = number + 1, out
    layer("out.0", widths[0])
    layer("out.2", 6, widths[0], 3, 3)
    return found


def filled(shapes: Mapping[str, tuple[int, ...]], seed: int, norms: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The golden rule: 0.05 times the normal numbers of stream `seed` + i for the i-th of the sorted names, plus 1 for
    weights of norms (one-dimensional, or named)."""
    made = {}
    for i, name in enumerate(sorted(shapes)):
        draw = 0.05 * np.random.RandomState(seed + i).standard_normal(shapes[name])
        norm = name.endswith("weight") and (draw.ndim == 1 or name in norms)
        made[name] = torch.from_numpy(draw + norm)
    return made


class Code(nn.Module):
    """ADM's sinusoid in float64; diffusers' is float32 whatever it is given."""

    def forward(self, level: Tensor) -> Tensor:
        return sinusoid(level, TWIN.width, torch.float64, ends=False, cos_first=True)


def twin(dtype: torch.dtype = torch.float64) -> Unet:
    state = filled(official(TWIN.width, TWIN.mults, TWIN.blocks, TWIN.attention), 1000)
    network = Unet(TWIN, 3, 6).to(dtype)
    network.load_state_dict({ours: tensor for ours, (_, tensor) in mapped(state, TWIN).items()})
    if dtype == torch.float64:
        network.unet.time_proj = Code()
    return network.eval().requires_grad_(False)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    draw = np.random.RandomState(1).standard_normal((4, 3, SIDE, SIDE))
    return torch.from_numpy(np.clip(0.5 * draw, -1, 1)).to(dtype)


def noise(level: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(level).standard_normal((4, 3, SIDE, SIDE)))


def linear() -> Diffusion:
    """The schedule, with tables in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        return Diffusion("linear")
    finally:
        torch.set_default_dtype(torch.float32)


def head(blocks: list[int], levels: int, network: Unet) -> tuple[FusionHead, dict[str, str]]:
    """The head filled by the rule, and the reference's name of each of its parameters."""
    shapes = {str(b): MapShape(network.places[b].channels, SIDE // network.places[b].factor) for b in blocks}
    made = FusionHead(shapes, levels, CLASSES, MEASURES).double()
    names = {
        "transformer.cls": "intra_inter_block_attention.cls_token",
        "classify.weight": "head.weight",
        "classify.bias": "head.bias",
    }
    for kind in ("weight", "bias"):
        names |= {f"tokenizers.{i}.norm.{kind}": f"pre_layer.{b}.1.{kind}" for i, b in enumerate(blocks)}
        names |= {f"tokenizers.{i}.project.{kind}": f"pre_layer.{b}.2.{kind}" for i, b in enumerate(blocks)}
    for name, _ in made.transformer.blocks.named_parameters():
        i, part = name.split(".", 1)
        names[f"transformer.blocks.{name}"] = f"intra_inter_block_attention.layers.{int(i) + 1}.{part}"
    ours = {theirs: name for name, theirs in names.items()}
    parameters = dict(made.named_parameters())
    norms = tuple(theirs for theirs, name in ours.items() if ".norm.weight" in name)
    values = filled({theirs: parameters[name].shape for theirs, name in ours.items()}, 5000, norms)
    made.load_state_dict({name: values[theirs] for theirs, name in ours.items()})
    return made, names


def feedback(network: Unet, blocks: list[int]) -> Feedback:
    made = Feedback(network, blocks).double()
    values = filled({name: tuple(p.shape) for name, p in made.layers.named_parameters()}, 7000)
    made.layers.load_state_dict(made.layers.state_dict() | values)
    return made


def feedback_head(network: Unet, blocks: list[int]) -> tuple[FeedbackHead, dict[str, str]]:
    """DifFeed's head at level 150 filled by the rule, and the reference's name of each of its parameters."""
    level, schedule = torch.full((4,), 150), linear()
    made = FeedbackHead(
        network,
        lambda seen, rng: (schedule.noised(seen, level, noise(150)), level),
        feedback(network, blocks),
        readout=24,
        side=SIDE,
        classes=CLASSES,
        measures=MEASURES,
    )
    inner, names = head([24], 1, network)
    made.head = inner
    inner.layers = ["map"]
    theirs = {f"head.{ours}": f"head.{name}" for ours, name in names.items()}
    layers = {f"feedback.layers.{name}": f"feedback.{name}" for name, _ in made.feedback.layers.named_parameters()}
    return made, theirs | layers


def near(found: Tensor, wanted: list[float]) -> None:
    """First numbers and mean size, to the printed digits of the largest."""
    listed = [*found.detach().flatten()[:2].tolist(), found.detach().abs().mean().item()]
    size = found.detach().abs().max().item()
    assert max(abs(a - b) for a, b in zip(listed, wanted, strict=True)) <= PRINTED * size, (listed, wanted)
