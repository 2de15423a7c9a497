"""The presets of the linear probe: their steps beside the references', what they may see, what the record says."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from evals import _online, _presets, linear, online
from evals._online import Heads
from evals._presets import RECIPES
from harness.data.dataset import Part
from harness.evaluation import Subject, evaluate
from harness.method import DataSpec, Method, Tap
from harness.rng import Rng
from tests.evals.golden import h
from tests.evals.kit import Toy, ToyData, context, toy_data

WHO = Subject(reference="toy")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "probes.json").read_text())
ONE, OTHER = Tap("one"), Tap("other")
PRESETS = sorted(RECIPES)
QUICK = online.Config(epochs=2, batch=32, length="short", seeds=2)


def numbers(rows, columns) -> torch.Tensor:
    return torch.from_numpy(h(rows, columns))


# -- steps beside the references' -------------------------------------------------------------------------------------


def test_a_step_of_lars_is_maes():
    heads = Heads({ONE: 8}, 3, RECIPES["mae"], Rng(0)).double()
    optimizer, layer = _online.optimizer_of(heads, RECIPES["mae"], batch=1280), heads.linear[0]
    with torch.no_grad():
        layer.weight.copy_(0.1 * numbers(range(3), range(8)))
        layer.bias.copy_(0.1 * numbers(range(1), range(3))[0])
    assert {group["peak"] for group in optimizer.param_groups} == {GOLDEN["lars"]["lr"]}
    for k, expected in enumerate(GOLDEN["lars"]["steps"]):
        layer.weight.grad = numbers(range(10 * k, 10 * k + 3), range(8)) * (k != 2)  # the third gradient is zero
        layer.bias.grad = numbers(range(10 * k + 5, 10 * k + 6), range(3))[0]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"]
        optimizer.step()
        assert layer.weight[0].tolist() == pytest.approx(expected["weight"], abs=1e-12)
        assert layer.bias.tolist() == pytest.approx(expected["bias"], abs=1e-12)


def test_a_training_of_the_mae_preset_is_maes():
    golden = GOLDEN["probe"]
    recipe = dataclasses.replace(RECIPES["mae"], rates=(golden["base_rate"],))
    x, y = numbers(range(64), range(8)) + 3, torch.arange(64) % 3
    heads = Heads({ONE: 8}, 3, recipe, Rng(0)).double().train()
    with torch.no_grad():
        heads.linear[0].weight.copy_(0.01 * numbers(range(200, 203), range(8)))
    optimizer, rates = _online.optimizer_of(heads, recipe, golden["batch"]), []
    for epoch in range(golden["epochs"]):
        for step, index in enumerate(torch.arange(64).split(golden["batch"])):
            share = recipe.course(epoch + step / 4, golden["epochs"])
            _online.advance(heads, optimizer, share, {ONE: x[index]}, y[index])
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates[::4] == pytest.approx(golden["rates"], abs=1e-12)
    assert heads.linear[0].weight.detach().numpy() == pytest.approx(torch.tensor(golden["weight"]).numpy(), abs=1e-6)
    assert heads.linear[0].bias.tolist() == pytest.approx(golden["bias"], abs=1e-6)
    assert heads.norms[0].running_mean.tolist() == pytest.approx(golden["running_mean"], abs=1e-9)


@pytest.mark.parametrize("preset", ["dinov2", "ddae"])
def test_heads_trained_at_once_are_heads_trained_one_by_one(preset):
    recipe, epochs, batch = RECIPES[preset], 3, 16
    features = {ONE: numbers(range(64), range(8)).float() + 1, OTHER: numbers(range(100, 164), range(5)).float()}
    labels = torch.arange(64) % 3
    heads = Heads({ONE: 8, OTHER: 5}, 3, recipe, Rng(1)).train()
    alone = copy.deepcopy(heads.linear)
    optimizer = _online.optimizer_of(heads, recipe, batch)
    for epoch in range(epochs):
        for step, index in enumerate(torch.arange(64).split(batch)):
            share = recipe.course(epoch + step / 4, epochs)
            _online.advance(heads, optimizer, share, {tap: f[index] for tap, f in features.items()}, labels[index])
    for layer, mine, (tap, rate) in zip(alone, heads.linear, heads.names, strict=True):
        if preset == "dinov2":
            own = torch.optim.SGD(layer.parameters(), lr=rate * batch / 256, momentum=0.9, weight_decay=0)
            course = torch.optim.lr_scheduler.CosineAnnealingLR(own, epochs * 4, eta_min=0)
        else:
            own = torch.optim.Adam(layer.parameters(), lr=1e-3 * batch / 128)
            course = torch.optim.lr_scheduler.CosineAnnealingLR(own, epochs)
        for _ in range(epochs):
            for index in torch.arange(64).split(batch):
                own.zero_grad()
                nn.functional.cross_entropy(layer(features[tap][index]), labels[index]).backward()
                own.step()
                if preset == "dinov2":
                    course.step()
            if preset == "ddae":
                course.step()
        torch.testing.assert_close(mine.weight, layer.weight, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.bias, layer.bias, atol=1e-5, rtol=1e-5)
    assert len(heads.names) == 2 * len(recipe.rates)


def test_the_recipes_are_the_cards():
    assert [len(RECIPES[name].rates) for name in ("dinov2", "mae", "ddae")] == [13, 1, 1]
    assert (min(RECIPES["dinov2"].rates), max(RECIPES["dinov2"].rates)) == (1e-5, 0.1)
    peaks = {name: _online.optimizer_of(_heads(name), RECIPES[name], 512).param_groups[0]["peak"] for name in PRESETS}
    assert peaks == {"dinov2": 2e-5, "mae": 0.2, "ddae": 4e-3}
    assert [RECIPES["ddae"].course(14 + step, 15) for step in (0, 0.99)] == pytest.approx([0.0109, 0.0109], abs=5e-5)
    assert [RECIPES["mae"].course(epoch, 90) for epoch in (0, 5, 10, 90)] == pytest.approx([0, 0.5, 1, 0])
    assert [RECIPES["dinov2"].course(epoch, 10) for epoch in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def _heads(preset: str) -> Heads:
    return Heads({ONE: 400}, 10, RECIPES[preset], Rng(2))


def test_heads_start_as_theirs_do():
    for preset in ("mae", "dinov2"):
        layer = _heads(preset).linear[0]
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1) and not layer.bias.any()
    layer = _heads("ddae").linear[0]
    assert layer.weight.abs().max() <= 400**-0.5 and layer.bias.any()
    assert [isinstance(_heads(name).norms[0], nn.BatchNorm1d) for name in PRESETS] == [False, False, True]


# -- what passes through the network ----------------------------------------------------------------------------------


def test_ddaes_images_are_shifted_over_black_and_mirrored():
    images = Rng(4).uniform("images", (200, 1, 6, 6)) * 2 - 1
    padded = nn.functional.pad(images, [4] * 4, value=-1.0)
    for mirror in (True, False):
        found = _online.augmented(images, None, mirror, Rng(5))
        places = {}
        for flip in (False, True):
            source = padded.flip(3) if flip else padded
            for top in range(9):
                for left in range(9):
                    same = (source[:, :, top : top + 6, left : left + 6] == found).flatten(1).all(1)
                    places |= {int(i): (flip, top, left) for i in same.nonzero()}
        assert len(places) == len(images)
        assert {flip for flip, _, _ in places.values()} == ({True, False} if mirror else {False})
        assert {top for _, top, _ in places.values()} == {left for _, _, left in places.values()} == set(range(9))


class Watched(Method):
    """Two noisy taps; remembers what it was shown, and the key of its noise."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, int]] = []

    def taps(self) -> list[Tap]:
        return [Tap("a", 3), Tap("b", 3)]

    def features(self, images, taps, rng, dense=False):
        assert not torch.is_grad_enabled() and not self.training
        self.seen.append((images, rng.number("noise")))
        return [images.flatten(1) + 0.1 * rng.normal(t.layer, images.flatten(1).shape) for t in taps]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_step_has_its_own_augmentation_and_noise(tmp_path, preset):
    method = Watched()
    config = dataclasses.replace(QUICK, presets=(preset,), images=64, seeds=2, epochs=3)
    record = evaluate("online", context(tmp_path, method), config, subject=WHO)
    steps = [(images, key) for images, key in method.seen if len(images) == 32]
    assert len(steps) == 2 * 3 * 2 and len({key for _, key in steps}) == len(steps)
    shown = torch.cat([images for images, _ in steps]).flatten(1)
    assert len(shown.unique(dim=0)) > 0.9 * len(shown)  # seldom an image twice in the same way
    assert record.chosen[preset]["images"] == 64
    tests = {key for images, key in method.seen if len(images) == 120}
    assert len(tests) == 2  # a noisy tap is read anew for each training


def test_the_last_smaller_batch_is_a_step_of_ddaes_only(tmp_path):
    for preset, sizes in {"mae": {32}, "ddae": {32, 6}}.items():
        method = Watched()
        evaluate(
            "online", context(tmp_path, method), dataclasses.replace(QUICK, presets=(preset,), images=70), subject=WHO
        )
        assert {len(images) for images, _ in method.seen} - {1, 44, 90, 120, 256} == sizes


# -- what is found ----------------------------------------------------------------------------------------------------


class Shades(Method):
    """Whether an image is light or dark, under other numbers; light is what no crop changes."""

    def taps(self) -> list[Tap]:
        return [Tap("nothing"), Tap("shade")]

    def features(self, images, taps, rng, dense=False):
        rest = images.flatten(1)[:, :5]
        shade = images.mean(dim=(1, 2, 3))[:, None] * 5
        return [torch.cat([rest * 0 if t.layer == "nothing" else shade, 0 * rest], 1) for t in taps]


def shades(poisoned: bool = False) -> ToyData:
    plain, data = toy_data(), []
    for part in (plain.train, plain.test):
        labels = part.labels % 2
        light = torch.where(labels == 1, 60, -60)[:, None, None, None]
        data.append(Part((part.images.int() + light).clamp(0, 255).to(torch.uint8), labels, part.index))
    if poisoned:
        data[1] = Part(data[1].images, 1 - data[1].labels, data[1].index)
    return ToyData(DataSpec("shades", 1, 8, 2), data[0], 300, data[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_linear_head_can_tell_is_found(tmp_path, preset):
    config = dataclasses.replace(
        QUICK, presets=(preset,), epochs=12, batch=16, rate={"ddae": 0.05, "mae": 100.0, "dinov2": 0}[preset]
    )
    record = evaluate("online", context(tmp_path, Shades(), shades()), config, subject=WHO)
    number = record.numbers[f"online_{preset}_top1"]
    assert number.value > 95 and number.n == 120 and len(number.values) == 2
    assert record.chosen["tap"] == "shade" and len(record.test_opened) == 1


def test_the_test_part_has_no_say_in_the_choice(tmp_path):
    config = dataclasses.replace(QUICK, presets=("dinov2",))
    sound, poisoned = (
        evaluate("online", context(tmp_path / str(p), Shades(), shades(p)), config, subject=WHO) for p in (False, True)
    )
    assert sound.chosen == poisoned.chosen and sound.trials == poisoned.trials == 2 * 13
    values = sound.numbers["online_dinov2_top1"].values, poisoned.numbers["online_dinov2_top1"].values
    assert [100 - v for v in values[0]] == pytest.approx(values[1])
    assert set(sound.chosen["dinov2"]["scores"]) == {
        f"{tap} {rate:g}" for tap in ("nothing", "shade") for rate in (10 * r for r in RECIPES["dinov2"].rates)
    }


def test_dinov2s_heads_are_trained_on_fit_and_the_others_on_all_of_train(tmp_path):
    for preset, images in {"dinov2": 300, "mae": 390, "ddae": 390}.items():
        config = dataclasses.replace(QUICK, presets=(preset,), epochs=1, seeds=1)
        assert evaluate("online", context(tmp_path, Toy()), config, subject=WHO).chosen[preset]["images"] == images


def test_a_head_that_diverged_is_never_the_best():
    heads = Heads({ONE: 2}, 2, dataclasses.replace(RECIPES["dinov2"], rates=(0.1, 0.2)), Rng(0))
    with torch.no_grad():
        heads.linear[0].weight.fill_(float("nan"))
    found = _online.guesses(heads, {ONE: torch.ones(10, 2)}, torch.device("cpu"))
    assert set(found[ONE, 0.1].tolist()) == {-1} and set(found[ONE, 0.2].tolist()) <= {0, 1}


def test_equal_input_gives_equal_bits_and_seeds_differ(tmp_path):
    config = dataclasses.replace(QUICK, presets=("mae",), epochs=4)
    one, two = (
        evaluate("online", context(tmp_path / name), config, subject=WHO).model_dump(exclude={"ledger"})
        for name in "ab"
    )
    assert one == two and len(set(one["numbers"]["online_mae_top1"]["values"])) == 2


# -- settings ---------------------------------------------------------------------------------------------------------


def test_presets_stand_side_by_side_in_columns_of_their_own(tmp_path):
    config = dataclasses.replace(QUICK, presets=online.PRESETS, epochs=1, seeds=1)
    data = toy_data()
    record = evaluate("online", context(tmp_path, data=data), config, subject=WHO)
    assert [number.title for number in record.numbers.values()] == [
        "linear probe (DINOv2's heads) top-1 %",
        "linear probe (MAE's LARS) top-1 %",
        "linear probe (DDAE's Adam) top-1 %",
    ]
    alone = evaluate("online", context(tmp_path), dataclasses.replace(config, presets=("ddae",)), subject=WHO)
    assert alone.numbers["online_ddae_top1"] == record.numbers["online_ddae_top1"]
    assert len(record.test_opened) == 3  # each preset's own look
    assert record.trials == sum((4 * 13, 4, 4))
    probe = evaluate("linear", context(tmp_path), linear.Config(), subject=WHO)
    assert not {n.title for n in probe.numbers.values()} & {n.title for n in record.numbers.values()}


def test_the_papers_length_is_one_setting_away_from_the_short_one():
    short = dataclasses.replace(online.recipe("nano"), presets=("mae",))
    recipe, length = _presets.settled(short, "mae")
    assert length == _presets.Length(5, 4_000, 128) and recipe.rates == (30.0,)
    recipe, length = _presets.settled(dataclasses.replace(short, length="paper"), "mae")
    assert length == _presets.Length(90, 0, 512) and recipe.rates == (0.1,)
    recipe, length = _presets.settled(dataclasses.replace(short, epochs=7, images=50, batch=16, rate=3.0), "mae")
    assert length == _presets.Length(7, 50, 16) and recipe.rates == (3.0,)
    epochs = {name: _presets.settled(online.Config(presets=(name,)), name)[1].epochs for name in PRESETS}
    assert epochs == {"dinov2": 10, "mae": 90, "ddae": 15}


@pytest.mark.parametrize("odd", [{"epochs": -1}, {"batch": 1}, {"images": 1}, {"rate": -0.1}])
def test_odd_lengths_are_refused(odd):
    with pytest.raises(ValueError, match="0 or more"):
        online.Config(**odd)


def test_the_readmes_figures_are_the_measured_ones():
    text = (Path(__file__).parents[2] / "evals" / "README.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| `")}
    measured = GOLDEN["cifar10"]
    for start, pairs in (
        ("`linear`, MAE", list(measured["lbfgs"].values())),
        ("`online` with MAE's LARS", measured["mae_cached"]),
        ("`online` with DINOv2's heads", measured["dinov2_cached"]),
    ):
        (row,) = [line for name, line in rows.items() if name.startswith(start)]
        ours, theirs = zip(*pairs, strict=True)
        assert f"{', '.join(f'{x:.2f}' for x in theirs)} %" in row.split("|")[2]
        assert f"{', '.join(f'{x:.2f}' for x in ours)} %" in row.split("|")[3]
