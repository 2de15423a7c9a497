"""Fine-tuning: what it finds and may see, how it is trained, and which parameters count as how deep."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from evals import _depths, _droppath, _mixing, _recipe, _tune, finetune, linear
from evals._references import RawPixels
from harness.data.dataset import Part
from harness.errors import HarnessError
from harness.evaluation import Subject, evaluate, verbs
from harness.lacking import applies
from harness.method import DataSpec, Tap
from harness.plugins import load_method
from harness.rng import Rng
from harness.train import flops
from tests.evals.kit import CLASSES, context, toy_data
from tests.evals.trainable import QUICK, WIDTH, Noisy, Residual, Small

WHO = Subject(reference="toy")
QUICKLY = finetune.Config(QUICK, images=240, seeds=2)
SPEC = DataSpec("colour 16 px", channels=3, size=16, classes=10)


def record(folder, method=None, data=None, config=QUICKLY):
    return evaluate("finetune", context(folder, method or Small(), data or toy_data(noise=50.0)), config, subject=WHO)


def state(method: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def nano(name: str):
    method_class = load_method(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method_class.create(method_class.recipe("nano", SPEC), SPEC).requires_grad_(False).eval()


# -- what is found ----------------------------------------------------------------------------------------------------


def test_it_beats_the_probe_where_features_have_to_change(tmp_path):
    probe = evaluate("linear", context(tmp_path / "a", Small(), toy_data(noise=50.0)), linear.Config(), subject=WHO)
    probe = probe.numbers["linear_top1"]
    number = record(tmp_path / "b").numbers["finetune_top1"]
    assert min(number.values) > probe.value + 30 and number.value > 90
    assert len(number.values) == 2 and number.half is not None and number.n == 120 and number.table == "finetune"
    assert "240 images of train for 2400img" in number.note


def test_the_record_says_what_was_trained_and_chosen(tmp_path):
    found = record(tmp_path)
    about = found.chosen
    assert found.trials == 1 + 2 and about["tap"] == "out"
    assert list(about["rate_scores"]) == ["0.001", "0.1"] and about["base_rate"] == 0.1
    network = (64 * WIDTH + WIDTH) + WIDTH + 2 * (WIDTH * WIDTH + WIDTH) + 2 * WIDTH
    assert about["parameters"] == network + 2 * WIDTH + (WIDTH + 1) * CLASSES
    assert (about["images"], about["images_seen"], about["images_trials"]) == (240, 2400, 2 * 600)
    # A product's gradient is taken to its weights and to what it was given; the images want none.
    assert about["flop_img"] == 4 * 64 * WIDTH + 6 * 2 * WIDTH * WIDTH + 6 * WIDTH * CLASSES
    assert (about["depths"], about["residual_blocks"], about["layer_decay"]) == (3, 2, 0.75)


def test_snapshots_and_features_without_parameters_have_no_record(tmp_path):
    assert evaluate("finetune", context(tmp_path / "a", Small(), cheap=True), QUICKLY, subject=WHO) is None
    assert record(tmp_path / "b", RawPixels(toy_data())) is None
    assert [applies("finetune", verbs(Small), 1.0, cheap) for cheap in (True, False)] == [False, True]


# -- what may be seen and touched -------------------------------------------------------------------------------------


def test_the_contexts_method_stays_as_it_was(tmp_path):
    method = Small()
    before = state(method)
    record(tmp_path, method)
    assert same(before, state(method)) and not method.training
    assert not any(p.requires_grad or p.grad is not None for p in method.parameters())
    assert not any(module._forward_hooks for module in method.modules())


def test_poisoned_test_labels_change_no_choice_and_no_weight(tmp_path, monkeypatch):
    data, poisoned, nets = toy_data(noise=50.0), toy_data(noise=50.0), []
    poisoned.test = Part(data.test.images, (data.test.labels + 1) % CLASSES, data.test.index)
    train = _tune.train

    def kept(*args, **words):
        net, seen = train(*args, **words)
        nets.append(state(net))
        return net, seen

    monkeypatch.setattr(_tune, "train", kept)
    one, two = record(tmp_path / "a", Small(), data), record(tmp_path / "b", Small(), poisoned)
    assert one.chosen == two.chosen and len(nets) == 8
    assert all(same(*pair) for pair in zip(nets[:4], nets[4:], strict=True)) and not same(nets[2], nets[3])
    assert one.numbers["finetune_top1"].value > two.numbers["finetune_top1"].value + 20


def test_the_rate_is_chosen_before_the_test_part_is_opened_and_by_select_alone(tmp_path, monkeypatch):
    data, order = toy_data(), []
    train, open_test = _tune.train, data.open_test
    monkeypatch.setattr(_tune, "train", lambda task, part, *a: order.append(len(part)) or train(task, part, *a))
    monkeypatch.setattr(data, "open_test", lambda by: order.append("test") or open_test(by))
    record(tmp_path, Small(), data, dataclasses.replace(QUICKLY, images=0))
    assert order == [300, 300, 390, "test", 390], "trials on fit, then on all of train"


def test_equal_input_gives_equal_bits_and_the_global_state_is_left_alone(tmp_path):
    strong = dataclasses.replace(_recipe.Recipe(), length="600img", batch=20, base_rates=(1e-2,))
    config = dataclasses.replace(QUICKLY, recipe=strong)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (record(tmp_path / name, Noisy(), config=config).model_dump(exclude={"ledger"}) for name in "ab")
    assert one == two and torch.equal(torch.get_rng_state(), before)
    assert len(set(one["numbers"]["finetune_top1"]["values"])) == 2, "seeds differ"


def test_a_noisy_tap_has_fresh_noise_in_every_step_and_fixed_noise_when_tested(tmp_path):
    where = context(tmp_path, Noisy())
    task = finetune.task_of(where, Tap("out", 7), dataclasses.replace(QUICK, length="10step"))
    net, seen = _tune.train(task, where.data.fit, 1e-2, Rng(1))
    assert seen == 200 and len(set(net.method.noises)) == len(net.method.noises) == 10
    test = where.part("select").first(100)
    first, again = (_tune.guesses(task, net, test, Rng(2)) for _ in range(2))
    assert torch.equal(first, again) and len(set(net.method.noises[10:])) == 1


# -- depths -----------------------------------------------------------------------------------------------------------


def grouped(name: str, taps: int = 0) -> tuple[dict[str, int], _depths.Way]:
    """The depth of every part of a method, named by what its parameters' names begin with."""
    method = nano(name)
    way = _depths.way_to(method, SPEC, method.taps()[taps], Rng(0))
    short = {}
    for parameter, depth in way.depths.items():
        parts = parameter.split(".")
        stop = next((i for i, part in enumerate(parts) if part.isdigit()), 2 if "unet" in parts else 1)
        short.setdefault(".".join(parts[: stop + 1]), set()).add(depth)
    assert all(len(depths) == 1 for depths in short.values())
    return {part: depths.pop() for part, depths in short.items()}, way


def test_the_depths_of_a_vit_are_maes():
    depths, way = grouped("mae", taps=1)
    blocks = {f"core.blocks.{i}": i + 1 for i in range(4)}
    assert depths == {"core.cls_token": 0, "core.patch_embed": 0, "core.norm": 5} | blocks
    assert way.layers == 5 and way.width == 96 and way.residual == list(blocks)
    block = 4 * 96 + (96 * 288 + 288) + (96 * 96 + 96) + (96 * 384 + 384) + (384 * 96 + 96)
    assert way.parameters == 96 + (3 * 2 * 2 * 96 + 96) + 4 * block + 2 * 96, "patches of 2 x 2; no decoder"


def test_a_vit_read_in_the_middle_ends_there():
    method = nano("dit")
    way = _depths.way_to(method, SPEC, Tap("block2", 40), Rng(0))
    assert way.layers == 3 and way.residual == ["network.blocks.0", "network.blocks.1"]
    assert {name.split(".")[1] for name, depth in way.depths.items() if depth == 0} >= {"embed"}


def test_the_depths_of_a_unet_follow_its_levels():
    depths, way = grouped("ddae")
    middle = [f"network.unet.mid_block.{part}" for part in ("resnets.0", "attentions.0", "resnets.1")]
    assert depths == {
        "network.unet.conv_in": 0,
        "network.unet.time_embedding": 0,
        "network.unet.down_blocks.0": 1,
        "network.unet.down_blocks.1": 2,
        "network.unet.down_blocks.2": 3,
        **{part: 4 + number for number, part in enumerate(middle)},
        "network.unet.up_blocks.0": 7,
    }
    down = [f"network.unet.down_blocks.{part}" for part in ("0.resnets.0", "1.resnets.0", "1.attentions.0")]
    assert way.layers == 8 and way.residual == [*down, *middle], "those that keep their input's shape"


def test_a_vae_is_left_out_and_stays_as_it_is():
    method = nano("lmd")
    way = _depths.way_to(method, SPEC, method.taps()[0], Rng(0))
    assert way.depths and not [name for name in way.depths if name.startswith("vae")]
    assert way.residual == [f"core.blocks.{i}" for i in range(4)]
    copy = _depths.trainable_copy(method)
    latents = copy.vae.encode(torch.zeros(2, 3, 16, 16))
    encoding = flops.count(lambda: copy.vae.encode(torch.zeros(2, 3, 16, 16)))
    own = flops.count(lambda: copy.core.features(copy.core.patches(latents), [Tap("cls")], False)[0].sum().backward())
    assert way.flop == (encoding + own) / 2 and encoding > 0.1 * own, "encoding counts"
    assert not any(p.requires_grad for p in copy.vae.parameters())
    assert all(p.requires_grad for p in copy.core.parameters())


def test_what_a_method_prepares_is_not_trained_even_where_a_gradient_reaches_it():
    class Prepared(Small):
        def preparation(self):
            return type("Preparation", (), {"objective": self.embed})()

    way = _depths.way_to(Prepared(), Small().data, Tap("out"), Rng(0))
    assert "embed.weight" not in way.depths and way.depths["token"] == 0 and way.layers == 3


def test_rows_are_lists_of_modules_and_sequences_of_composed_ones():
    net = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Linear(2, 2), nn.ReLU()),  # layers
            "stages": nn.Sequential(nn.Sequential(Residual(), Residual()), nn.Sequential(Residual())),
            "list": nn.ModuleList([nn.Linear(2, 2)]),
        }
    )
    assert {name for name in _depths.blocks(net) if name.count(".") == 1} == {"stages.0", "stages.1", "list.0"}


def test_a_method_whose_features_have_no_gradient_is_told_how_to():
    class Closed(Small):
        @torch.no_grad()
        def features(self, *args, **words):
            return super().features(*args, **words)

    with pytest.raises(HarnessError, match=r"Closed\.features gives no gradient at tap out"):
        _depths.way_to(Closed(), Small().data, Tap("out"), Rng(0))


def test_a_data_set_that_a_method_holds_is_not_copied():
    method = Small()
    method.images = torch.zeros(5, dtype=torch.uint8)
    copy = _depths.trainable_copy(method)
    assert copy.images is method.images and copy.embed.weight is not method.embed.weight


def test_the_rates_decay_with_depth_and_vectors_have_no_weight_decay():
    method = Small()
    way = _depths.way_to(method, method.data, Tap("out"), Rng(0))
    name_of = {id(p): name for name, p in method.named_parameters()}
    groups = _depths.groups(way, method.named_parameters(), 0.5, 0.05)
    rates = {name_of[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rates == {
        "token": (0.125, 0.0),  # kept as [1, 1, D]
        "embed.weight": (0.125, 0.05),
        "embed.bias": (0.125, 0.0),
        "blocks.0.inner.weight": (0.25, 0.05),
        "blocks.0.inner.bias": (0.25, 0.0),
        "blocks.1.inner.weight": (0.5, 0.05),
        "blocks.1.inner.bias": (0.5, 0.0),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
    }


# -- drop path --------------------------------------------------------------------------------------------------------


def dropped(blocks: list[nn.Module], x: torch.Tensor, rate: float, seed: int = 0) -> torch.Tensor:
    with _droppath.dropping(blocks, rate, Rng(seed)), torch.no_grad():
        for block in blocks:
            x = block(x)
    return x


def test_drop_path_is_plain_in_the_mean_and_all_or_nothing_for_an_image():
    blocks, x = [Small().blocks[0], Small().blocks[1]], Rng(0).normal("x", (1, WIDTH)).expand(20_000, -1)
    first = blocks[0](x)
    plain, out = blocks[1](first), dropped(blocks, x, 0.4)  # the first block of the row is never skipped
    kept = (out - first).abs().amax(dim=1) > 1e-6
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.02)
    torch.testing.assert_close(out[kept], (first + (plain - first) / 0.6)[kept])
    torch.testing.assert_close(out.mean(dim=0), plain[0], atol=0.02, rtol=0)


def test_drop_path_at_rate_0_is_the_network_itself_and_leaves_no_hook():
    blocks, x = list(Small().blocks), Rng(0).normal("x", (8, WIDTH))
    assert torch.equal(dropped(blocks, x, 0.0), blocks[1](blocks[0](x)))
    dropped(blocks, x, 0.9)
    assert torch.equal(dropped(blocks, x, 0.9), dropped(blocks, x, 0.9)), "keyed"
    assert not torch.equal(dropped(blocks, x, 0.9, seed=1), dropped(blocks, x, 0.9))
    assert not any(block._forward_hooks for block in blocks)


# -- images and labels ------------------------------------------------------------------------------------------------

MAES = _recipe.Recipe()


@pytest.mark.parametrize("only", ["mixup", "cutmix"])
def test_mixing_keeps_the_sum_of_labels_and_mixes_images_in_the_same_share(only):
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 8, 8) / 5
    labels = torch.arange(6) % 3
    other = {"mixup": "cutmix", "cutmix": "mixup"}[only]
    recipe = dataclasses.replace(MAES, **{other: 0.0})
    mixed, shares = _mixing.mixed(images, labels, 3, recipe, Rng(0))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(6))
    own = shares[torch.arange(6), labels][1:]  # neighbours have different labels
    expected = own * images[1:].mean(dim=(1, 2, 3)) + (1 - own) * images[:-1].mean(dim=(1, 2, 3))
    torch.testing.assert_close(mixed[1:].mean(dim=(1, 2, 3)), expected)
    assert 0 < own[0] < 1


def test_without_mixing_labels_stay_themselves():
    images = torch.zeros(4, 1, 8, 8)
    same_images, shares = _mixing.mixed(images, torch.tensor([0, 2, 1, 1]), 3, QUICK, Rng(0))
    assert same_images is images and shares.argmax(dim=1).tolist() == [0, 2, 1, 1] and shares.max() == 1
    assert _mixing.strengthened(images, QUICK, Rng(0)) is images


def test_both_ways_of_mixing_have_their_turn():
    blended = {
        len(_mixing.mixed(torch.eye(8)[None].repeat(4, 1, 1, 1) * torch.arange(4.0).view(4, 1, 1, 1),
                          torch.arange(4), 4, MAES, Rng(0).at(step))[0].unique()) > 4
        for step in range(8)
    }  # fmt: skip
    assert blended == {True, False}


@pytest.mark.parametrize("channels", [1, 3])
def test_strengthened_images_stay_images_and_differ(channels):
    images = Rng(0).uniform("images", (32, channels, 16, 16)) * 2 - 1
    plain = dataclasses.replace(MAES, erase=0.0)
    strong = _mixing.strengthened(images, plain, Rng(1))
    assert strong.shape == images.shape and strong.min() >= -1 and strong.max() <= 1
    assert (strong != images).flatten(1).any(dim=1).float().mean() > 0.7
    assert torch.equal(strong, _mixing.strengthened(images, plain, Rng(1)))
    erased = _mixing.strengthened(images, dataclasses.replace(MAES, ops=0, erase=1.0), Rng(1))
    share = (erased != images).float().mean().item()
    assert 0.02 < share < 0.34 and (erased - images).abs().amax(dim=(1, 2, 3)).min() > 0


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_the_recipe_is_maes_from_s_on():
    b, large = _recipe.for_size("b"), _recipe.for_size("l")
    assert b == _recipe.for_size("s") == _recipe.Recipe()
    assert (b.length, b.batch, b.base_rates[1], b.betas, b.weight_decay) == ("100epoch", 1024, 5e-4, (0.9, 0.999), 0.05)
    assert (b.layer_decay, b.drop_path, b.mixup, b.cutmix, b.smoothing, b.erase) == (0.65, 0.1, 0.8, 1.0, 0.1, 0.25)
    assert (large.length, large.base_rates[1], large.layer_decay, large.drop_path) == ("50epoch", 1e-3, 0.75, 0.2)
    assert len({len(_recipe.for_size(size).base_rates) for size in ("nano", "ti", "s", "b", "l", "xl")}) == 1
    assert finetune.recipe("nano").seeds == 1 and finetune.recipe("b").seeds == 3


def test_lengths_are_counts():
    lengths = {"2epoch": 20, "300img": 30, "7step": 7, "1img": 1}
    steps = {text: dataclasses.replace(QUICK, length=text, batch=10).steps(100) for text in lengths}
    assert steps == lengths
    assert dataclasses.replace(QUICK, length="2epoch", batch=64).steps(10) == 2, "a batch holds at most all images"


@pytest.mark.parametrize(
    "odd",
    [
        {"length": "3min"},
        {"base_rates": ()},
        {"base_rates": (2.0, 1.0)},
        {"batch": 1},
        {"trial": 0.0},
        {"drop_path": 1.0},
        {"crop": (0.5, 0.2)},
        {"magnitude": 11},
        {"mixup": -1.0},
    ],
)
def test_odd_recipes_are_refused(odd):
    with pytest.raises(ValueError, match=r"is|are"):
        dataclasses.replace(MAES, **odd)


@pytest.mark.parametrize("odd", [{"taps": -1}, {"seeds": 0}, {"images": -1}])
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match="must be"):
        finetune.Config(**odd)


# -- divergence -------------------------------------------------------------------------------------------------------


class Bursting(Small):
    """Its features are no numbers once its weights have moved far."""

    def features(self, images, taps, rng, dense=False):
        (found,) = super().features(images, taps, rng, dense)
        moved = (self.embed.weight.detach() - Small().embed.weight).abs().max()
        return [found * (math.nan if moved > 1 else 1.0)]


def test_a_rate_that_diverges_is_noted_and_not_chosen(tmp_path):
    config = dataclasses.replace(QUICKLY, recipe=dataclasses.replace(QUICK, base_rates=(1e-1, 1e3)))
    found = record(tmp_path, Bursting(), config=config)
    assert found.chosen["base_rate"] == 0.1 and list(found.chosen["rate_scores"]) == ["0.1"]
    assert found.notes == ["fine-tuning diverged at the base rate 1000"] and found.trials == 1 + 2


def test_divergence_at_every_rate_or_at_last_is_an_error(tmp_path, monkeypatch):
    config = dataclasses.replace(QUICKLY, recipe=dataclasses.replace(QUICK, base_rates=(1e3, 1e4)))
    with pytest.raises(HarnessError, match="diverged at every rate of 1000, 10000"):
        record(tmp_path / "a", Bursting(), config=config)
    task = finetune.task_of(context(tmp_path / "b", Bursting()), Tap("out"), QUICK)
    with pytest.raises(HarnessError, match=r"base rate 1000 diverged(.|\n)*lower rates for every method"):
        _tune.train_at(task, toy_data().fit, 1e3, Rng(0))
