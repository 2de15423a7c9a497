"""MAE beside the official code: its own training loop's steps, float32, and weights in the official format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbones.official import heads_of
from backbones.sizes import Trunk
from harness.errors import HarnessError
from harness.method import DataSpec, Tap
from harness.rng import Rng
from harness.train.optim import rate
from methods.mae.method import Config, Mae
from methods.mae.weights import from_official
from tests.methods.masked import TOY, golden_drop, official
from tests.methods.reference import descend, wave

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mae.json").read_text())
SPEC = DataSpec("golden", channels=3, size=16, classes=10)
WIDE = TOY | {"width": 96, "narrow": 64}  # widths that the convention knows


def toy(target: str, dtype=torch.float64) -> Mae:
    """The golden file's network; official state dicts load as they are."""
    config = Config(4, Trunk(32, 2, 4), Trunk(16, 1, 4), norm_pix=target == "norm", sampler_every=0)
    method = Mae(config, SPEC).to(dtype)
    method.load_state_dict({f"core.{name}": value for name, value in official(**TOY).items()})
    return method


def losses(method: Mae, dtype=torch.float64):
    """Of the two golden batches, in epoch 100 of 800; the rate of the second is half an epoch on."""
    for i, phase in enumerate((0.5, 1.1)):
        patches = method.core.patches(wave(0.8, 0.11, phase, (3, 3, 16, 16)).to(dtype))
        drop = golden_drop(shift=i, dtype=dtype)
        yield lambda patches=patches, drop=drop: method.core.loss(patches, drop)


def near(found: Tensor | float, wanted, rel: float = 1e-9) -> None:
    values = found.tolist() if isinstance(found, Tensor) else found
    assert values == pytest.approx(wanted, rel=rel, abs=1e-10)


def norm(method: Mae) -> float:
    return sum(p.double().square().sum().item() for p in method.parameters()) ** 0.5


@pytest.mark.parametrize("target", ["raw", "norm"])
def test_two_steps_equal_the_references_loop(target):
    """Decay groups, betas, decay and the rate's curve show in the weights; the second step shows the moments."""
    method, moments = toy(target), [100 / 800, 100.5 / 800]
    for loss, golden in zip(
        descend(method, list(losses(method)), 4096, moments), GOLDEN[f"steps_{target}"], strict=True
    ):
        near(loss, golden["loss"])
        near(norm(method), golden["norm"])
        for name in ("cls_token", "mask_token", "decoder_pred.weight", "norm.weight", "blocks.0.attn.qkv.weight"):
            near(method.core.get_parameter(name).flatten()[:3], golden[name])
    near(rate(method.optim(4096), moments[1]), GOLDEN["second_rate"])


@pytest.mark.parametrize("target", ["raw", "norm"])
def test_float32_equals_the_reference_in_float32(target):
    method, golden = toy(target, torch.float32), GOLDEN["float32"][target]
    moments = [100 / 800, 100.5 / 800]
    for i, loss in enumerate(descend(method, list(losses(method, torch.float32)), 4096, moments)):
        near(loss, golden["losses"][i], rel=1e-5)
        near(norm(method), golden["norms"][i], rel=1e-5)


def test_reconstruction_equals_the_reference(monkeypatch):
    """The official demo's: predictions in the gaps of the picture, without standardised targets."""
    method, drop = toy("raw"), golden_drop()
    monkeypatch.setattr(method, "_drop", lambda *args: drop)
    found = method.reconstruct(wave(0.8, 0.11, 0.5, (3, 3, 16, 16)), 0.75, Rng(0)).images
    near(found[0, 0, 0, 4:7], GOLDEN["reconstruction_raw"]["row_0_from_4"])
    near(found.abs().mean(), GOLDEN["reconstruction_raw"]["mean_abs"])


# -- weights in the official format -----------------------------------------------------------------------------------


def test_official_weights_give_the_references_output():
    """From [-1, 1], where the official network was given pixels standardised by ImageNet's mean and deviation."""
    mapped = from_official(official(**WIDE))
    assert mapped.config == Config(4, Trunk(96, 2, 3), Trunk(64, 1, 2), sampler_every=0)
    assert (mapped.channels, mapped.image_size, mapped.classes) == (3, 16, 0)
    assert not mapped.missing and not mapped.unexpected
    method = Mae(mapped.config, SPEC).double()
    method.load_state_dict(mapped.state)
    images, golden = wave(0.8, 0.11, 0.5, (3, 3, 16, 16)), GOLDEN["official"]
    cls = method.core.layers(method.core.patches(images))[-1][:, 0]
    near(cls[0, :3], golden["cls_0"])
    near(cls.abs().mean(), golden["cls_mean_abs"])
    prediction = method.core.predict(method.core.patches(images), golden_drop())
    near(prediction[0, 0, :3], golden["prediction_0_0"])
    near(prediction.abs().mean(), golden["prediction_mean_abs"])


def test_an_encoder_alone_lacks_its_decoder():
    """As `mae_pretrain_vit_base.pth`: features are whole, everything of the decoder is named as missing."""
    state = {n: t for n, t in official(**WIDE).items() if not n.startswith(("decoder", "mask_token"))}
    mapped = from_official(state)
    assert mapped.config.decoder == Trunk(512, 8, 16)
    assert {"core.mask_token", "core.decoder_embed.weight", "core.decoder_pred.bias"} <= set(mapped.missing)
    assert len(mapped.missing) == 8 * 12 + 8 and not mapped.unexpected
    assert any("no decoder" in note for note in mapped.notes)
    method, whole = Mae(mapped.config, SPEC).double(), Mae(from_official(official(**WIDE)).config, SPEC).double()
    assert sorted(method.load_state_dict(mapped.state, strict=False).missing_keys) == mapped.missing
    whole.load_state_dict(from_official(official(**WIDE)).state)
    images = wave(0.8, 0.11, 0.5, (3, 3, 16, 16))
    assert torch.equal(*(m.features(images, [Tap("cls")], Rng(0))[0] for m in (method, whole)))


def test_a_fine_tuned_file_names_its_head():
    state = official(**WIDE) | {"head.weight": torch.zeros(7, 96), "head.bias": torch.zeros(7)}
    state["pos_embed"] = state["pos_embed"] + 0.01
    mapped = from_official(state)
    assert (mapped.classes, mapped.missing, mapped.unexpected) == (7, [], ["head.bias", "head.weight"])
    assert any("taken as it is" in note for note in mapped.notes)
    assert torch.equal(mapped.state["core.pos_embed"], state["pos_embed"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch_embed.proj.weight": None}, "no 'patch_embed.proj.weight'"),
        ({"patch_embed.proj.weight": torch.zeros(100, 3, 4, 4)}, "width 100"),
        ({"patch_embed.proj.weight": torch.zeros(96, 4, 4, 4)}, "an MAE on 4 channels"),
        ({"pos_embed": torch.zeros(1, 16, 96)}, "15 tokens"),
        ({"decoder_embed.weight": torch.zeros(70, 96)}, "width 70"),
        ({"decoder_pred.bias": torch.zeros(47)}, r"'decoder_pred.bias' has the shape \[47\]"),
        ({"blocks.7.norm1.weight": torch.zeros(96)}, "without a gap"),
    ],
)
def test_what_is_no_mae_is_refused(change, says):
    state = {name: tensor for name, tensor in (official(**WIDE) | change).items() if tensor is not None}
    with pytest.raises(HarnessError, match=says):
        from_official(state)


def test_size_h_has_its_heads():
    """The paper's largest, 1280 x 32 x 16, is no size of ours."""
    assert heads_of(1280) == 16
