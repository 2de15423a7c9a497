"""LMD beside the authors' code: masks and losses at three ratios, steps of its own loop with its Adan, weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import methods.lmd.method
from backbones.sizes import Trunk
from harness.errors import HarnessError
from harness.method import DataSpec, Tap
from harness.rng import Rng
from methods.lmd.method import Config, Lmd, mask_ratio
from methods.lmd.weights import from_official
from tests.methods.masked import golden_drop, official
from tests.methods.reference import descend, wave

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lmd.json").read_text())
SPEC = DataSpec("golden", channels=3, size=224, classes=10)
LATENT = {"side": 7, "channels": 4, "patch": 4}
TOY, WIDE = LATENT | {"width": 32, "narrow": 16}, LATENT | {"width": 96, "narrow": 64}


class Passing(nn.Module):
    """Stands where a VAE stands: latents are given as they are."""

    channels, latent_side, borrowed = 4, 28, None

    def encode(self, x: Tensor) -> Tensor:
        return x

    decode = encode


@pytest.fixture(autouse=True)
def no_vae(monkeypatch):
    monkeypatch.setattr(methods.lmd.method, "build_vae", lambda config, data: Passing())


def toy(dtype=torch.float64, **changes) -> Lmd:
    config = Config(encoder=Trunk(32, 2, 4), decoder=Trunk(16, 1, 4), sampler_every=0)
    method = Lmd(dataclasses.replace(config, **changes), SPEC).to(dtype)
    method.load_state_dict({f"core.{name}": value for name, value in official(**TOY).items()})
    return method


def latents(phase: float = 0.5, dtype=torch.float64) -> Tensor:
    return wave(4.0, 0.11, phase, (3, 4, 28, 28)).to(dtype)


def drop(ratio: float, shift: int = 0, dtype=torch.float64):
    return golden_drop(49, shift, ratio, dtype, by=8)


def near(found: Tensor | float, wanted, rel: float = 1e-9) -> None:
    values = found.tolist() if isinstance(found, Tensor) else found
    assert values == pytest.approx(wanted, rel=rel, abs=1e-10)


def norm(method: Lmd) -> float:
    return sum(p.double().square().sum().item() for p in method.core.parameters()) ** 0.5


@pytest.mark.parametrize("ratio", GOLDEN["toy"])
def test_prediction_and_loss_equal_the_reference(ratio):
    core, golden = toy().core, GOLDEN["toy"][ratio]
    patches = core.patches(latents())
    prediction = core.predict(patches, drop(float(ratio)))
    near(prediction[0, 0, :3], golden["prediction"]["first"])
    near(prediction.abs().mean(), golden["prediction"]["mean_abs"])
    near(core.loss(patches, drop(float(ratio))), golden["loss"])


def test_completed_latents_equal_the_reference():
    """With the raw target, whose predictions are latents themselves."""
    method = toy(norm_target=False)
    patches = method.core.patches(latents())
    near(method.core.loss(patches, drop(0.4)), GOLDEN["raw_at_0.4"]["loss"])
    found = method.core.image(method.core.complete(patches, drop(0.4)))
    near(found[0, 0, 0, :8], GOLDEN["raw_at_0.4"]["completed_row_0"])
    near(found.abs().mean(), GOLDEN["raw_at_0.4"]["completed_mean_abs"])


def steps(method: Lmd, dtype=torch.float64):
    """Steps 300 and 301 of 900: the loss at the mask ratio, and the rate, of those moments."""
    moments = [300 / 900, 301 / 900]
    losses = []
    for i, phase in enumerate((0.5, 1.1)):
        patches = method.core.patches(latents(phase, dtype))
        masked = drop(mask_ratio(moments[i], method.config), i, dtype)
        losses.append(lambda patches=patches, masked=masked: method.core.loss(patches, masked))
    return descend(method, losses, 64, moments)


@pytest.mark.parametrize("clip", [10.0, 0.1])
def test_two_steps_equal_the_references_loop(clip):
    """Adan with its decay groups, clipped and not, the curriculum and the rate's curve; its warm-up is one epoch."""
    method = toy(clip_norm=clip, warmup=1 / 450)
    for loss, golden in zip(steps(method), GOLDEN[f"steps_clip_{clip:g}"], strict=True):
        near(loss, golden["loss"])
        near(norm(method), golden["norm"])
        for name in ("cls_token", "mask_token", "decoder_pred.weight", "norm.weight", "blocks.0.attn.qkv.weight"):
            near(method.core.get_parameter(name).flatten()[:3], golden[name])


def test_float32_equals_the_reference_in_float32():
    method, golden = toy(torch.float32, warmup=1 / 450), GOLDEN["float32"]
    patches = method.core.patches(latents(dtype=torch.float32))
    near(method.core.loss(patches, drop(0.75, dtype=torch.float32)), golden["loss_0.75"], rel=1e-5)
    for i, loss in enumerate(steps(method, torch.float32)):
        near(loss, golden["losses"][i], rel=1e-5)
        near(norm(method), golden["norms"][i], rel=1e-5)


# -- weights in the official format -----------------------------------------------------------------------------------


def test_official_weights_give_the_references_output():
    mapped = from_official(official(**WIDE))
    assert mapped.config == Config(encoder=Trunk(96, 2, 3), decoder=Trunk(64, 1, 2), sampler_every=0)
    assert (mapped.channels, mapped.image_size, mapped.classes) == (3, 224, 0), "latents of 28 places are 224 px"
    assert not mapped.missing and not mapped.unexpected and any("stable-diffusion" in note for note in mapped.notes)
    method, golden = Lmd(mapped.config, SPEC).double(), GOLDEN["official"]
    method.load_state_dict(mapped.state)
    cls = method.core.layers(method.core.patches(latents()))[-1][:, 0]
    near(cls[0, :3], golden["cls_0"])
    near(cls.abs().mean(), golden["cls_mean_abs"])
    prediction = method.core.predict(method.core.patches(latents()), drop(0.75))
    near(prediction[0, 0, :3], golden["prediction_0_0"])
    near(prediction.abs().mean(), golden["prediction_mean_abs"])


def test_a_fine_tuned_encoder_names_what_it_lacks():
    """Of the authors' fine-tuning the head has no place and the decoder is missing; with pooling, the norm too."""
    state = {n: t for n, t in official(**WIDE).items() if not n.startswith(("decoder", "mask_token"))}
    mapped = from_official(state | {"head.weight": torch.zeros(5, 96)})
    assert mapped.classes == 5 and mapped.unexpected == ["head.weight"]
    assert {"core.mask_token", "core.decoder_pred.weight"} <= set(mapped.missing)
    method = Lmd(mapped.config, SPEC)
    assert sorted(method.load_state_dict(mapped.state, strict=False).missing_keys) == mapped.missing
    state |= {"fc_norm.weight": state.pop("norm.weight"), "fc_norm.bias": state.pop("norm.bias")}
    with pytest.raises(HarnessError, match="fine-tuned with pooled tokens"):
        from_official(state)
    assert method.double().features(latents(), [Tap("mean")], Rng(0))[0].shape == (3, 96)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (official(**WIDE | {"channels": 3}), "an LMD on 3 channels"),
        (official(**WIDE | {"patch": 7, "side": 4}), "patches of 7 latent places"),
        (official(**WIDE) | {"pos_embed": torch.zeros(1, 49, 96)}, "48 tokens"),
        ({}, "no 'patch_embed.proj.weight'"),
    ],
)
def test_what_is_no_lmd_is_refused(state, says):
    with pytest.raises(HarnessError, match=says):
        from_official(state)
