"""The label-trained heads against the reference's numbers, layer by layer, and what the card says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from backbones.feedback import Feedback, fed_back
from backbones.heads import FusionHead, LinearHead, MapShape, Measures, Tokenizer, attention_head
from backbones.unet import NETS, Unet
from harness.errors import HarnessError
from tests.backbones.adm_twin import LABELS, feedback, feedback_head, head, images, linear, near, noise, twin

FOLDER = Path(__file__).parents[1] / "golden"
FUSION, FEED = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("difformer", "diffeed"))
T, B = [90, 150, 300], [19, 24, 30]
BOTTLENECK = [21, 24, 27, 30, 33, 36]
PLACES = {19: MapShape(1024, 8), 24: MapShape(1024, 16), 30: MapShape(512, 64)}  # at 256 px


@pytest.fixture(scope="module")
def network() -> Unet:
    return twin()


@pytest.fixture(scope="module")
def levels(network) -> list[dict[str, torch.Tensor]]:
    """Maps of every block in B at every level in T."""
    schedule, found = linear(), []
    for t in T:
        level = torch.full((4,), t)
        seen = network.read(schedule.noised(images(), level, noise(t)), level, B)
        found.append({str(b): seen[b] for b in B})
    return found


def steps(module: torch.nn.Module, run, count: int, lr: float) -> list[float]:
    """Losses of `count` steps of plain SGD, a tenth of the rate after every seventh."""
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = F.cross_entropy(run(), LABELS)
        loss.backward()
        optimizer.step()
        rate.step()
        losses.append(loss.item())
    return losses


# -- DifFormer --------------------------------------------------------------------------------------------------------


def test_difformer_equals_the_reference(network, levels):
    module, names = head(B, 3, network)
    noised = linear().noised(images(), torch.tensor([150, 90, 150, 300]), noise(150))
    seen = network.read(noised, torch.tensor([150, 90, 150, 300]), [30])
    near(module.tokenizers[2](seen[30]), FUSION["tokens30"])
    logits = module(levels)
    near(logits, FUSION["logits"])
    loss = F.cross_entropy(logits, LABELS)
    assert loss.item() == pytest.approx(FUSION["loss"], rel=1e-9)
    loss.backward()
    for name, parameter in module.named_parameters():
        near(parameter.grad, FUSION["gradients"][names[name]])


@pytest.mark.parametrize("count", [1, 10])
def test_difformers_steps_equal_the_reference(network, levels, count):
    module, names = head(B, 3, network)
    losses = steps(module, lambda: module(levels), count, 5e-2)
    assert losses == pytest.approx(FUSION["losses_10"][:count], rel=1e-9)
    for name, parameter in module.named_parameters():
        near(parameter, FUSION[f"weights_after_{count}"][names[name]])


# -- DifFeed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("strategy", ["bottleneck", "all", "windowed"])
def test_the_second_pass_equals_the_reference(network, strategy, mode):
    module = feedback(network, fed_back(strategy, 19, 2, readout=24))
    level = torch.full((4,), 150)
    x = linear().noised(images(), level, noise(150))
    seen = network.read(x, level, module.look)
    if mode == "eval":
        module(seen)  # one batch moves the running statistics, which were the reference's too
    maps = module.train(mode == "train")(seen)
    if strategy == "bottleneck":
        for block, made in maps.items():
            near(made, FEED[f"maps_{mode}"][str(block)])
    near(network.read(x, level, [24], add=maps)[24], FEED[f"second_{strategy}_{mode}"])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_diffeed_equals_the_reference(network, mode):
    module, names = feedback_head(network, BOTTLENECK)
    module.train(mode == "train")
    logits = module(images(), None)
    near(logits, FEED[f"logits_{mode}"])
    loss = F.cross_entropy(logits, LABELS)
    assert loss.item() == pytest.approx(FEED[f"loss_{mode}"], rel=1e-9)
    loss.backward()
    for name, parameter in module.named_parameters():
        near(parameter.grad, FEED[f"gradients_{mode}"][names[name]])
    assert all(p.grad is None for p in network.parameters())


def test_diffeeds_step_equals_the_reference(network):
    """With batch statistics, as a training that never leaves train mode has; the running ones move along."""
    module, names = feedback_head(network, BOTTLENECK)
    losses = steps(module.train(), lambda: module(images(), None), 1, 1e-2)
    assert losses == pytest.approx(FEED["losses_1"], rel=1e-9)
    for name, parameter in module.named_parameters():
        near(parameter, FEED["weights_after_1"][names[name]])
    running = {n: b for n, b in module.feedback.layers.state_dict().items() if "running" in n}
    for (_, found), wanted in zip(sorted(running.items()), FEED["statistics_after_1"], strict=True):
        near(found, wanted)


def test_without_feedback_the_second_pass_is_the_first(network):
    level = torch.full((4,), 150)
    nothing = {18: torch.zeros(4, 128, 2, 2, dtype=torch.float64), 2: torch.zeros(4, 32, 64, 64, dtype=torch.float64)}
    first, second = network.read(images(), level, [24]), network.read(images(), level, [24], add=nothing)
    assert torch.equal(first[24], second[24])


def test_the_network_is_no_part_of_the_head(network):
    """Neither `parameters()` nor `train()` reaches it: its dropout stays off while the head trains."""
    module, _ = feedback_head(network, BOTTLENECK)
    module.train()
    assert not network.training and all(name.split(".")[0] in ("feedback", "head") for name in module.state_dict())


def test_which_blocks_feed_back():
    assert fed_back("bottleneck", 19, 2, 24) == BOTTLENECK
    assert fed_back("all", 19, 2, 24) == list(range(20, 38))
    assert fed_back("windowed", 19, 2, 24) == [20, 21, 22, 23, 24]
    assert fed_back("bottleneck", 13, 2, 19) == [15, 18, 21, 24]  # DDAE's 35.7M net
    assert fed_back("bottleneck", 16, 4, 22) == [20, 25, 30]  # DDPM++
    with pytest.raises(HarnessError, match="feedback strategy"):
        fed_back("multi-scale", 19, 2, 24)


# -- sizes and layers -------------------------------------------------------------------------------------------------


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "wanted"), FUSION["head_parameters"].items())
def test_parameters_are_the_papers(name, wanted):
    kind, *depth, classes = name.replace("of ", "").replace("blocks ", "").split()
    measures = Measures(depth=int(depth[0]) if depth else 2)
    with torch.device("meta"):
        if kind == "attention":
            module = attention_head(PLACES[24], int(classes), measures)
        else:
            module = FusionHead({str(b): PLACES[b] for b in B}, 3, int(classes), measures)
    assert count(module) == wanted


@pytest.mark.parametrize(("strategy", "wanted"), FEED["feedback_parameters"].items())
def test_feedback_parameters_are_the_papers(strategy, wanted):
    with torch.device("meta"):
        assert count(Feedback(Unet(NETS["adm256"], 3, 6), fed_back(strategy, 19, 2, 24))) == wanted


def test_the_linear_head_pools_to_two_by_two():
    module = LinearHead({"block": MapShape(1024, 16)}, 1000)
    assert count(module) == 4096 * 1000 + 1000
    small, maps = LinearHead({"block": MapShape(3, 4)}, 4), torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    with torch.no_grad():
        small.classify.weight.copy_(torch.eye(4, 12))
        small.classify.bias.zero_()
    # Channel after channel, row by row, also of maps that are kept in half precision.
    assert small([{"block": maps.half()}])[0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert LinearHead({"block": MapShape(3, 1)}, 4)([{"block": maps[..., :1, :1]}]).shape == (1, 4), (
        "smaller than 2 x 2"
    )


def test_the_norm_is_over_the_whole_map_and_maps_are_capped():
    tokenizer = Tokenizer(MapShape(4, 32), 8, cap=16)
    assert tokenizer.norm.weight.shape == (4, 16, 16)
    maps = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    normed = tokenizer.norm(tokenizer.pool(3 * maps + 1))
    torch.testing.assert_close(normed.flatten(1).mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.flatten(1).std(1, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    assert tokenizer(maps).shape == (2, 256, 8)
    assert Tokenizer(MapShape(4, 7), 8, cap=16)(maps[..., :7, :7]).shape[1] == 49  # never enlarged


def test_levels_meet_in_the_last_layer_only():
    """The class token of a level does not depend on the maps of another."""
    torch.manual_seed(0)
    module = FusionHead({"a": MapShape(4, 4), "b": MapShape(6, 2)}, 2, 3, Measures(16, 2, 4, 4)).eval()
    one, two, other = ({"a": torch.randn(2, 4, 4, 4), "b": torch.randn(2, 6, 2, 2)} for _ in range(3))
    first, second = module.fused([one, two]), module.fused([one, other])
    assert torch.equal(first[:, :16], second[:, :16]) and not torch.equal(first[:, 16:], second[:, 16:])
    assert not module.transformer.cls.any() and torch.equal(module.fused([one, one])[:, :16], first[:, :16])


def test_maps_in_half_precision_are_read_in_the_heads_own():
    module = attention_head(MapShape(4, 4), 3, Measures(16, 1, 4, 4))
    maps = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(module([{"map": maps}]), module([{"map": maps.float()}]))
