"""The reference's parameters (JAX/Flax) as `UmdVit`'s state dict.

The reference's layouts (card umd, section 11): dense kernels are (in, out); attention keeps heads apart, (D,
heads, hd) on the way in and (heads, hd, D) on the way out; the layers of a stack are one leading axis; a
transposed convolution's kernel is flipped in space against torch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from harness.errors import HarnessError


class _Source:
    """Flax parameters by path; each is taken once, so what is left over is what we did not understand."""

    def __init__(self, params: Mapping[str, np.ndarray]) -> None:
        self.left = dict(params)

    def __call__(self, path: str) -> Tensor:
        if path not in self.left:
            raise HarnessError(f"no parameter {path!r} in the UMD checkpoint", "the reference's names, joined by '/'")
        return torch.from_numpy(np.array(self.left.pop(path)))

    def linear(self, ours: str, theirs: str) -> dict[str, Tensor]:
        return {f"{ours}.weight": self(f"{theirs}/kernel").mT, f"{ours}.bias": self(f"{theirs}/bias")}

    def norm(self, ours: str, theirs: str) -> dict[str, Tensor]:
        return {f"{ours}.weight": self(f"{theirs}/scale"), f"{ours}.bias": self(f"{theirs}/bias")}

    def stack(self, trunk: str) -> str:
        """The path of a trunk's stacked blocks; its last part is made by Flax from the wrappers in use."""
        paths = {path.split("/")[1] for path in self.left if path.startswith(f"{trunk}/")} - {"encoder_norm"}
        if len(paths) != 1:
            raise HarnessError(f"{trunk} holds {sorted(paths)}", "one stack of blocks (scan over layers) and a norm")
        return f"{trunk}/{paths.pop()}"


def from_flax(params: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """`UmdVit`'s state dict from parameters named by Flax path ("Encoder/encoder_norm/bias").

    Raises HarnessError that names what is missing or unknown.
    """
    source = _Source(params)
    state = _ends(source)
    for ours, theirs in (("encoder", "Encoder"), ("decoder", "Decoder")):
        state |= source.norm(f"{ours}_norm", f"{theirs}/encoder_norm")
        state |= dict(_blocks(source, ours, source.stack(theirs)))
    for ours, theirs in (("time_mlp", "time_trunk"), ("label_mlp", "label_trunk")):
        if any(path.startswith(theirs) for path in source.left):
            state |= source.linear(f"{ours}.0", f"{theirs}/Dense_0")
            state |= source.linear(f"{ours}.2", f"{theirs}/Dense_1")
    if source.left:
        raise HarnessError(f"unknown parameters in the UMD checkpoint: {', '.join(sorted(source.left))}")
    return {name: value.contiguous() for name, value in state.items()}


def _ends(source: _Source) -> dict[str, Tensor]:
    """Everything before, between and after the two stacks of blocks."""
    head = source("final_conv/kernel").flip(0, 1)  # [p, p, D, 2C]
    state = {
        "embed.weight": source("embedding/kernel").flatten(0, 2).T,
        "embed.bias": source("embedding/bias"),
        "position": source("pos_embedding").squeeze(0),
        "decoder_position": source("dec_pos_embedding").squeeze(0),
        "cls": source("cls").squeeze(0),
        "mask_token": source("image_mask_embedding").flatten(),
        "head.weight": head.mT.flatten(0, 2),
        "head_bias": source("final_conv/bias").unflatten(0, (2, -1)),
    }
    if "label_emb/embedding/embedding" in source.left:
        state["label_table.weight"] = source("label_emb/embedding/embedding")
    return state | source.linear("final_modulation", "final_modulation")


def _blocks(source: _Source, ours: str, theirs: str) -> Iterator[tuple[str, Tensor]]:
    """The stacked blocks, taken apart into layers and named as ours."""
    stacked = source.linear("modulation", f"{theirs}/Dense_0")
    for i in (0, 1):
        stacked |= source.norm(f"norm{i + 1}", f"{theirs}/LayerNorm_{i}")
        stacked |= source.linear(f"mlp.fc{i + 1}", f"{theirs}/MlpBlock_0/Dense_{i}")
    attention = f"{theirs}/MultiHeadDotProductAttention_0"
    parts = ("query", "key", "value")
    weights = [source(f"{attention}/{part}/kernel").flatten(2).mT for part in parts]  # [layers, D, D]
    stacked["attn.qkv.weight"] = torch.cat(weights, dim=1)
    stacked["attn.qkv.bias"] = torch.cat([source(f"{attention}/{part}/bias").flatten(1) for part in parts], dim=1)
    stacked["attn.proj.weight"] = source(f"{attention}/out/kernel").flatten(1, 2).mT
    stacked["attn.proj.bias"] = source(f"{attention}/out/bias")
    for name, value in stacked.items():
        for layer, part in enumerate(value):
            yield f"{ours}.{layer}.{name}", part
