"""OpenAI's ADM in our terms: which U-Net a state dict belongs to, and where each of its tensors goes.

Dhariwal & Nichol 2021; card difformer_diffeed, section 2. guided-diffusion names its blocks by their place in two
lists, `input_blocks` and `output_blocks`; `backbones/unet.py` holds the same blocks by level. Its attention holds q, k
and v in one matrix, grouped by head first ("legacy" order); ours holds three.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from backbones.unet import NETS, Unet, UnetConfig
from harness.errors import HarnessError

HEAD = 64  # channels of an attention head, in every released model; no tensor tells
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}


def adm_like(net: UnetConfig) -> UnetConfig:
    """`net`, its widths, levels and attention kept, built as ADM is; heads of 64 where its widths allow."""
    head = HEAD if all(net.width * m % HEAD == 0 for m in net.mults) else 0
    return replace(
        net,
        resample="residual",
        head=head,
        groups_out=net.groups,
        dropout=0.0,
        modulation="scale_shift",
        code="adm",
        read="after",
    )


def start_as_adm(network: Unet) -> Unet:
    """`network` with zeros where ADM starts with them: in the last layer of every block and of the whole."""
    for part in network.modules():
        last = [getattr(part, name, None) for name in ("conv2", "conv_out")]
        if hasattr(part, "to_out"):
            last.append(part.to_out[0])
        for layer in filter(None, last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


def config_of(state: Mapping[str, Tensor], head: int = HEAD) -> UnetConfig:
    """The U-Net that an official state dict is of, read off its names and shapes; dropout is left out.

    HarnessError where the tensors are not an unconditional ADM's with residual blocks that change the side.
    """
    if "time_embed.0.weight" not in state or "input_blocks.0.0.weight" not in state:
        near = ", ".join(sorted(state)[:3]) or "nothing"
        raise HarnessError(f"no time_embed and input_blocks among the tensors ({near} ...)", "ADM's state dict")
    if any(name.startswith("label_emb") for name in state):
        raise HarnessError("an ADM with labels", "the unconditional one", "256x256_diffusion_uncond.pt")
    width = state["time_embed.0.weight"].shape[1]
    inputs = {int(m[1]) for name in state if (m := re.match(r"input_blocks\.(\d+)\.", name))}
    ends = [int(m[1]) for name in state if (m := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight", name))]
    if not ends or len(inputs) % (min(ends) + 1):
        raise HarnessError("no level of the decoder ends on a residual block that doubles the side", "an official ADM")
    blocks = min(ends)
    firsts = range(1, len(inputs), blocks + 1)  # the first residual block of every level
    widths = [state[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] for i in firsts]
    attention = tuple(level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in state)
    mults = tuple(w // width for w in widths)
    return replace(NETS["adm256"], width=width, mults=mults, blocks=blocks, attention=attention, head=head)


def mapped(state: Mapping[str, Tensor], config: UnetConfig) -> dict[str, tuple[str, Tensor]]:
    """Every tensor under its name in `Unet(config)`, beside its official name; what has no place keeps that name."""
    placed = {}
    for theirs, tensor in state.items():
        stem, _, kind = theirs.rpartition(".")
        ours = _ours(stem, config.blocks)
        if ours is None:
            placed[theirs] = theirs, tensor
        elif ours.endswith("qkv"):
            by_head = tensor.reshape(-1, 3, config.head, *tensor.shape[1:2])  # [heads, 3, head, C], a bias without C
            for letter, matrix in zip("qkv", by_head.unbind(1), strict=True):
                placed[f"unet.{ours[:-3]}to_{letter}.{kind}"] = theirs, matrix.flatten(0, 1)
        else:  # the one convolution over a row of places is a linear layer here
            placed[f"unet.{ours}.{kind}"] = theirs, tensor.squeeze(-1) if tensor.ndim == 3 else tensor
    return placed


def _ours(stem: str, blocks: int) -> str | None:
    """Our name of a layer, in a network of `blocks` residual blocks a level; None for what is no layer of it."""
    if stem in OUTSIDE:
        return OUTSIDE[stem]
    found = re.fullmatch(r"(input_blocks|output_blocks|middle_block)((?:\.\d+){1,2})\.([a-z_]+(?:\.\d)?)", stem)
    if found is None or found[3] not in RESIDUAL | ATTENTION:
        return None
    side, place, part = found[1], [int(i) for i in found[2].split(".")[1:]], found[3]
    name = (RESIDUAL | ATTENTION)[part]
    if side == "middle_block":
        return f"mid_block.{'attentions' if part in ATTENTION else 'resnets'}.{place[0] // 2}.{name}"
    if len(place) < 2:
        return None
    level, i = divmod(place[0] - (side == "input_blocks"), blocks + 1)
    held = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{level}"
    if part in ATTENTION:
        return f"{held}.attentions.{i}.{name}"
    if side == "input_blocks" and i == blocks:
        return f"{held}.downsamplers.0.{name}"
    return f"{held}.resnets.{i}.{name}" if place[1] == 0 else f"{held}.upsamplers.0.{name}"
