"""The official repository's weights (FutureXiang/ddae) as ours.

The names are facts of its checkpoints; card ddae, section 15, has the map. Objective and head width leave no trace in
the weights, so whoever loads them says what they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from backbones.unet import Unet, UnetConfig
from harness.errors import HarnessError
from methods.ddae.method import Config

# Their names and ours, within a residual block, an attention, and the network.
RESIDUAL = {
    **{name: name for name in ("norm1", "conv1", "norm2")},
    "time_emb.1": "time_emb_proj",
    "conv2.1": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "projection": "qkv", "output": "to_out.0"}  # qkv is cut into three below
NETWORK = {
    "image_proj": "conv_in",
    "time_emb.lin1": "time_embedding.linear_1",
    "time_emb.lin2": "time_embedding.linear_2",
    "norm": "conv_norm_out",
    "final": "conv_out",
}


def from_official(
    checkpoint: Mapping[str, Any], objective: Literal["ddpm", "edm"] = "ddpm", head: int = 0
) -> tuple[Config, dict[str, Tensor]]:
    """The config and the state dict, for `Ddae`, of a checkpoint of theirs or of one of its state dicts.

    Of a whole checkpoint the averaged weights are taken. Raises HarnessError, with the names, when weights are missing,
    of another shape, or left over.
    """
    theirs = _network(checkpoint)
    net = _layout(theirs, head)
    names = dict(_names(net))
    state: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in theirs.items():
        module, _, kind = name.rpartition(".")
        if module == "time_emb.aug_emb":
            state[f"network.label.{kind}"] = tensor
        elif module not in names:
            unknown.append(name)
        else:
            state |= _renamed(f"network.unet.{names[module]}.{kind}", tensor, head)
    _check(net, theirs["image_proj.weight"].shape[1], state, unknown)
    return Config(net=net, objective=objective), state


def _network(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's tensors, by the names they have in it."""
    if "EMA" in checkpoint:
        found = {k.removeprefix("ema_model."): v for k, v in checkpoint["EMA"].items() if k.startswith("ema_model.")}
    else:
        found = dict(checkpoint.get("MODEL", checkpoint))
    found = {k.removeprefix("module.").removeprefix("nn_model."): v for k, v in found.items()}
    if "image_proj.weight" not in found:
        some = ", ".join(sorted(found)[:4]) or "nothing"
        raise HarnessError(
            f"no U-Net of the official DDAE in it: {some} ...", "image_proj.weight, down.0.res..., up..."
        )
    return found


def _layout(theirs: Mapping[str, Tensor], head: int) -> UnetConfig:
    """The network's measures, read off names and shapes; dropout leaves no trace."""
    width = theirs["image_proj.weight"].shape[0]
    kinds = {}
    for name in theirs:
        if name.startswith("down."):
            _, number, part, *_ = name.split(".")
            kinds.setdefault(int(number), set()).add(part)
    levels = [[*run] for between, run in groupby(sorted(kinds), key=lambda i: "res" not in kinds[i]) if not between]
    samplers = {part for parts in kinds.values() for part in parts} - {"res", "attn"}
    if len({len(level) for level in levels}) != 1 or len(samplers) > 1:
        raise HarnessError(f"an encoder of {[len(level) for level in levels]} blocks a level", "equally many in each")
    return UnetConfig(
        width=width,
        mults=tuple(theirs[f"down.{level[0]}.res.conv1.weight"].shape[0] // width for level in levels),
        blocks=len(levels[0]),
        attention=tuple(i for i, level in enumerate(levels) if "attn" in kinds[level[0]]),
        head=head,
        resample="residual" if "op" in samplers else "conv",
        label=theirs["time_emb.aug_emb.weight"].shape[1] if "time_emb.aug_emb.weight" in theirs else 0,
    )


def _names(net: UnetConfig) -> Iterator[tuple[str, str]]:
    """Their name and ours of every module that has weights."""
    yield from NETWORK.items()
    yield from _inside("middle.res1", "mid_block.resnets.0", RESIDUAL)
    yield from _inside("middle.attn", "mid_block.attentions.0", ATTENTION)
    yield from _inside("middle.res2", "mid_block.resnets.1", RESIDUAL)
    depth = len(net.mults)
    for way, sampler, blocks in (("down", "downsamplers", net.blocks), ("up", "upsamplers", net.blocks + 1)):
        number = 0
        for level in range(depth):
            ours = f"{way}_blocks.{level}"
            for block in range(blocks):
                yield from _inside(f"{way}.{number}.res", f"{ours}.resnets.{block}", RESIDUAL)
                if (level if way == "down" else depth - 1 - level) in net.attention:
                    yield from _inside(f"{way}.{number}.attn", f"{ours}.attentions.{block}", ATTENTION)
                number += 1
            if level < depth - 1:
                if net.resample == "conv":
                    yield f"{way}.{number}.conv", f"{ours}.{sampler}.0.conv"
                else:
                    yield from _inside(f"{way}.{number}.op", f"{ours}.{sampler}.0", RESIDUAL)
                number += 1


def _inside(theirs: str, ours: str, parts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{theirs}.{a}", f"{ours}.{b}") for a, b in parts.items())


def _renamed(name: str, tensor: Tensor, head: int) -> dict[str, Tensor]:
    """`tensor` under our name; the joint projection cut into query, key and value, which take turns head by head."""
    if ".qkv." not in name:
        return {name: tensor}
    width = len(tensor) // 3
    cut = tensor.unflatten(0, (width // (head or width), 3, head or width))  # [heads, 3, d, ...]
    return {name.replace("qkv", to): cut[:, i].flatten(0, 1).clone() for i, to in enumerate(("to_q", "to_k", "to_v"))}


def _check(net: UnetConfig, channels: int, state: Mapping[str, Tensor], unknown: list[str]) -> None:
    with torch.device("meta"):
        wanted = {f"network.{name}": t.shape for name, t in Unet(net, channels).state_dict().items()}
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [*unknown, *(name for name in state if name not in wanted)],
        "of another shape": [n for n, shape in wanted.items() if n in state and state[n].shape != shape],
    }
    said = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in faults.items() if names)
    if said:
        raise HarnessError(
            f"weights that do not fit the network they describe; {said}", "a state dict of the official DDAE"
        )
