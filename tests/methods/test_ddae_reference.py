"""DDAE against the reference: output, loss and step of its networks, levels, samplers, official weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbones.diffusion import Diffusion
from harness.errors import HarnessError
from harness.method import DataSpec
from harness.rng import Rng
from harness.train.optim import build_optimizer, set_rate
from methods.ddae.method import Ddae
from methods.ddae.weights import from_official
from tests.backbones.test_unet import hashed

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ddae.json").read_text())
CARD, TINY = GOLDEN["card"], GOLDEN["tiny"]
COLOUR = DataSpec("colour 8 px", channels=3, size=8, classes=10)
LEVELS = {"ddpm": torch.tensor([11, 700]), "edm": torch.tensor([0.06, 2.0])}

# -- the reference's tiny networks -------------------------------------------------------------------------------------


def official(mults: tuple[int, ...], residual: bool, label: int, width: int = 32) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an official network: a block a level (two in the decoder), attention at the second."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def block(name: str, fan_in: int, out: int) -> None:
        layer(f"{name}.norm1", fan_in)
        layer(f"{name}.conv1", out, fan_in, 3, 3)
        layer(f"{name}.norm2", out)
        layer(f"{name}.conv2.1", out, out, 3, 3)
        layer(f"{name}.time_emb.1", out, 4 * width)
        if fan_in != out:
            layer(f"{name}.shortcut", out, fan_in, 1, 1)

    def attention(name: str, d: int) -> None:
        layer(f"{name}.norm", d)
        layer(f"{name}.projection", 3 * d, d)
        layer(f"{name}.output", d, d)

    def resampler(name: str, d: int) -> None:
        block(f"{name}.op", d, d) if residual else layer(f"{name}.conv", d, d, 3, 3)

    one, two = (width * m for m in mults)
    layer("image_proj", width, 3, 3, 3)
    if label:
        layer("time_emb.aug_emb", width, label, bias=False)
    layer("time_emb.lin1", 4 * width, width)
    layer("time_emb.lin2", 4 * width, 4 * width)
    block("down.0.res", width, one)
    resampler("down.1", one)
    block("down.2.res", one, two)
    attention("down.2.attn", two)
    block("middle.res1", two, two)
    attention("middle.attn", two)
    block("middle.res2", two, two)
    for number, (fan_in, out) in enumerate([(two + two, two), (two + one, two), (0, 0), (two + one, one)]):
        if number == 2:
            resampler("up.2", two)
            continue
        block(f"up.{number}.res", fan_in, out)
        if number < 2:
            attention(f"up.{number}.attn", out)
    block("up.4.res", one + width, one)
    layer("norm", one)
    layer("final", 3, one, 3, 3)
    return shapes


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights by the golden run's rule."""

    def value(name: str, shape: tuple[int, ...]) -> Tensor:
        h = hashed(shape)
        if name.endswith("bias"):
            return 0.1 * h
        return 1 + 0.1 * h if len(shape) == 1 else h * (3 / h[0].numel()) ** 0.5

    return {name: value(name, shape).float() for name, shape in shapes.items()}


SHAPES = {"conv": official((1, 2), residual=False, label=0), "residual": official((2, 2), residual=True, label=9)}
HEADS = {"conv": 0, "residual": 16}


def tiny(kind: str, objective: str = "ddpm", **changes) -> Ddae:
    found = from_official(filled(SHAPES[kind]), HEADS[kind])
    assert found.missing == found.unexpected == []
    net = replace(found.config.net, dropout=0.0)
    method = Ddae(replace(found.config, net=net, objective=objective, **changes), COLOUR)
    method.load_state_dict(found.state)
    return method.eval()


def wave(scale: float, rate: float, phase: float) -> Tensor:
    return (scale * torch.sin(rate * torch.arange(2 * 3 * 8 * 8).double() + phase)).float().view(2, 3, 8, 8)


X, EPS = wave(1, 0.11, 0.5) * 0.9, wave(1, 0.23, 0.1) * 1.3


def near(found: Tensor, wanted: dict) -> None:
    assert found.flatten()[:3].tolist() == pytest.approx(wanted["first"], abs=5e-6)
    assert found.double().abs().mean().item() == pytest.approx(wanted["mean_abs"], rel=5e-6)


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_official_weights_give_the_references_output_and_blocks(kind):
    method, told = tiny(kind), torch.tensor([0.011, 0.7])
    assert sum(p.numel() for p in method.parameters()) == TINY[kind]["parameters"]
    near(method.network(X, told), TINY[kind]["output"])
    blocks = {k: method.network.middle + int(k) for k in TINY[kind]["pooled"]}
    seen = method.network.read(X, told, blocks.values())
    for k, block in blocks.items():
        near(seen[block].mean(dim=(2, 3)), TINY[kind]["pooled"][k])
    if kind == "residual":
        label = torch.linspace(-1, 1, 18).view(2, 9)
        near(method.network(X, told, label), TINY[kind]["output_with_label"])


@pytest.mark.parametrize("objective", LEVELS)
@pytest.mark.parametrize("kind", SHAPES)
def test_loss_and_one_optimizer_step_equal_the_reference(kind, objective):
    """Adam at 4e-4 after clipping the gradient's norm at 1."""
    want, method = TINY[kind][objective], tiny(kind, objective).train()
    method.network.label = None  # no label was given, so the reference's has no gradient
    loss = method.loss(X, LEVELS[objective], EPS)
    assert loss.total.item() == pytest.approx(want["loss"], rel=2e-6)
    loss.total.backward()
    optim = method.optim(512)
    norm = torch.nn.utils.clip_grad_norm_(method.parameters(), optim.clip_norm)
    assert norm.item() == pytest.approx(want["gradient_norm"], rel=1e-5)
    optimizer = build_optimizer(method, optim)
    set_rate(optimizer, optim.lr_peak)
    optimizer.step()
    state = method.state_dict()
    ours = {
        "image_proj.weight": "conv_in.weight",
        "down.2.res.time_emb.1.weight": "down_blocks.1.resnets.0.time_emb_proj.weight",
        "middle.attn.projection.weight": "mid_block.attentions.0.to_q.weight",
        "up.0.res.conv2.1.weight": "up_blocks.0.resnets.0.conv2.weight",
        "final.weight": "conv_out.weight",
        "norm.weight": "conv_norm_out.weight",
    }
    for theirs, first in want["after_one_step"].items():
        found = state[f"network.unet.{ours[theirs]}"].flatten()[:3].tolist()
        assert found == pytest.approx(first, abs=2e-6), theirs


def test_the_average_of_a_saved_training_is_taken():
    """ema-pytorch keeps the average, the network that it follows, and its count in one state."""
    state = filled(SHAPES["conv"])
    both = {f"ema_model.nn_model.{name}": tensor for name, tensor in state.items()}
    both |= {f"online_model.nn_model.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    found, plain = from_official(both | {"initted": torch.tensor(True), "step": torch.tensor(3)}), from_official(state)
    assert found.config == plain.config and "the average" in found.notes[0]
    assert found.missing == found.unexpected == []
    assert all(torch.equal(found.state[name], tensor) for name, tensor in plain.state.items())
    saved = {f"module.nn_model.{name}": tensor for name, tensor in state.items()}  # as data parallel training names it
    assert from_official(saved).state.keys() == plain.state.keys()


def test_a_setting_by_which_the_tensors_were_cut_is_refused(tmp_path):
    """Another width of a head fits every shape and gives another network."""
    from harness.released.formats import Asked, load

    torch.save(filled(SHAPES["conv"]), tmp_path / "model.pth")
    with pytest.raises(HarnessError, match=r"ddae\.net\.head=16 for tensors that were cut at 0"):
        load(Asked(str(tmp_path / "model.pth"), "ddae", settings={"ddae": {"net": {"head": 16}}}))


def test_image_side_and_label_are_read_off_and_what_is_not_in_the_file_is_said():
    found = from_official(filled(SHAPES["residual"]), head=16)
    assert (found.channels, found.image_size, found.classes, found.config.net.label) == (3, 32, 0, 9)
    assert found.config.net.resample == "residual" and found.config.net.attention == (1,)
    assert any("ddae.objective" in note for note in found.notes)


def test_weights_that_do_not_fit_are_named():
    state = filled(SHAPES["conv"])
    del state["middle.res2.norm1.bias"]
    state["up.0.res.extra.weight"] = torch.zeros(1)
    found = from_official(state)
    assert found.missing == ["network.unet.mid_block.resnets.1.norm1.bias"]
    assert found.unexpected == ["up.0.res.extra.weight"]
    with pytest.raises(HarnessError, match=r"'final.weight' has the shape \[4, 32, 3, 3\]"):
        from_official(state | {"final.weight": torch.zeros(4, 32, 3, 3)})
    with pytest.raises(HarnessError, match=r"no 'image_proj.weight' among the tensors \(head\.bias"):
        from_official({"head.bias": torch.zeros(1)})


@pytest.mark.parametrize("form", ["state", "EMA"])
def test_a_file_goes_through_the_released_weights(form, tmp_path):
    from harness.released.formats import Asked, load

    state = filled(SHAPES["conv"])
    if form == "EMA":
        follows = {f"online_model.nn_model.{n}": torch.zeros_like(t) for n, t in state.items()}
        average = {f"ema_model.nn_model.{n}": t for n, t in state.items()} | {"step": torch.tensor(3)}
        ours = {f"module.nn_model.{n}": torch.zeros_like(t) for n, t in state.items()}
        state = {"MODEL": ours, "EMA": average | follows, "opt": {"state": {}, "param_groups": [{"lr": 4e-4}]}}
    torch.save(state, tmp_path / "model.pth")
    words = {"ddae": {"objective": "edm", "net": {"dropout": 0.0}}}
    found = load(Asked(str(tmp_path / "model.pth"), "ddae", settings=words))
    assert (found.name, found.draws, found.missing, found.unexpected) == ("ddae", True, [], [])
    assert found.method.data.size == 32 and found.config["objective"] == "edm"
    assert torch.equal(found.method.network.unet.conv_in.weight, filled(SHAPES["conv"])["image_proj.weight"])


# -- levels and samplers -----------------------------------------------------------------------------------------------


def test_ddpms_levels_are_the_cards():
    bars, other = Diffusion("linear").alpha_bar, Diffusion("linear", 1001).alpha_bar
    assert bars[0] == pytest.approx(CARD["abar_1"]) and bars[999] == pytest.approx(CARD["abar_1000"], rel=2e-6)
    assert bars[10] ** 0.5 == pytest.approx(CARD["sqrt_abar_11"], abs=5e-7)
    assert bars[120] ** 0.5 == pytest.approx(CARD["sqrt_abar_121"], abs=5e-7)
    assert other[1000] == pytest.approx(CARD["reference_ddim_abar_1000"], rel=2e-6)


def test_t_counts_from_1_for_the_network_and_from_0_in_the_schedule():
    """diffusers' level t - 1 is DDAE's t, and the network is told t / 1000."""
    from diffusers import DDPMScheduler

    method, scheduler = tiny("conv"), DDPMScheduler(beta_schedule="linear")
    for t, noise in CARD["noise_of_ddpm"].items():
        noised, told = method.noised(X, int(t), EPS)
        torch.testing.assert_close(noised, scheduler.add_noise(X, EPS, torch.tensor([int(t) - 1] * 2)))
        assert told.tolist() == pytest.approx([int(t) / 1000] * 2)
        assert method.diffusion.spread[int(t) - 1].item() == pytest.approx(noise, abs=2e-6)


def test_edms_level_is_added_and_scaled_as_the_reference_does():
    method = tiny("conv", "edm")
    noised, told = method.noised(X, 4, EPS)
    sigma = method.config.edm.level(4)
    near(noised * (sigma**2 + 0.25) ** 0.5, TINY["edm_level4"])
    assert told.tolist() == pytest.approx([CARD["told_of_edm"]["4"]] * 2, abs=5e-5)


def given(method: Ddae) -> Ddae:
    """The method around the samplers' golden function."""
    method.network.forward = lambda x, told: 0.9 * torch.tanh(0.8 * x + told.view(-1, 1, 1, 1))
    return method


@pytest.mark.parametrize("schedule", ["training", "reference"])
def test_ddim_equals_the_reference_on_either_schedule(schedule):
    near(given(tiny("conv", ddim_schedule=schedule)).ddim(EPS, 100), TINY[f"ddim100_{schedule}"])


def test_ddim_on_the_trainings_schedule_is_diffusers():
    from diffusers import DDIMScheduler

    method, x = given(tiny("conv")), EPS
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=True, timestep_spacing="leading", steps_offset=0)
    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        eps = method.network.forward(x, torch.full((2,), (t.item() + 1) / 1000))
        x = scheduler.step(eps, t, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(method.ddim(EPS, 50), x, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("objective", "steps", "evaluations"), [("ddpm", 7, 7), ("ddpm", 1, 1), ("edm", 4, 7)])
def test_steps_are_what_was_asked_for(objective, steps, evaluations):
    method, calls = tiny("conv", objective), []
    method.network.register_forward_hook(lambda *_: calls.append(1))
    drawn = method.sample(2, Rng(0), steps=steps)
    assert len(calls) == evaluations and drawn.isfinite().all() and drawn.abs().max() <= 1
    with pytest.raises(HarnessError, match="sampling steps"):
        method.sample(2, Rng(0), steps=1001 if objective == "ddpm" else 0)
    with pytest.raises(HarnessError, match="labels"):
        method.sample(2, Rng(0), labels=torch.tensor([0, 1]))
