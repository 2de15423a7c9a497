"""DiT beside the official code: optimizer steps, whole trajectories, float32, and weights in the official format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.official import HEADS
from backbones.sizes import Trunk
from backbones.tokens import sincos_2d
from harness.errors import HarnessError
from harness.method import DataSpec
from harness.rng import Rng
from methods.dit.method import Config, Dit
from methods.dit.weights import from_official
from tests.methods.reference import by_rule, descend, wave

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "dit.json").read_text())
K, LABELS = torch.tensor([40, 700]), torch.tensor([3, 7])
DIGITS = DataSpec("digits", channels=1, size=8, classes=10)


def official(channels: int = 4, width: int = 32, out: int | None = None) -> dict[str, Tensor]:
    """A state dict with the official names and layouts: two blocks, patches of 2, side 8, ten classes."""
    out = 2 * channels if out is None else out
    shapes = {
        "x_embedder.proj.weight": (width, channels, 2, 2),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.2.weight": (width, width),
        "final_layer.linear.weight": (4 * out, width),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
    }
    for i in (0, 1):
        shapes |= {
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.mlp.fc1.weight": (4 * width, width),
            f"blocks.{i}.mlp.fc2.weight": (width, 4 * width),
            f"blocks.{i}.adaLN_modulation.1.weight": (6 * width, width),
        }
    shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
    return by_rule(shapes | {"y_embedder.embedding_table.weight": (11, width)}) | {
        "pos_embed": sincos_2d(width, 4, torch.float64)[None]
    }


def toy(monkeypatch, dtype=torch.float64, channels: int = 4, out: int | None = None, **changes) -> Dit:
    """The golden files' toy, by way of its official state dict; its 4 heads are no paper's convention."""
    monkeypatch.setitem(HEADS, 32, 4)
    mapped = from_official(official(channels, out=out))
    assert not mapped.missing and not mapped.unexpected
    config = dataclasses.replace(mapped.config, vae="none", **changes)
    torch.set_default_dtype(dtype)  # in which the tables of the schedule are kept
    try:
        method = Dit(config, DataSpec("golden", channels, 8, 10)).to(dtype).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    method.network.position = sincos_2d(32, 4, dtype)
    method.load_state_dict(mapped.state)
    return method


def inputs(dtype=torch.float64) -> tuple[Tensor, Tensor]:
    return wave(0.8, 0.11, 0.5, (2, 4, 8, 8)).to(dtype), wave(1.3, 0.23, 0.1, (2, 4, 8, 8), np.cos).to(dtype)


def near(found: Tensor | float, wanted, rel: float = 1e-9) -> None:
    values = found.tolist() if isinstance(found, Tensor) else found
    assert values == pytest.approx(wanted, rel=rel, abs=1e-9)


# -- one and two optimizer steps --------------------------------------------------------------------------------------


def steps(method: Dit, dtype=torch.float64):
    x, eps = inputs(dtype)
    levels = (K, torch.tensor([0, 333]))
    return descend(method, [lambda k=k: method.objective(x, k, eps, LABELS).total for k in levels], 256, [0.5, 0.5])


def test_two_optimizer_steps_equal_the_reference(monkeypatch):
    """The second shows the moments: after one step Adam's betas cancel."""
    method = toy(monkeypatch)
    network = method.network
    for loss, golden in zip(steps(method), GOLDEN["steps"], strict=True):
        near(loss, golden["loss"])
        near(network.head.weight.flatten()[:3], golden["head.weight"])
        near(network.blocks[0].attn.qkv.weight.flatten()[:3], golden["qkv"])
        near(network.label_table.weight[3, :3], golden["table"])
        near(sum(p.sum().item() for p in network.parameters()), golden["sum"])
        near(sum(p.square().sum().item() for p in network.parameters()) ** 0.5, golden["norm"])


def test_float32_equals_the_reference_in_float32(monkeypatch):
    method, golden = toy(monkeypatch, torch.float32), GOLDEN["float32"]
    x, eps = inputs(torch.float32)
    found = method.network(method.diffusion.noised(x, K, eps), K, LABELS)
    near(found.flatten()[:3], golden["output"]["first"], rel=1e-5)
    near(found.abs().mean(), golden["output"]["mean_abs"], rel=1e-5)
    near(method.objective(x, K, eps, LABELS).total, golden["loss"], rel=1e-5)
    found = trajectory(method)
    near(found.abs().mean(), golden["ancestral_250_mean_abs"], rel=1e-5)


# -- trajectories -----------------------------------------------------------------------------------------------------


def trajectory(method: Dit, clip: bool = False, steps: int | None = None) -> Tensor:
    """From the golden start with the golden noise; latents are not clipped, and any VAE makes them latents."""
    method.vae = None if clip else torch.nn.Identity()
    dtype, shape = method.network.position.dtype, (2, method.channels, 8, 8)
    torch.set_default_dtype(dtype)
    try:
        start = wave(1.2, 1.7, 0.3, shape).to(dtype)
        return method.denoised(start, lambda i: wave(1.4, 1.3, 0.7 * i, shape, np.cos).to(dtype), LABELS, steps)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "channels", "steps", "changes"),
    [
        ("ancestral_10", 4, 10, {}),
        ("ancestral_250", 4, None, {}),
        ("ancestral_250_guided", 4, 250, {"guidance": 1.5}),
        ("three_channels_ancestral_250_guided", 3, 250, {"guidance": 1.5}),
        ("three_channels_ancestral_250_guided_clipped", 3, 250, {"guidance": 1.5}),
        ("fixed_variance_ancestral_10", 4, 10, {"out": 4}),
        ("ddim_50", 4, 50, {"sampler": "ddim"}),
        ("three_channels_ddim_50_guided", 3, 50, {"sampler": "ddim", "guidance": 1.5}),
    ],
)
def test_trajectories_equal_the_reference(monkeypatch, name, channels, steps, changes):
    method = toy(monkeypatch, channels=channels, **changes)
    found = trajectory(method, name.endswith("clipped"), steps)
    near(found.flatten()[:3], GOLDEN["trajectories"][name]["first"])
    near(found.abs().mean(), GOLDEN["trajectories"][name]["mean_abs"])


def test_ddim_says_which_counts_it_can_take():
    method = Dit(dataclasses.replace(Dit.recipe("nano", DIGITS), sampler="ddim"), DIGITS).eval()
    with pytest.raises(HarnessError, match="a number that fits, as 63"):
        method.sample(1, Rng(0), steps=64)


# -- weights in the official format -----------------------------------------------------------------------------------


def test_official_weights_give_the_references_output():
    """Width 96 has 3 heads by convention; the numbers are the official model's with the same state dict."""
    mapped = from_official(official(width=96))
    assert mapped.config == Config(
        vae="stabilityai/sd-vae-ft-mse", patch=2, trunk=Trunk(96, 2, 3), classes=10, labels=True, learn_sigma=True
    )
    assert (mapped.channels, mapped.image_size, mapped.classes) == (3, 64, 10), "latents of 8 places are 64 px"
    assert not mapped.missing and not mapped.unexpected and "3 heads by convention" in mapped.notes[0]
    method = Dit(dataclasses.replace(mapped.config, vae="none"), DataSpec("x", 4, 8, 10)).double().eval()
    method.load_state_dict(mapped.state)
    x, eps = inputs()
    found = method.network(method.diffusion.noised(x, K, eps), K, LABELS)
    near(found.flatten()[:3], GOLDEN["official"]["first"], rel=1e-6)  # our tables are float32 here
    near(found.abs().mean(), GOLDEN["official"]["mean_abs"], rel=1e-6)


def test_pixels_without_labels_or_variance():
    state = official(channels=3, width=96, out=3)
    del state["y_embedder.embedding_table.weight"]
    mapped = from_official(state)
    assert mapped.config.vae == "none" and not mapped.config.learn_sigma
    assert (mapped.channels, mapped.image_size, mapped.classes, mapped.config.classes) == (3, 8, 0, 0)
    Dit(mapped.config, DataSpec("x", mapped.channels, mapped.image_size, 10)).load_state_dict(mapped.state)


def test_what_finds_no_place_is_named():
    state = official(width=96)
    state["blocks.0.attn.q_norm.weight"] = torch.ones(32)
    state["pos_embed"] = state["pos_embed"] + 0.1
    del state["final_layer.adaLN_modulation.1.bias"], state["blocks.1.mlp.fc2.bias"]
    mapped = from_official(state)
    assert mapped.missing == ["network.blocks.1.mlp.fc2.bias", "network.final_modulation.bias"]
    assert mapped.unexpected == ["blocks.0.attn.q_norm.weight", "pos_embed"]
    assert any("keeps its own" in note for note in mapped.notes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x_embedder.proj.weight": None}, "no 'x_embedder.proj.weight'"),
        ({"pos_embed": torch.zeros(1, 15, 96)}, "15 tokens"),
        ({"x_embedder.proj.weight": torch.zeros(100, 4, 2, 2)}, "width 100"),
        ({"x_embedder.proj.weight": torch.zeros(96, 16, 2, 2)}, "a head of 8 channels over 16"),
        ({"final_layer.linear.weight": torch.zeros(20, 96)}, "a head of 5 channels over 4"),
        ({"blocks.1.mlp.fc1.weight": torch.zeros(5, 96)}, "'blocks.1.mlp.fc1.weight' has the shape"),
        ({"blocks.3.mlp.fc1.weight": torch.zeros(5, 96)}, "blocks \\[0, 1, 3\\]"),
        ({"y_embedder.embedding_table.weight": torch.zeros(1, 96)}, "a label table of 1 row"),
    ],
)
def test_what_is_no_dit_is_refused(change, says):
    state = {name: tensor for name, tensor in (official(width=96) | change).items() if tensor is not None}
    with pytest.raises(HarnessError, match=says):
        from_official(state)
