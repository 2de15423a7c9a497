"""FLOPs: torch's counter against counts by hand, whatever kernel does the work, and nothing is changed by counting."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.method import Batch, Loss, Objective, Tap
from harness.rng import Rng
from harness.train import flops
from tests.toys import SPEC, build

BATCH, TOKENS, WIDTH, HEADS = 2, 17, 64, 4


def test_a_linear_layer_costs_two_per_multiply_accumulate() -> None:
    layer, x = nn.Linear(30, 50), torch.randn(7, 30)
    assert flops.count(lambda: layer(x)) == 2 * 7 * 30 * 50
    assert flops.count(lambda: layer(x).sum().backward()) == 2 * 2 * 7 * 30 * 50, "the input needs no gradient"


def test_a_convolution_is_counted() -> None:
    layer, x = nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 10, 10)
    assert flops.count(lambda: layer(x)) == 2 * 2 * 100 * 8 * 3 * 9


@pytest.fixture(scope="module")
def block() -> nn.Module:
    from timm.models.vision_transformer import Block

    return Block(WIDTH, HEADS)


LINEAR = 2 * BATCH * TOKENS * 12 * WIDTH**2  # qkv 3, projection 1, MLP 8
ATTENTION = 2 * 2 * BATCH * TOKENS**2 * WIDTH


@pytest.mark.parametrize("fused", [True, False])
def test_a_transformer_block_costs_its_products_with_and_without_fused_attention(block: nn.Module, fused: bool) -> None:
    block.attn.fused_attn = fused
    x = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    assert flops.count(lambda: block(x)) == LINEAR + ATTENTION
    assert flops.count(lambda: block(x).sum().backward()) == 3 * (LINEAR + ATTENTION)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_costs_the_same_in_every_kernel(backend: SDPBackend, grad: bool) -> None:
    q, k, v = (torch.randn(3, 2, n, 16, requires_grad=grad) for n in (5, 9, 9))

    def work() -> None:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v)
            if grad:
                out.sum().backward()

    assert flops.count(work) == (3 if grad else 1) * 2 * 3 * 2 * 5 * 9 * (16 + 16)


class Curriculum(Objective):
    """Runs its layer once more for every quarter of the budget, as a mask schedule changes a step's price."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.layer, self.fixed = nn.Linear(10, 10, bias=False), fixed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        self.calls += 1
        assert 0 <= progress < 1
        x = batch.images
        for _ in range(1 if self.fixed else 1 + int(4 * progress)):
            x = self.layer(x)
        return Loss(x.square().mean(), {})


@pytest.mark.parametrize("latents", [False, True])
def test_a_steps_price_is_its_mean_over_the_budget(latents: bool) -> None:
    x = torch.randn(6, 10)
    fixed, moving = Curriculum(fixed=True), Curriculum()
    once = 2 * 100
    assert flops.train_flop_per_image(fixed, Batch(x), Rng(0)) == 2 * once
    # k layers: k forward, k weight gradients, k - 1 input gradients; k = 1..4 for a quarter each
    assert flops.train_flop_per_image(moving, Batch(x), Rng(0)) == sum(3 * k - 1 for k in (1, 2, 3, 4)) / 4 * once
    if latents:
        part = build()
        part.first = nn.Linear(10, 12)
        part.last = nn.Linear(12, 10)
        assert flops.train_flop_per_image(part, Batch(None, x), Rng(0)) == 2 * (2 * 120 + 3 * 120)


def test_counting_leaves_the_objective_as_it_was() -> None:
    toy = build()
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    images = torch.randn(4, 1, 4, 4)
    global_state = torch.get_rng_state()
    flops.train_flop_per_image(toy, Batch(images), Rng(0))
    assert len(toy.progresses) >= 2, "it was run"
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy.state_dict().items())
    assert all(p.grad is None for p in toy.parameters())
    assert torch.equal(torch.get_rng_state(), global_state)


def test_features_cost_what_they_read() -> None:
    toy = build()
    flop, parameters = flops.feature_cost(toy, Tap("hidden"), Rng(0))
    assert flop == 2 * 16 * toy.config.width
    assert parameters == sum(p.numel() for p in toy.first.parameters()), "the last layer is not read"
    assert SPEC.size**2 == 16
