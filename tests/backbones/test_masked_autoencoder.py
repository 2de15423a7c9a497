"""The masked autoencoder against the reference's numbers in float64, and what its parts promise each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backbones.attention import attend
from backbones.masked_autoencoder import MaskedAutoencoder, dropped_places
from backbones.sizes import Trunk
from backbones.tokens import Drop, kept_tokens, random_drop, sincos_2d, take
from harness.errors import HarnessError
from harness.method import Tap
from harness.rng import Rng

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mae.json").read_text())
EXACT = {"rtol": 0, "atol": 1e-9}


def tiny(channels: int = 3, side: int = 16, patch: int = 4, **options) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(channels, side, patch, Trunk(32, 2, 4), Trunk(16, 1, 4), **options)


@pytest.fixture(scope="module")
def golden_core() -> MaskedAutoencoder:
    """The network of the golden values, in float64, filled by their rule."""
    core = tiny().double()
    core.pos_embed[0, 1:] = sincos_2d(32, 4, torch.float64)
    core.decoder_pos_embed[0, 1:] = sincos_2d(16, 4, torch.float64)
    with torch.no_grad():
        for i, name in enumerate(sorted(name for name, _ in core.named_parameters())):
            p = core.get_parameter(name)
            p.copy_((0.1 * torch.sin(0.37 * torch.arange(p.numel(), dtype=torch.float64) + i)).view_as(p))
            if "norm" in name and name.endswith("weight"):
                p += 1
    return core


@pytest.fixture(scope="module")
def golden_patches(golden_core):
    flat = 0.8 * torch.sin(0.11 * torch.arange(3 * 3 * 16 * 16, dtype=torch.float64) + 0.5)
    return golden_core.patches(flat.view(3, 3, 16, 16))


@pytest.fixture(scope="module")
def golden_drop() -> Drop:
    b, n = torch.arange(3)[:, None], torch.arange(16)
    return random_drop(((7 * n + 5 * b + 3) % 16).double() / 16, kept_tokens(16, 0.75))


def near(found: torch.Tensor, golden: float | list[float]) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(golden, dtype=torch.float64), **EXACT)


def test_masks_equal_the_reference(golden_drop):
    assert golden_drop.dropped[0].int().tolist() == GOLDEN["dropped_0"]
    assert golden_drop.dropped[2].int().tolist() == GOLDEN["dropped_2"]
    assert golden_drop.restore[0].tolist() == GOLDEN["restore_0"]


@pytest.mark.parametrize("target", ["raw", "norm"])
def test_loss_and_gradient_equal_the_reference(golden_core, golden_patches, golden_drop, target, monkeypatch):
    monkeypatch.setattr(golden_core, "norm_target", target == "norm")
    loss = golden_core.loss(golden_patches, golden_drop)
    gradients = torch.autograd.grad(loss, list(golden_core.parameters()))
    near(loss, GOLDEN["loss"][target])
    near(torch.stack([g.norm() for g in gradients]).norm(), GOLDEN["gradient_norm"][target])


def test_encoder_and_decoder_equal_the_reference(golden_core, golden_patches, golden_drop):
    encoded = golden_core.encode(golden_patches, golden_drop)
    near(encoded[0, 0, :3], GOLDEN["encoded_cls_0"])
    near(encoded.abs().mean(), GOLDEN["encoded_mean_abs"])
    prediction = golden_core.predict(golden_patches, golden_drop)
    near(prediction[0, 0, :3], GOLDEN["prediction_0_0"])
    near(prediction.sum(), GOLDEN["prediction_sum"])
    near(prediction.abs().mean(), GOLDEN["prediction_mean_abs"])


def test_features_equal_the_reference(golden_core, golden_patches):
    states = golden_core.layers(golden_patches)
    cls = states[-1][:, 0]
    near(cls[0, :3], GOLDEN["feature_cls_0"])
    near(cls.abs().mean(), GOLDEN["feature_cls_mean_abs"])
    pooled = F.layer_norm(states[-2][:, 1:].mean(dim=1), (32,), eps=1e-6)  # a fresh norm before the final one
    near(pooled[0, :3], GOLDEN["feature_pool_norm_0"])
    near(pooled.abs().mean(), GOLDEN["feature_pool_norm_mean_abs"])


def test_positions_equal_the_reference():
    row_1_column_1 = sincos_2d(32, 4, torch.float64)[5]
    for channel, value in GOLDEN["sincos_width_32_grid_4_row_1_column_1"].items():
        near(row_1_column_1[int(channel)], value)


@pytest.mark.parametrize("case", GOLDEN["parameters"], ids=lambda c: f"{c['side']}px/{c['patch']} {c['encoder']}")
def test_parameter_counts(case):
    with torch.device("meta"):
        core = MaskedAutoencoder(3, case["side"], case["patch"], Trunk(*case["encoder"]), Trunk(*case["decoder"]))
    counts = {name: p.numel() / 1e6 for name, p in core.state_dict().items()}  # position codes included
    decoder = sum(n for name, n in counts.items() if name.startswith(("decoder", "mask_token")))
    encoder = sum(counts.values()) - decoder
    if "total_m" in case:
        assert encoder + decoder == pytest.approx(case["total_m"], rel=5e-3)
    else:
        assert encoder == pytest.approx(case["encoder_m"], abs=0.06)
        assert decoder == pytest.approx(case["decoder_m"], abs=0.06)


def test_names_are_those_of_the_public_checkpoints():
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = ["patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred"]
    modules += [f"{trunk}.{i}.{part}" for trunk, i in (("blocks", 0), ("blocks", 1)) for part in block]
    modules += [f"decoder_blocks.0.{part}" for part in block]
    names = {f"{m}.{kind}" for m in modules for kind in ("weight", "bias")}
    assert set(tiny().state_dict()) == names | {"cls_token", "mask_token", "pos_embed", "decoder_pos_embed"}


def test_dropped_patches_never_reach_the_encoder():
    """Nothing that happens to a dropped patch changes the encoding, and the FLOPs fall with the tokens."""
    core, patches = tiny(), torch.randn(2, 16, 48)
    drop = random_drop(torch.rand(2, 16), 4)
    changed = torch.where(drop.dropped[..., None].bool(), torch.full_like(patches, torch.nan), patches)
    torch.testing.assert_close(core.encode(changed, drop), core.encode(patches, drop))
    assert _flop(lambda: core.encode(patches, drop)) < 0.35 * _flop(lambda: core.encode(patches))


def _flop(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_seen_patches_bear_no_loss():
    core, patches = tiny(norm_target=False), torch.randn(2, 16, 48)
    drop = random_drop(torch.rand(2, 16), 4)
    error = (core.predict(patches, drop) - patches).square().mean(dim=2)
    torch.testing.assert_close(core.loss(patches, drop), take(error[..., None], dropped_places(drop)).mean())


def test_nothing_dropped_is_an_error():
    core = tiny()
    drop = random_drop(torch.rand(2, 16), kept_tokens(16, 0.0))
    with pytest.raises(HarnessError, match="no token is dropped"):
        core.loss(torch.randn(2, 16, 48), drop)


def test_everything_dropped_gives_one_prediction():
    """Seeing nothing, the network cannot tell images apart (card lmd, H12)."""
    core = tiny()
    prediction = core.predict(torch.randn(3, 16, 48), random_drop(torch.rand(3, 16), 0))
    torch.testing.assert_close(prediction[0], prediction[1])
    assert prediction.isfinite().all()


def test_target_is_standardised_with_the_unbiased_variance():
    patches = torch.randn(2, 16, 4, dtype=torch.float64)
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True, correction=1)
    torch.testing.assert_close(tiny().target(patches), (patches - mean) / (variance + 1e-6).sqrt(), **EXACT)


def test_the_decoders_position_sign():
    """The same weights with the sign turned give what negated position codes give."""
    plus, minus = tiny(), tiny(decoder_position=-1)
    patches, drop = torch.randn(2, 16, 48), random_drop(torch.rand(2, 16), 4)
    assert not torch.allclose(plus.predict(patches, drop), minus.predict(patches, drop), atol=1e-3)
    plus.decoder_pos_embed.neg_()
    torch.testing.assert_close(plus.predict(patches, drop), minus.predict(patches, drop))


def test_completion_keeps_what_was_seen():
    core, patches = tiny(), torch.randn(2, 16, 48)
    drop = random_drop(torch.rand(2, 16), 4)
    completed = core.complete(patches, drop)
    seen = drop.dropped == 0
    assert torch.equal(completed[seen], patches[seen])
    assert not torch.isclose(completed[~seen], patches[~seen]).all(dim=1).any()


def test_features_of_all_taps_come_from_one_pass():
    core, patches = tiny(), torch.randn(2, 16, 48)
    taps = core.taps()
    one = _flop(lambda: core.features(patches, taps[:1], dense=False))
    assert _flop(lambda: core.features(patches, taps, dense=False)) == one


@pytest.mark.parametrize(
    ("depth", "blocks"), [(1, ["block1"]), (2, ["block1"]), (3, ["block2", "block1"]), (12, ["block9", "block6"])]
)
def test_taps_are_distinct_at_every_depth(depth, blocks):
    with torch.device("meta"):
        core = MaskedAutoencoder(3, 16, 4, Trunk(32, depth, 4), Trunk(16, 1, 4))
    assert [tap.layer for tap in core.taps()] == ["cls", "mean", *blocks]


def test_dense_features_are_maps_in_image_order():
    core, patches = tiny(), torch.randn(2, 16, 48)
    (dense,), (pooled,) = (core.features(patches, [Tap("mean")], dense=d) for d in (True, False))
    assert dense.shape == (2, 32, 4, 4)
    torch.testing.assert_close(dense.mean(dim=(2, 3)), pooled)
    torch.testing.assert_close(dense[:, :, 1, 2], core.layers(patches)[-1][:, 1 + 6])
    with pytest.raises(HarnessError, match="no place"):
        core.features(patches, [Tap("cls")], dense=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_is_softmax_of_the_scaled_products(dtype, tolerance):
    """Either kernel against the formula in float64."""
    q, k, v = Rng(0).normal("qkv", (3, 2, 3, 17, 32)).to(dtype)
    scores = q.double() @ k.double().mT / 32**0.5
    expected = scores.softmax(dim=-1) @ v.double()
    torch.testing.assert_close(attend(q, k, v).double(), expected, atol=tolerance, rtol=tolerance)
