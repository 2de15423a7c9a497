"""Official DDAE weights (FutureXiang/ddae: its network's state dict, or what its training saves) in our terms.

The names are facts of its checkpoints; card ddae, section 15, has the map. The joint projection of an attention becomes
three. Objective, image size and head width leave no trace in the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from torch import Tensor

from backbones.official import settle, shape_of
from backbones.unet import Unet, UnetConfig
from harness.errors import HarnessError
from harness.released import Official
from methods.ddae.method import Config

RECIPE = "DDAE: CIFAR-10, 2000 epochs; of the 35.7M network they took about 14 h on 4 RTX 3080 Ti"
WHAT = "the official DDAE"
ATTENTION_SIDE = 16  # px at which the official networks attend: tells the image's side
BOOKS = ("initted", "step")  # of ema-pytorch

# Their names and ours, within a residual block, an attention, and the network.
RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb.1": "time_emb_proj",
    "norm2": "norm2",
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


def from_official(state: Mapping[str, Tensor], head: int = 0) -> Official:
    """Widths, levels, blocks, attention and resampling from names and shapes; `head` is an attention head's width.

    Of a state with an average and the network that it follows (ema-pytorch's), the average. HarnessError where the
    tensors are no U-Net of theirs.
    """
    theirs, notes = _network(state)
    net = _layout(theirs, head)
    names = dict(_names(net))
    mapped: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in theirs.items():
        for ours, part in _ours(name, tensor, names, head):
            mapped[ours] = name, part
    channels = shape_of(theirs, "image_proj.weight", 4, WHAT)[1]
    settled = settle(lambda: Unet(net, channels), "network.", mapped)
    several = len(net.attention) > 1  # as ADM, whose coarsest level that attends has 8 px
    side = 8 * 2 ** max(net.attention) if several else ATTENTION_SIDE * 2 ** min(net.attention, default=1)
    notes += [
        "whether it predicts DDPM's noise or EDM's is not in the file: ddae.objective stays ddpm",
        f"{side} px, going by the levels that attend; one attention head, as in every published network",
    ]
    return Official(Config(net=net), channels, side, 0, *settled, notes, kept=("net.head",))


def _network(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors, by the names they have in it, and what was chosen."""
    notes = []
    if any(name.startswith("ema_model.") for name in state):
        notes = ["of the file's average and the network that it follows, the average"]
        left = ("online_model.", *BOOKS)
        state = {n.removeprefix("ema_model."): t for n, t in state.items() if not n.startswith(left)}
    return {n.removeprefix("module.").removeprefix("nn_model."): t for n, t in state.items()}, notes


def _layout(theirs: Mapping[str, Tensor], head: int) -> UnetConfig:
    """The network's measures, read off names and shapes; dropout leaves no trace."""
    width = shape_of(theirs, "image_proj.weight", 4, WHAT)[0]
    kinds: dict[int, set[str]] = {}
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
        mults=tuple(shape_of(theirs, f"down.{level[0]}.res.conv1.weight", 4, WHAT)[0] // width for level in levels),
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


def _ours(name: str, tensor: Tensor, names: Mapping[str, str], head: int) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors for one of theirs; a name that is not known stays, for `settle` to report."""
    module, _, kind = name.rpartition(".")
    if module == "time_emb.aug_emb":
        yield f"label.{kind}", tensor
    elif module not in names:
        yield name, tensor
    elif not module.endswith(".projection"):
        yield f"unet.{names[module]}.{kind}", tensor
    else:  # query, key and value take turns, head by head
        width = head or len(tensor) // 3
        cut = tensor.unflatten(0, (-1, 3, width))  # [heads, 3, width, ...]
        for i, to in enumerate(("to_q", "to_k", "to_v")):
            yield f"unet.{names[module].replace('qkv', to)}.{kind}", cut[:, i].flatten(0, 1)
