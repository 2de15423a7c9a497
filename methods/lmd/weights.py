"""Official LMD weights (AnonymousPony/lmd: the "model" of a pre-training file, or its encoder alone) in our terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from backbones.masked_autoencoder_weights import DECODER, fitted_sampler, read_core
from harness.errors import HarnessError
from harness.released import Official
from harness.rng import Rng
from methods.lmd.method import Config, Lmd, latent_patch

DRAWING = DECODER
LATENT = 4  # channels of Stable Diffusion's latents, of an 8th of the image's side


def from_official(state: Mapping[str, Tensor]) -> Official:
    """Widths, depths, patch and side from the shapes, heads by convention; HarnessError where they are no LMD's.

    The VAE is in no such file: it is borrowed by its own name (`lmd.vae`), and none of its tensors count as missing.
    """
    core = read_core(state, "LMD")
    if core.channels != LATENT:
        raise HarnessError(f"an LMD on {core.channels} channels", f"the {LATENT} of Stable Diffusion's latents")
    across = core.side // core.patch
    if latent_patch(core.side, across) != core.patch:
        raise HarnessError(f"patches of {core.patch} latent places", "a power of two")
    config = Config(tokens_across=across, encoder=core.encoder, decoder=core.decoder, sampler_every=0)
    notes = [
        *core.notes,
        f"on latents of the VAE of {config.vae}, without its factor; from a folder with lmd.vae",
        "whether targets were standardised is not in the file: lmd.norm_target stays true",
    ]
    heads = [state[name] for name in ("head.weight", "head.1.weight") if name in state]  # fine-tuned, probed
    return Official(config, 3, 8 * core.side, len(heads[0]) if heads else 0, *core.settle(state), notes)


def complete(method: Lmd, batches: Iterable[Tensor], rng: Rng) -> None:
    """What drawing needs and no file holds, from training images [B, C, H, H]."""
    patches = (method.core.patches(method.vae.encode(images)) for images in batches)
    method.unmasking = fitted_sampler(method.core, patches, rng)
