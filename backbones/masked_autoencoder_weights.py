"""Official state dicts of masked autoencoders (MAE's code, and LMD's which grew out of it) as a `MaskedAutoencoder`'s.

The names are the same (cards mae and lmd, section 2); what is read here is the architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from backbones.masked_autoencoder import DECODERS, MaskedAutoencoder
from backbones.official import Settled, heads_of, is_fixed, layers_in, settle, shape_of, square
from backbones.sizes import Trunk
from backbones.tokens import sincos_2d
from backbones.unmasking import Unmasking
from harness.errors import HarnessError
from harness.rng import Rng

DECODER = ("core.decoder_", "core.mask_token")  # what an encoder alone may lack
DECODER_HEADS = {trunk.width: trunk.heads for trunk in DECODERS.values()}


class Core(NamedTuple):
    """What the tensors say of the network; the rest a `MaskedAutoencoder` is told by the method."""

    channels: int
    side: int
    patch: int
    encoder: Trunk
    decoder: Trunk
    notes: list[str]

    def settle(self, state: Mapping[str, Tensor]) -> Settled:
        mapped = {name: (name, tensor) for name, tensor in state.items()}
        return settle(lambda: MaskedAutoencoder(*self[:5]), "core.", mapped)


def read_core(state: Mapping[str, Tensor], what: str, if_pooled: str = "") -> Core:
    """Measures of encoder and decoder; without a decoder in the file, the papers' 512 x 8 x 16 stands untrained.

    HarnessError where the tensors are no `what`'s; for those of a pooled fine-tuning with `if_pooled` as what to do.
    """
    width, channels, patch, _ = shape_of(state, "patch_embed.proj.weight", 4, what)
    _, places, _ = shape_of(state, "pos_embed", 3, what)
    if "fc_norm.weight" in state and "norm.weight" not in state:
        raise HarnessError(
            "weights fine-tuned with pooled tokens: a norm after the pooling (fc_norm), and none before it",
            f"a pre-trained {what}, or one fine-tuned at its class token",
            if_pooled,
        )
    across = square(places - 1, "tokens beside the class token")
    encoder = Trunk(width, layers_in(state, "blocks."), heads_of(width))
    notes = [f"{encoder.heads} heads by convention for width {width}"]
    if "decoder_embed.weight" in state:
        narrow, _ = shape_of(state, "decoder_embed.weight", 2, what)
        decoder = Trunk(narrow, layers_in(state, "decoder_blocks."), heads_of(narrow, DECODER_HEADS))
        notes.append(f"{decoder.heads} heads by convention for the decoder's width {narrow}")
    else:
        decoder = DECODERS["b"]
        notes.append("the file has no decoder")
    if not is_fixed(state["pos_embed"][:, 1:], sincos_2d(width, across)):
        notes.append("pos_embed is not the fixed sin-cos code (fine-tuned?); it is taken as it is")
    if encoder.depth == 0:
        raise HarnessError("no encoder block in the file", f"an official state dict of {what}")
    return Core(channels, across * patch, patch, encoder, decoder, notes)


def fitted_sampler(core: MaskedAutoencoder, patches: Iterable[Tensor], rng: Rng) -> Unmasking:
    """Our sampler for weights that were trained without its statistics: they are taken from training images'
    patches [B, N, P], without a gradient, and no weight is moved.
    """
    unmasking = Unmasking(core).to(core.cls_token.device)
    for step, some in enumerate(patches):
        unmasking.update(core, some, rng.at("sampler", step))
    return unmasking.eval()
