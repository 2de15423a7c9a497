"""ADM's layout on our U-Net: the official state dict finds its places, and gives the reference's numbers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from backbones.adm_unet import config_of, mapped
from backbones.unet import NETS, Unet
from harness.errors import HarnessError
from tests.backbones.adm_twin import TWIN, images, linear, near, noise, official, twin

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "difformer.json").read_text())
ADM = NETS["adm256"]
T = torch.tensor([150, 90, 150, 300])


@pytest.fixture(scope="module")
def network() -> Unet:
    return twin()


@pytest.fixture(scope="module")
def noised() -> torch.Tensor:
    return linear().noised(images(), T, noise(150))


def test_the_released_state_dict_fits_to_the_last_tensor():
    shapes = official(ADM.width, ADM.mults, ADM.blocks, ADM.attention)
    listing = "\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    assert hashlib.sha256(listing.encode()).hexdigest() == GOLDEN["names_and_shapes_sha256"]
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert len(state) == GOLDEN["tensors"]
    assert config_of(state) == ADM
    with torch.device("meta"):
        network = Unet(ADM, 3, 6)
    network.load_state_dict({ours: tensor for ours, (_, tensor) in mapped(state, ADM).items()}, strict=True)
    assert sum(p.numel() for p in network.parameters()) == GOLDEN["parameters"] == 552_814_086


def test_every_block_equals_the_reference(network, noised):
    near(noised, GOLDEN["noised"])
    seen = network.read(noised, T, range(1, 38))
    assert len(seen) == 37
    for block, maps in seen.items():
        near(maps, GOLDEN["blocks"][str(block)])
    near(network(noised, T), GOLDEN["output"])


def test_in_float32_it_is_as_near_as_the_reference_is_to_itself(noised):
    """The time code included, which diffusers keeps in float32 and the twin above does not."""
    seen = twin(torch.float32).read(noised.float(), T, range(1, 38))
    for block, maps in seen.items():
        found = [*maps.flatten()[:2].tolist(), maps.abs().mean().item()]
        assert found == pytest.approx(GOLDEN["blocks"][str(block)], abs=1e-5 * maps.abs().max().item()), block


def test_stopping_early_changes_nothing(network, noised):
    whole, part = network.read(noised, T, [24, 37]), network.read(noised, T, [24])
    assert torch.equal(whole[24], part[24])


def test_the_noise_level_is_the_cards():
    """0-based: 150 is the 151st factor of the product."""
    signal = linear().signal
    for level, value in GOLDEN["signal"].items():
        assert signal[int(level)].item() == pytest.approx(value, abs=1e-6)


def test_mirrors_and_places():
    with torch.device("meta"):
        network = Unet(ADM, 3, 6)
    assert network.middle == 19 and [network.mirror(b) for b in (20, 24, 37)] == [18, 14, 1]
    sides = {b: (place.channels, 256 // place.factor) for b, place in network.places.items()}
    # Card, section 2.2: blocks that end a level of the decoder are read after their upsampling.
    assert [sides[b] for b in (19, 22, 24, 25, 30, 34)] == [
        (1024, 8),
        (1024, 16),
        (1024, 16),
        (1024, 32),
        (512, 64),
        (256, 256),
    ]


def test_what_is_no_unconditional_adm_is_refused():
    state = {n: torch.empty(s, device="meta") for n, s in official(32, (1, 2), 1, (1,)).items()}
    assert config_of(state, head=32).mults == (1, 2)
    with pytest.raises(HarnessError, match="with labels"):
        config_of(state | {"label_emb.weight": torch.empty(1000, 128, device="meta")})
    with pytest.raises(HarnessError, match="no time_embed"):
        config_of({"patch_embed.weight": torch.empty(1, device="meta")})
    plain = {n: t for n, t in state.items() if ".2.in_layers" not in n and "output_blocks.1.1." not in n}
    with pytest.raises(HarnessError, match="doubles the side"):
        config_of(plain)


def test_a_tensor_without_a_place_keeps_its_name():
    stray = {"input_blocks.1.0.odd.weight": torch.zeros(1), "temperature": torch.zeros(1)}
    assert set(mapped(stray, TWIN)) == set(stray)
