"""The U-Net against the reference's numbers, and its blocks one by one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backbones.unet import NETS, Unet, UnetConfig
from harness.errors import HarnessError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ddae.json").read_text())
SMALL = UnetConfig(width=8, mults=(1, 2, 2), blocks=1, attention=(1,), groups=4, groups_out=4)
X, LEVEL = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16), torch.tensor([0.011, 0.4])

# -- the card's deterministic weights ----------------------------------------------------------------------------------


def hashed(shape: tuple[int, ...]) -> Tensor:
    """The card's integer hash of every index, float64 in [-1, 1)."""
    m, v = 2147483647, torch.tensor(12345)
    for size, factor in zip(shape, (1000003, 10007, 101, 11), strict=False):
        v = v[..., None] + factor * torch.arange(size)
    v = v % m
    for _ in range(2):
        v = (v * v + 48271 * v + 11) % m
    return 2 * v.double() / m - 1


def fill(network: nn.Module) -> nn.Module:
    """Weights h * sqrt(3 / fan_in), biases 0.1 h, normalisations the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = hashed(module.weight.shape)
            module.weight.data.copy_(weight * (3 / weight[0].numel()) ** 0.5)
            if module.bias is not None:
                module.bias.data.copy_(0.1 * hashed(module.bias.shape))
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return network.eval()


def test_the_hash_is_the_cards():
    h = hashed((3, 6, 2, 1))
    line = hashed((3,))
    found = {"h(0)": line[0], "h(1)": line[1], "h(2)": line[2], "h(2,5,1,0)": h[2, 5, 1, 0]}
    assert {k: v.item() for k, v in found.items()} == pytest.approx(GOLDEN["hash"], abs=1e-9)


@pytest.mark.parametrize("name", ["ddpm", "ddpm++"])
def test_output_and_blocks_equal_the_reference(name):
    want, near = GOLDEN["nets"][name], {"abs": GOLDEN["tolerance"], "rel": GOLDEN["tolerance"]}
    network = fill(Unet(NETS[name], channels=3))
    b, c, y, z = torch.meshgrid(*(torch.arange(n).double() for n in (2, 3, 32, 32)), indexing="ij")
    x, level = torch.sin(0.11 * (b + 1) * (y + 1) + 0.23 * (z + 1) + c).float(), torch.tensor(want["levels"])
    blocks = {k: network.middle + int(k) for k in want["pooled"]}
    with torch.no_grad():
        y = network(x, level)
        seen = network.read(x, level, blocks.values())
    found = {"mean": y.mean(), "std": y.std(), "first": y[0, 0, 0, 0], "last": y[1, 2, 31, 31]}
    assert {k: v.item() for k, v in found.items()} == pytest.approx(want["output"], **near)
    for k, block in blocks.items():
        pooled = seen[block].mean(dim=(2, 3))
        assert pooled[0, :3].tolist() == pytest.approx(want["pooled"][k]["first"], **near), k
        assert pooled.mean().item() == pytest.approx(want["pooled"][k]["mean"], **near), k
        assert pooled.std().item() == pytest.approx(want["pooled"][k]["std"], **near), k


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_the_references(name):
    with torch.device("meta"):
        network = Unet(NETS[name], channels=3, out=6 if name == "adm256" else None)
    assert sum(p.numel() for p in network.parameters()) == GOLDEN["nets"][name]["parameters"]


# -- blocks ------------------------------------------------------------------------------------------------------------


def small(**changes) -> Unet:
    torch.manual_seed(0)
    return Unet(dataclasses.replace(SMALL, **changes), channels=3).eval()


@pytest.mark.parametrize(
    ("name", "encoder", "pairs"),
    [
        ("ddpm", 12, {15: 11, 18: 8, 21: 5, 24: 2}),
        ("ddpm++", 15, {20: 12, 25: 7, 30: 2}),
        ("adm256", 18, {21: 17, 24: 14, 27: 11, 30: 8, 33: 5, 36: 2}),
    ],
)
def test_block_numbers_are_the_cards(name, encoder, pairs):
    with torch.device("meta"):
        network = Unet(NETS[name], channels=3)
    assert (network.encoder_blocks, network.middle, network.last) == (encoder, encoder + 1, 2 * encoder + 1)
    assert {b: network.mirror(b) for b in pairs} == pairs


def test_adms_upsampler_is_part_of_the_block_before_it():
    with torch.device("meta"):
        places = Unet(NETS["adm256"], channels=3).places
    table = {1: (256, 1), 4: (256, 2), 16: (1024, 32), 19: (1024, 32), 22: (1024, 16), 24: (1024, 16), 25: (1024, 8)}
    table |= {28: (512, 4), 30: (512, 4), 31: (512, 2), 33: (256, 2), 34: (256, 1), 37: (256, 1)}
    assert {b: tuple(places[b]) for b in table} == table


VARIANTS = [
    {},
    {"resample": "residual", "mults": (2, 2, 2)},
    {"resample": "residual", "modulation": "scale_shift", "code": "adm", "read": "after", "head": 4},
    {"read": "after", "blocks": 2, "mults": (2, 3)},
]


@pytest.mark.parametrize("changes", VARIANTS)
@torch.no_grad()
def test_every_block_is_of_the_size_it_says(changes):
    network = small(**changes)
    seen = network.read(X, LEVEL, range(1, network.last + 1))
    assert [*seen] == [*range(1, network.last + 1)] == [*network.places]
    assert {b: tuple(h.shape[1:]) for b, h in seen.items()} == {
        b: (place.channels, 16 // place.factor, 16 // place.factor) for b, place in network.places.items()
    }


@pytest.mark.parametrize("changes", [v for v in VARIANTS if v.get("mults", (1,))[0] == 1])
@torch.no_grad()
def test_the_walk_is_diffusers_own_forward(changes):
    network = small(**changes)
    torch.testing.assert_close(network(X, LEVEL), network.unet(X, LEVEL).sample)


@torch.no_grad()
def test_the_pass_ends_with_the_last_block_wanted():
    network, ran = small(), []
    for name, module in network.unet.named_modules():
        if name.endswith(("conv1", "conv")) or name == "conv_out":
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    network.read(X, LEVEL, [3])
    assert ran and all(name.startswith("down_blocks") for name in ran), "the stem, a block and a downsampler"
    ran.clear()
    network.read(X, LEVEL, [network.middle + 2, 2])
    assert ran[-1] == "up_blocks.0.resnets.1.conv1", "neither the upsampler after it nor the output"


@torch.no_grad()
def test_maps_are_added_before_the_skip_and_the_next_block():
    network = small()
    plain = network.read(X, LEVEL, range(1, network.last + 1))
    zero = {b: torch.zeros_like(plain[b]) for b in range(1, network.encoder_blocks + 1)}
    same = network.read(X, LEVEL, plain, add=zero)
    assert all(torch.equal(plain[b], same[b]) for b in plain)
    entry = 5
    moved = network.read(X, LEVEL, plain, add={entry: torch.ones_like(plain[entry])})
    torch.testing.assert_close(moved[entry], plain[entry] + 1)
    assert all(torch.equal(moved[b], plain[b]) == (b < entry) for b in plain)
    # Of the last encoder block of a level whose successors are cut off, the decoder's mirror still learns: the skip.
    network.unet.down_blocks[2].resnets[0].register_forward_hook(lambda *_: torch.zeros_like(plain[entry + 1]))
    cut = network.read(X, LEVEL, plain)
    cut_moved = network.read(X, LEVEL, plain, add={entry: torch.ones_like(plain[entry])})
    mirror = network.mirror(entry)
    assert torch.equal(cut[network.middle], cut_moved[network.middle])
    assert torch.equal(cut[mirror - 1], cut_moved[mirror - 1]) and not torch.equal(cut[mirror], cut_moved[mirror])


def test_a_gradient_reaches_an_added_map():
    network = small()
    added = torch.zeros(2, 16, 8, 8, requires_grad=True)
    network.read(X, LEVEL, [network.last], add={4: added})[network.last].sum().backward()
    assert added.grad.any()


@torch.no_grad()
def test_the_label_joins_the_sinusoid_and_none_is_zero():
    network = small(label=9)
    none, zeros = network(X, LEVEL), network(X, LEVEL, torch.zeros(2, 9))
    assert torch.equal(none, zeros)
    assert not torch.allclose(none, network(X, LEVEL, torch.ones(2, 9)))
    bent = network.unet.time_proj(LEVEL) + network.label(torch.ones(2, 9))
    torch.testing.assert_close(network.condition(LEVEL, torch.ones(2, 9)), network.unet.time_embedding(bent))


def test_wrong_blocks_and_settings_are_refused():
    network = small()
    with pytest.raises(HarnessError, match="blocks from 1 to"):
        network.read(X, LEVEL, [network.last + 1])
    with pytest.raises(HarnessError, match="up to 6"):
        network.read(X, LEVEL, [2], add={network.middle: X})
    for wrong in ({"width": 10}, {"attention": (3,)}, {"blocks": 0}, {"head": 5}, {"dropout": 1.0}):
        with pytest.raises(ValueError):
            dataclasses.replace(SMALL, **wrong)


def test_both_kernels_of_attention_say_the_same(capsys):
    """On CPUs, bf16 attention goes through plain products; the numbers are bf16's either way, and nobody is warned."""
    torch.manual_seed(0)
    net = Unet(UnetConfig(width=16, mults=(1, 2), blocks=1, attention=(1,), groups=4), 3).eval()
    x, level = torch.randn(2, 3, 8, 8), torch.full((2,), 0.5)
    with torch.no_grad():
        exact = net(x, level)
        with torch.autocast("cpu", torch.bfloat16):
            found = net(x, level)
    assert (found.float() - exact).abs().max() < 0.03 * exact.abs().max()
    assert not torch.equal(found.float(), exact), "bf16 was not on"
    assert "not expected" not in "".join(capsys.readouterr())
