"""UMD beside the official code: its own update and sampling loop, float32, and weights in its format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.method import DataSpec
from methods.umd.method import Config, Draws, Umd
from methods.umd.weights import from_official
from tests.methods.reference import descend, wave
from tests.methods.test_umd import golden_params

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "umd.json").read_text())
SPEC = DataSpec("golden", channels=3, size=16, classes=10)
LABELS = torch.tensor([3, 7])
LEVELS = ([40, 700], [0, 999], [250, 3], [500, 20])  # of each step's noisy images


def toy(dtype=torch.float64, **changes) -> Umd:
    torch.set_default_dtype(dtype)  # in which the tables of the schedule are kept
    try:
        mapped = from_official(golden_params())
        method = Umd(replace(mapped.config, **changes), SPEC)
        method.load_state_dict(mapped.state)
    finally:
        torch.set_default_dtype(torch.float32)
    return method


def images(scale: float, by: float, phase: float, n: int, of=np.sin) -> Tensor:
    """Filled as the reference lays images out, channels last."""
    return wave(scale, by, phase, (n, 16, 16, 3), of).permute(0, 3, 1, 2)


def near(found: Tensor | float, wanted, rel: float = 1e-9) -> None:
    values = found.tolist() if isinstance(found, Tensor) else found
    assert values == pytest.approx(wanted, rel=rel, abs=1e-10)


def norm(method: Umd) -> float:
    return sum(p.double().square().sum().item() for p in method.parameters()) ** 0.5


# -- optimizer steps --------------------------------------------------------------------------------------------------


def steps(method: Umd, dtype=torch.float64):
    """Four steps of 40, the first at rate 0 and the second in the warm-up; image b keeps (5 b + 3 j) mod 16 first."""
    order = torch.empty(2, 16, dtype=dtype)
    for b in range(2):
        for j in range(16):
            order[b, (5 * b + 3 * j) % 16] = j / 16

    def loss(step: int) -> Tensor:
        x, eps = images(0.8, 0.11, 0.5 + 0.3 * step, 4), images(1.3, 0.23, 0.1 + 0.3 * step, 2, np.cos)
        draws = Draws(torch.tensor(LEVELS[step]), eps.to(dtype), order, order)
        return method.objective(x.to(dtype), draws, LABELS).total

    return descend(method, [lambda s=s: loss(s) for s in range(4)], 4, [s / 40 for s in range(4)])


def test_four_steps_equal_the_references_update():
    """Clipping, AdamW, what decays and the rate's curve; the peak is 4e-4, and the moments are kept in float64."""
    method = toy(base_lr=0.0256)
    for loss, golden in zip(steps(method), GOLDEN["steps"], strict=True):
        near(loss, golden["loss"])
        near(norm(method), golden["norm"], rel=1e-8)
        for name in (
            "cls",
            "mask_token",
            "position",
            "encoder_norm.weight",
            "head.weight",
            "encoder.1.attn.qkv.weight",
        ):
            near(method.network.get_parameter(name).flatten()[:3], golden[name], rel=1e-6)
        near(method.network.label_table.weight[3, :3], golden["label_3"], rel=1e-6)


def test_float32_equals_the_reference_in_float32():
    method, golden = toy(torch.float32, base_lr=0.0256), GOLDEN["float32"]
    for i, loss in enumerate(steps(method, torch.float32)):
        near(loss, golden["losses"][i], rel=1e-5)
        near(norm(method), golden["norms"][i], rel=1e-5)


# -- trajectories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "labels", "steps"),
    [
        ("10", {}, None, 10),
        ("125", {}, None, None),
        ("125_labels", {}, LABELS, 125),
        ("125_guided_2", {"guidance": 2.0}, LABELS, 125),
        ("125_eta_0", {"sample_eta": 0.0}, None, 125),
    ],
)
def test_trajectories_equal_the_reference(name, changes, labels, steps):
    method, shape = toy(**changes), (2, 16, 16, 3)
    start = wave(1.2, 1.7, 0.3, shape).permute(0, 3, 1, 2)
    found = method.denoised(start, lambda i: wave(1.4, 1.3, 0.7 * i, shape, np.cos).permute(0, 3, 1, 2), labels, steps)
    near(found[0, :, 0, 0], GOLDEN["trajectories"][name]["first"])
    near(found.abs().mean(), GOLDEN["trajectories"][name]["mean_abs"])


# -- weights in the official format -----------------------------------------------------------------------------------


def test_every_measure_is_read_off_the_shapes():
    """Heads too: the reference keeps them apart. What the weights give is compared in test_umd.py."""
    mapped = from_official(golden_params())
    assert mapped.config == Config(width=32, depth=2, heads=4, decoder_depth=1, patch=4, classes=10)
    assert (mapped.channels, mapped.image_size, mapped.classes) == (3, 16, 10)
    assert not mapped.missing and not mapped.unexpected
    assert any("with labels" in note for note in mapped.notes)


def test_before_the_fine_tune_there_are_no_labels():
    params = {path: value for path, value in golden_params().items() if not path.startswith("label")}
    mapped = from_official({f"params/{path}": value for path, value in params.items()})
    assert mapped.config.classes == mapped.classes == 0 and not mapped.missing and not mapped.unexpected
    Umd(mapped.config, SPEC).load_state_dict(mapped.state)


def test_what_finds_no_place_is_named():
    params = golden_params() | {"extra/kernel": torch.zeros(1)}
    del params["Decoder/encoder_norm/bias"], params["label_trunk/Dense_0/kernel"]
    mapped = from_official(params)
    assert mapped.missing == ["network.decoder_norm.bias", "network.label_mlp.0.weight"]
    assert mapped.unexpected == ["extra/kernel"]
    found = Umd(mapped.config, SPEC).load_state_dict(mapped.state, strict=False)
    assert sorted(found.missing_keys) == mapped.missing and not found.unexpected_keys


def test_half_an_attention_is_missing_and_unexpected():
    """Three of the reference's tensors make one of ours: with one gone, the other two have no place."""
    params = golden_params()
    block = "Decoder/ScanCheckpointEncoder1DBlock_0/MultiHeadDotProductAttention_0"
    del params[f"{block}/key/kernel"]
    mapped = from_official(params)
    assert mapped.missing == ["network.decoder.0.attn.qkv.weight"]
    assert mapped.unexpected == [f"{block}/query/kernel", f"{block}/value/kernel"]


def test_what_is_no_pixel_umd_is_refused():
    params = golden_params()
    without_adaln = {path: value for path, value in params.items() if "Block_0/Dense_0" not in path or "Mlp" in path}
    both = {f"{tree}/{path}": value for path, value in params.items() for tree in ("params", "opt")}
    twice = params | {"Encoder/encoderblock_1/LayerNorm_0/bias": torch.zeros(32)}
    latent = params | {"embedding/kernel": torch.zeros(4, 4, 4, 32)}
    odd = params | {"final_modulation/bias": torch.zeros(9)}
    for wrong, says in (
        (without_adaln, "adaLN"),
        (both, "a whole training state"),
        (twice, "Encoder holds"),
        (latent, "a UMD on 4 channels"),
        (odd, "'final_modulation/bias' has the shape"),
        (params | {"final_conv/bias": torch.zeros(7)}, "'final_conv/bias' has the shape"),
        ({}, "no 'embedding/kernel'"),
    ):
        with pytest.raises(HarnessError, match=says):
            from_official(wrong)
