"""UMD against the reference's numbers, its size and cost, and the pitfalls its README names."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.sizes import TRUNKS
from backbones.tokens import kept_tokens, random_drop, unpatchify
from backbones.umd_vit import UmdVit
from harness.errors import HarnessError
from harness.method import SIZES, Batch, DataSpec, Tap
from harness.rng import Rng
from methods.umd.method import METHOD, Config, Draws, Umd
from methods.umd.weights import from_official

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "umd.json").read_text())
PRINTED = 1e-9  # relative; the golden numbers have ten to twelve digits
DIGITS = DataSpec("digits", 1, 8, 10)
SPECS = [DIGITS, DataSpec("fashion-mnist", 1, 28, 10), DataSpec("cifar10", 3, 32, 10), DataSpec("64px", 3, 64, 9)]


# -- the golden model: every parameter filled by rule, in the reference's names and layouts --------------------


def golden_shapes() -> dict[str, tuple[int, ...]]:
    """The reference's 59 parameters at width 32, depth 2 + 1, 4 heads, patch 4, 16 px, 10 classes."""
    d, heads, p, c = 32, 4, 4, 3
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 4, d),
        "dec_pos_embedding": (1, 16, d),
        "pos_embedding": (1, 16, d),
        "image_mask_embedding": (1, 1, d),
        "embedding/kernel": (p, p, c, d),
        "embedding/bias": (d,),
        "final_conv/kernel": (p, p, d, 2 * c),
        "final_conv/bias": (2 * c,),
        "label_emb/embedding/embedding": (11, d),
    }

    def dense(path, inputs, outputs, *stack):
        shapes[f"{path}/kernel"], shapes[f"{path}/bias"] = (*stack, inputs, outputs), (*stack, outputs)

    dense("final_modulation", d, 2 * d)
    for trunk in ("label_trunk", "time_trunk"):
        dense(f"{trunk}/Dense_0", d, 2 * d)
        dense(f"{trunk}/Dense_1", 2 * d, d)
    for trunk, depth in (("Encoder", 2), ("Decoder", 1)):
        shapes[f"{trunk}/encoder_norm/scale"] = shapes[f"{trunk}/encoder_norm/bias"] = (d,)
        block = f"{trunk}/ScanCheckpointEncoder1DBlock_0"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        dense(f"{block}/Dense_0", d, 6 * d, depth)
        dense(f"{block}/MlpBlock_0/Dense_0", d, 4 * d, depth)
        dense(f"{block}/MlpBlock_0/Dense_1", 4 * d, d, depth)
        for i in (0, 1):
            shapes[f"{block}/LayerNorm_{i}/scale"] = shapes[f"{block}/LayerNorm_{i}/bias"] = (depth, d)
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (depth, d, heads, d // heads)
            shapes[f"{attention}/{part}/bias"] = (depth, heads, d // heads)
        shapes[f"{attention}/out/kernel"] = (depth, heads, d // heads, d)
        shapes[f"{attention}/out/bias"] = (depth, d)
    return shapes


def golden_params() -> dict[str, torch.Tensor]:
    """Parameter i of the sorted names holds 0.1 sin(0.37 j + i) in C order, norm scales plus 1."""
    params = {}
    for i, (path, shape) in enumerate(sorted(golden_shapes().items())):
        values = 0.1 * np.sin(0.37 * np.arange(np.prod(shape)) + i).reshape(shape)
        params[path] = torch.from_numpy(values + 1 if path.endswith("scale") else values)
    return params


def waves(scale: float, rate: float, phase: float, n: int, wave=np.sin) -> torch.Tensor:
    values = scale * wave(rate * np.arange(n * 768) + phase)
    return torch.from_numpy(values.reshape(n, 16, 16, 3)).permute(0, 3, 1, 2)


def order(keep: int) -> torch.Tensor:
    """Orders [2, 16] under which image b keeps the tokens (5b + 3j) mod 16, j < keep."""
    scores = torch.ones(2, 16)
    for b in range(2):
        scores[b, [(5 * b + 3 * j) % 16 for j in range(keep)]] = 0
    return scores


class Golden:
    def __init__(self):
        mapped = from_official(golden_params())
        assert mapped.config == Config(width=32, depth=2, heads=4, decoder_depth=1, patch=4, classes=10)
        self.method = Umd(replace(mapped.config, guidance=2.0), DataSpec("golden", 3, 16, 10))
        self.method.load_state_dict(mapped.state)
        self.x, self.eps = waves(0.8, 0.11, 0.5, 4), waves(1.3, 0.23, 0.1, 2, np.cos)
        self.k, self.labels = torch.tensor([40, 700]), torch.tensor([3, 7])
        self.noised = self.method.diffusion.noised(self.x[:2], self.k, self.eps)

    def predict(self, images, time, keep, labels=None):
        """`rep` and both heads as channels, [B, 2C, H, W], with the golden tokens kept."""
        net = self.method.network
        drop, cond = random_drop(order(keep), keep), net.condition(time, labels)
        encoded = net.encode(images, cond, drop)
        heads = net.decode(net.fill(encoded, drop), cond)
        return encoded.rep, torch.cat([unpatchify(head, 4) for head in heads], dim=1)


@pytest.fixture
def golden():
    torch.set_default_dtype(torch.float64)
    yield Golden()
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def near(tensor: torch.Tensor, expected: float | list[float]) -> bool:
    return tensor.detach().tolist() == pytest.approx(expected, rel=PRINTED)


def test_golden_has_all_parameters():
    assert len(golden_shapes()) == 59


def test_clean_part_equals_the_reference(golden):
    expected = GOLDEN["clean"]
    rep, heads = golden.predict(golden.x[2:], torch.zeros(2, dtype=torch.long), keep=4)
    assert near(rep[0, :3], expected["rep"])
    assert near(heads[0, :3, 0, 0], expected["prediction"])
    assert near(heads.sum(), expected["sum"])
    assert near(heads.abs().mean(), expected["mean_abs"])


def test_noisy_part_equals_the_reference(golden):
    expected = GOLDEN["noisy"]
    assert near(golden.noised[0, :, 0, 0], GOLDEN["noised"])
    rep, heads = golden.predict(golden.noised, golden.k + 1, keep=10, labels=golden.labels)
    assert near(rep[0, :3], expected["rep"])
    assert near(heads[0, :3, 0, 0], expected["prediction"])
    assert near(heads.abs().mean(), expected["mean_abs"])


def test_loss_equals_the_reference(golden):
    """Through one decoder pass over both parts, where the reference has two."""
    draws = Draws(golden.k, golden.eps, order(10), order(4))
    loss = golden.method.objective(golden.x, draws, golden.labels)
    assert near(loss.total, GOLDEN["total"])
    assert near(loss.terms["loss_rep"], GOLDEN["clean"]["loss_rep"])
    assert near(loss.terms["loss_eps"], GOLDEN["noisy"]["loss_eps"])
    assert near(loss.terms["loss_x0"], GOLDEN["noisy"]["loss_x0"])
    assert near((loss.terms["loss_eps"] + loss.terms["loss_x0"]) / 2, GOLDEN["noisy"]["loss"])


def test_features_equal_the_reference(golden):
    (rep,) = golden.method.features(golden.x, [Tap("cls")], Rng(0))
    assert near(rep[0, :3], GOLDEN["features"]["first"])
    assert near(rep.abs().mean(), GOLDEN["features"]["mean_abs"])


def test_guidance_equals_the_reference(golden):
    pair = golden.method.network.guided(golden.noised, golden.k + 1, golden.labels, scale=2.0)
    heads = torch.cat(pair, dim=1)
    assert near(heads[0, :3, 0, 0], GOLDEN["guidance_2"]["prediction"])
    assert near(heads.abs().mean(), GOLDEN["guidance_2"]["mean_abs"])


# -- size and cost ----------------------------------------------------------------------------------------------

NETWORKS = {  # image, channels, patch, width, depth, decoder depth, heads, classes
    "pixel_b4_64": (64, 3, 4, "b", 4, 0),
    "pixel_b4_64_labels": (64, 3, 4, "b", 4, 1000),
    "pixel_s4_64": (64, 3, 4, "s", 4, 0),
    "pixel_s4_32": (32, 3, 4, "s", 4, 0),
    "latent_l2_32": (32, 4, 2, "l", 8, 0),
    "latent_l2_32_labels": (32, 4, 2, "l", 8, 1000),
    "pixel_l16_256": (256, 3, 16, "l", 8, 0),
}


def on_meta(name: str) -> UmdVit:
    image, channels, patch, size, decoder_depth, classes = NETWORKS[name]
    trunk = TRUNKS[size]
    with torch.device("meta"):
        return UmdVit(image, channels, patch, trunk.width, trunk.depth, decoder_depth, trunk.heads, classes=classes)


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("name", GOLDEN["parameters_million"])
def test_parameters_equal_the_reference(name):
    net = on_meta(name)
    parts = {
        "total": net,
        "encoder": torch.nn.ModuleList([net.encoder, net.encoder_norm]),
        "decoder": torch.nn.ModuleList([net.decoder, net.decoder_norm]),
        "final_modulation": net.final_modulation,
        "time": net.time_mlp,
    }
    for part, expected in GOLDEN["parameters_million"][name].items():
        assert abs(millions(parts[part]) - expected) < 0.0006, part  # half of the last printed digit


@pytest.mark.parametrize("name", GOLDEN["forward_gflop"])
def test_forward_cost_equals_the_analytic_count(name):
    net = on_meta(name)
    image, channels = NETWORKS[name][:2]
    for part, ratio in {"clean": 0.75, "noisy": 0.375, "whole": 0.0}.items():
        keep = kept_tokens(net.tokens, ratio)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            drop = random_drop(torch.zeros(1, net.tokens), keep) if ratio else None
            cond = net.condition(torch.zeros(1, dtype=torch.long))
            net.decode(net.fill(net.encode(torch.zeros(1, channels, image, image), cond, drop), drop), cond)
        gflop, expected = counter.get_total_flops() / 1e9, GOLDEN["forward_gflop"][name][part]
        assert abs(gflop - expected) <= 0.01 * expected + 0.05, part  # 1 %, beside the printed digit


# -- the method -----------------------------------------------------------------------------------------------


def small(data: DataSpec = DIGITS, **changes) -> Umd:
    config = replace(Umd.recipe("nano", data), width=24, heads=3, depth=2, decoder_depth=1, sample_steps=3)
    return Umd(replace(config, **changes), data)


def images(data: DataSpec, n: int) -> torch.Tensor:
    return Rng(5).uniform("images", (n, data.channels, data.size, data.size)) * 2 - 1


def trained(method: Umd, data: DataSpec = DIGITS, steps: int = 20) -> Umd:
    optimizer = torch.optim.AdamW(method.param_groups(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        method(Batch(images(data, 8)), step / steps, Rng(0).at("step", step)).total.backward()
        optimizer.step()
    return method


@pytest.mark.parametrize("data", SPECS, ids=lambda data: data.name)
def test_every_data_set_trains_reads_and_draws(data):
    method, x = small(data), images(data, 4)
    loss = method(Batch(x), 0.0, Rng(0))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert set(loss.terms) == {"loss_rep", "loss_eps", "loss_x0"}
    taps = method.taps()
    assert len(taps) == 4 and taps[0] == Tap("cls")
    assert all(f.shape == (4, method.config.width) for f in method.features(x, taps, Rng(0)))
    side = data.size // method.config.patch
    maps = method.features(x, taps[1:3], Rng(0), dense=True)
    assert all(f.shape == (4, method.config.width, side, side) for f in maps)
    samples = method.sample(2, Rng(0))
    assert samples.shape == (2, data.channels, data.size, data.size) and samples.abs().max() <= 1


@pytest.mark.parametrize("size", [size for size in SIZES if size in Umd.sizes])
@pytest.mark.parametrize("data", SPECS, ids=lambda data: data.name)
def test_every_recipe_builds(size, data):
    with torch.device("meta"):
        method = METHOD(METHOD.recipe(size, data), data)
    assert method.optim(256).lr_peak == method.config.base_lr


def test_config_defaults_are_the_papers_b4_at_64():
    assert Umd.recipe("b", DataSpec("imagenet64", 3, 64, 1000)) == Config()
    rates = [Umd.recipe(size, DIGITS).base_lr for size in ("nano", "ti", "s", "b", "l")]
    assert rates == [4e-3, 2e-3, 1.5e-4, 1.5e-4, 1.5e-4]
    assert small().optim(128).lr_peak == pytest.approx(2e-3)
    assert Config().base_lr * 1024 / 256 == pytest.approx(6e-4)


@pytest.mark.parametrize(("n", "clean"), [(1, 0), (5, 2), (8, 4)])
def test_split_of_odd_batches(n, clean):
    """The clean share is exact up to rounding down, and the total weighs the parts by their images."""
    method = small()
    loss = method(Batch(images(DIGITS, n)), 0.0, Rng(0))
    rep = loss.terms.get("loss_rep", torch.zeros(()))
    diffusion = (loss.terms["loss_eps"] + loss.terms["loss_x0"]) / 2
    assert ("loss_rep" in loss.terms) == (clean > 0)
    torch.testing.assert_close(loss.total.detach(), clean / n * rep + (1 - clean / n) * diffusion)


def test_only_clean_images_is_masked_autoencoding():
    loss = small(no_noise=1.0)(Batch(images(DIGITS, 4)), 0.0, Rng(0))
    assert set(loss.terms) == {"loss_rep"}


def test_only_noisy_whole_images_is_diffusion():
    """r = 0 without masks: both heads learn everywhere, and no trained weight is left without a gradient."""
    method = small(no_noise=0.0, mask_ratio_noisy=0.0)
    loss = method(Batch(images(DIGITS, 4)), 0.0, Rng(0))
    loss.total.backward()
    assert set(loss.terms) == {"loss_eps", "loss_x0"}
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_each_head_learns_only_where_the_paper_says():
    """Clean images give the pixel head a gradient and the noise head none."""
    method, x = small(no_noise=1.0), images(DIGITS, 2)
    method(Batch(x), 0.0, Rng(0)).total.backward()
    rows = method.network.head.weight.grad.unflatten(0, (-1, 2, DIGITS.channels))  # [p*p, head, C, D]
    assert rows[:, 0].abs().sum() > 0 and rows[:, 1].abs().sum() == 0


def test_taps_of_one_noise_level_share_a_pass():
    method, passes = small(), []
    method.network.encoder.register_forward_hook(lambda *_: passes.append(1))
    method.features(images(DIGITS, 2), method.taps(), Rng(0))
    assert len(passes) == 2  # clean, and noised


def test_features_repeat_and_noise_comes_from_rng():
    method, x = trained(small()), images(DIGITS, 4)
    first, again, other = (method.features(x, method.taps(), Rng(seed)) for seed in (0, 0, 1))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert [a.equal(b) for a, b in zip(first, other, strict=True)] == [True, True, True, False]


def test_noised_tap_has_model_time_one_above_its_level():
    """Pitfall 4 of the card: noise level k is model time k + 1, in features as in training."""
    method, x = trained(small()), images(DIGITS, 4)
    (seen,) = method.features(x, [Tap("cls", 50)], Rng(3))
    eps = Rng(3).at("tap", 50).normal("noise", x.shape)
    noised = method.diffusion.noised(x, torch.full((4,), 50), eps)
    with torch.no_grad():
        at_51, at_50 = (
            method.network.encode(noised, method.network.condition(torch.full((4,), time))).rep for time in (51, 50)
        )
    assert seen.equal(at_51) and not seen.equal(at_50)


def test_dense_class_tokens_are_refused():
    method = small()
    with pytest.raises(HarnessError, match="one vector for the whole image"):
        method.features(images(DIGITS, 1), [Tap("cls")], Rng(0), dense=True)
    with pytest.raises(HarnessError, match="no tap 'block99'"):
        method.features(images(DIGITS, 1), [Tap("block99")], Rng(0))


def test_zero_class_tokens_stay_identical_and_random_ones_do_not():
    """Pitfall 2 of the card."""
    cls = trained(small()).network.cls
    assert cls.abs().max() > 0 and (cls == cls[:1]).all()
    cls = trained(small(class_token_std=0.02)).network.cls
    assert (cls - cls[:1]).abs().max() > 0.01


def test_block_is_the_identity_at_first_and_rep_is_zero():
    net = small().network
    rep = net.encode(images(DIGITS, 2), net.condition(torch.tensor([0, 700]))).rep
    assert (rep == 0).all()


def test_decay_rule():
    method = small(classes=3)
    names = {p: name for name, p in method.network.named_parameters()}
    decayed, free = ({names[p] for p in group["params"]} for group in method.param_groups())
    assert {"position", "decoder_position", "label_table.weight", "encoder.0.norm1.weight"} <= decayed
    assert {name for name in names.values() if name in ("cls", "mask_token") or name.endswith("bias")} == free
    assert decayed | free == set(names.values()) and not decayed & free


def test_samples_repeat_and_steps_can_be_chosen():
    method = trained(small())
    calls = []
    method.network.decoder.register_forward_hook(lambda *_: calls.append(1))
    first, again, other = (method.sample(2, Rng(seed), steps=5) for seed in (0, 0, 1))
    assert len(calls) == 3 * 6
    assert first.equal(again) and not first.equal(other)


def test_labels_steer_samples_only_where_there_are_any():
    """Pitfall 8 of the card: a guidance of s runs at s, and 1 is plain conditional."""
    labels = torch.tensor([0, 2])
    with pytest.raises(HarnessError, match="built without any"):
        small().sample(2, Rng(0), labels)
    method = trained(small(classes=3, guidance=2.0))
    net, x, time = method.network, images(DIGITS, 2), torch.tensor([3, 3])
    torch.nn.init.normal_(net.label_table.weight)
    with torch.no_grad():
        free, led, guided = net(x, time), net(x, time, labels), net.guided(x, time, labels, 2.0)
    torch.testing.assert_close(guided.eps, 2 * led.eps - free.eps)
    assert not method.sample(2, Rng(0), labels).equal(method.sample(2, Rng(0)))


def test_bfloat16_autocast_keeps_the_loss():
    method, x = trained(small()), images(DIGITS, 8)
    full = method(Batch(x), 0.0, Rng(0))
    with torch.autocast("cpu", torch.bfloat16):
        half = method(Batch(x), 0.0, Rng(0))
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, full.total, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "change", [{"no_noise": 1.5}, {"mask_ratio": 0.0}, {"mask_ratio_noisy": 1.0}, {"heads": 5}, {"sample_steps": 0}]
)
def test_config_refuses_nonsense(change):
    with pytest.raises(ValueError):
        replace(Config(), **change)


def test_patch_has_to_divide_the_image():
    with pytest.raises(HarnessError, match="patches of 5 px"):
        small(patch=5)
