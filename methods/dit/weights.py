"""Official DiT weights (facebookresearch/DiT: `DiT.state_dict()`, or the "ema" of a training checkpoint) in our terms.

The card, section 2, has the layouts: the patch embedding is a convolution there, [D, C, p, p], and a matrix over cut
patches here; the fixed position code is a parameter there and made anew here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from backbones.dit_vit import DitVit
from backbones.official import heads_of, is_fixed, layers_in, settle, shape_of, square
from backbones.sizes import Trunk
from backbones.tokens import sincos_2d
from harness.errors import HarnessError
from harness.released import Official
from methods.dit.method import Config

RECIPE = "DiT: ImageNet-1k with labels, batch 256; XL/2 for 7M steps, the other sizes for 400k; and the VAE"
LATENT = 4  # channels of Stable Diffusion's latents, of an 8th of the image's side
VAE = "stabilityai/sd-vae-ft-mse"  # that the official scripts sample with; its encoder is the original one
NAMES = {
    "x_embedder.proj.": "embed.",
    "t_embedder.mlp.": "time_mlp.",
    "y_embedder.embedding_table.": "label_table.",
    "final_layer.adaLN_modulation.1.": "final_modulation.",
    "final_layer.linear.": "head.",
}


def from_official(state: Mapping[str, Tensor]) -> Official:
    """Width, depth, patch, side, channels, classes and learned variance from the shapes; heads by convention.

    HarnessError where the tensors are no DiT's, or fit no size that the paper's convention knows.
    """
    config, channels, side = _measures(state)
    c, latent = config, channels == LATENT
    notes = [f"{c.trunk.heads} heads by convention for width {c.trunk.width}"]
    mapped = {_ours(name): (name, value) for name, value in state.items()}
    convolution = state["x_embedder.proj.weight"]
    mapped["embed.weight"] = "x_embedder.proj.weight", convolution.permute(0, 2, 3, 1).flatten(1)
    if is_fixed(state["pos_embed"], sincos_2d(c.trunk.width, side // c.patch)):
        del mapped["pos_embed"]
    else:
        notes.append("pos_embed is not the fixed sin-cos code; the network keeps its own")
    if latent:
        notes.append(f"on latents of Stable Diffusion's VAE, to be had as {VAE} or from a folder (dit.vae)")
    if c.classes:
        notes.append("trained with labels; features are read without one, samples are of classes drawn evenly")
    out = channels * (2 if c.learn_sigma else 1)
    settled = settle(lambda: DitVit(side, channels, out, c.patch, *c.trunk, classes=c.classes), "network.", mapped)
    colours, size = (3, 8 * side) if latent else (channels, side)
    return Official(c, colours, size, c.classes, *settled, notes)


def _measures(state: Mapping[str, Tensor]) -> tuple[Config, int, int]:
    """The config, and channels and side of what the network sees."""
    width, channels, patch, _ = shape_of(state, "x_embedder.proj.weight", 4, "DiT")
    numbers, _ = shape_of(state, "final_layer.linear.weight", 2, "DiT")
    tokens = shape_of(state, "pos_embed", 3, "DiT")[1]
    out, classes = numbers // patch**2, _classes(state)
    if out not in (channels, 2 * channels):
        raise HarnessError(
            f"a head of {out} channels over {channels}", f"{channels}, or {2 * channels} with the variance"
        )
    if channels not in (1, 3, LATENT):
        raise HarnessError(f"a DiT on {channels} channels", "1 or 3 of pixels, or 4 of Stable Diffusion's latents")
    config = Config(
        vae=VAE if channels == LATENT else "none",
        patch=patch,
        trunk=Trunk(width, layers_in(state, "blocks."), heads_of(width)),
        classes=classes,
        labels=classes > 0,
        learn_sigma=out == 2 * channels,
    )
    return config, channels, patch * square(tokens, "tokens")


def _ours(name: str) -> str:
    """The network's name of a tensor that the official code calls `name`."""
    for theirs, ours in NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name.replace(".adaLN_modulation.1.", ".modulation.")


def _classes(state: Mapping[str, Tensor]) -> int:
    if "y_embedder.embedding_table.weight" not in state:
        return 0
    rows = shape_of(state, "y_embedder.embedding_table.weight", 2, "DiT")[0]
    if rows < 2:
        raise HarnessError(f"a label table of {rows} row", "one row a class, and one for no label")
    return rows - 1
