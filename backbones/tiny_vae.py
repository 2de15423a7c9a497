"""TAEF2, a tiny autoencoder: 8x down, 32 latent channels.

diffusers' AutoencoderTiny has all of it but a branch in six blocks; without the branch the public weights load only in
part and reconstruct badly.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.errors import HarnessError

POOLED = {"encoder": (11, 12, 13), "decoder": (2, 3, 4)}  # layers with a pool branch
FILES = ("taef2_encoder.safetensors", "taef2_decoder.safetensors")


class PooledBlock(AutoencoderTinyBlock):
    """A block behind a normalised pointwise branch."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, "relu")
        self.pool = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.GroupNorm(4, 4 * width),
            nn.ReLU(),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.pool(x))


def load_taef2(folder: Path) -> AutoencoderTiny:
    """TAEF2 in float32 from the two weight files in `folder`, every tensor accounted for."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise HarnessError(
            f"no {' and no '.join(missing)} in {folder}",
            "the TAEF2 weights as safetensors",
            "name their folder (lmd.vae=taef2:FOLDER), or leave out lmd.vae to train a VAE within the budget",
        )
    network = AutoencoderTiny(latent_channels=32)
    for part, places in POOLED.items():
        layers = getattr(network, part).layers
        for place in places:
            layers[place] = PooledBlock(64)
    for part, name, shift in (("encoder", FILES[0], 0), ("decoder", FILES[1], 1)):
        # The files count the decoder's soft clamp as layer 0; diffusers does not.
        weights = {_shifted(key, shift): value.float() for key, value in load_file(folder / name).items()}
        getattr(network, part).layers.load_state_dict(weights, strict=True)
    return network


def _shifted(key: str, shift: int) -> str:
    layer, _, rest = key.partition(".")
    return f"{int(layer) - shift}.{rest}"
