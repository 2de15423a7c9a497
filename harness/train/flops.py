"""What a pass costs: FLOPs by torch's counter (2 per multiply-accumulate) and the parameters it reads. Never typed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from harness.method import Batch, Method, Objective, Tap
from harness.rng import Rng

# The cost of a step may move with progress (LMD's mask schedule), so it is measured along the budget.
POINTS = 8


def any_seed(rng: Rng) -> Rng:
    """The stream of steps that are measured and not trained: the same for every seed.

    What a method does on some steps only, by a draw (the sampler's update of MAE and LMD), then costs every seed of a
    study the same; their tests assert that this stream is of a step without an update.
    """
    return replace(rng, seed=0, path=("any seed",))


def _attention(query, key, value, *_, out_shape=None, **__) -> int:
    """Two products over [B, H, N, M]: query with key, weights with value."""
    batch, heads, n, d = query
    return 2 * batch * heads * n * key[2] * (d + value[3])


def _attention_backward(gradient, query, key, value, *_, out_shape=None, **__) -> int:
    """Two products for each of the forward's; a kernel's recomputation of the weights is its own affair."""
    return 2 * _attention(query, key, value)


# torch's counter passes over the CPU's fused kernel, and counts recomputation for the GPU's: a budget in FLOPs would
# then depend on the kernel. Here all of them cost what attention written as plain products costs.
KERNELS = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}"): formula
    for kernel in KERNELS
    for suffix, formula in (("", _attention), ("_backward", _attention_backward))
}


def count(work: Callable[[], object]) -> float:
    """FLOPs of calling `work`."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        work()
    return float(counter.get_total_flops())


def train_flop_per_image(objective: Objective, batch: Batch, rng: Rng) -> float:
    """Forward and backward FLOPs of one training image, mean over the budget.

    The same for every seed. Leaves the objective as it was: gradients cleared, buffers restored.
    """
    kept = {name: buffer.clone() for name, buffer in objective.named_buffers()}

    def step(progress: float) -> None:
        objective(batch, progress, any_seed(rng)).total.backward()

    mean = _over_the_budget(step, batch)
    objective.zero_grad(set_to_none=True)
    for name, buffer in objective.named_buffers():
        buffer.copy_(kept[name])
    return mean


@torch.no_grad()
def forward_flop_per_image(objective: Objective, batch: Batch, rng: Rng) -> float:
    """FLOPs of the forward pass of one training image, mean over the budget; for a network that is thrown away."""
    return _over_the_budget(lambda progress: objective(batch, progress, any_seed(rng)), batch)


def _over_the_budget(step: Callable[[float], object], batch: Batch) -> float:
    """FLOPs of an image of `batch` in `step(progress)`, mean over the budget."""
    ends = [count(lambda: step(0.5 / POINTS)), count(lambda: step(1 - 0.5 / POINTS))]
    between = [] if ends[0] == ends[1] else [count(lambda p=(i + 0.5) / POINTS: step(p)) for i in range(1, POINTS - 1)]
    first = batch.latents if batch.images is None else batch.images
    return sum(ends + between) / len(ends + between) / len(first)


class Reads(TorchDispatchMode):
    """Notes the storage of every tensor that an operation reads, in the order in which they were first read."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, None] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self.storages.setdefault(value.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


def parameters_read(module: nn.Module, work: Callable[[], object]) -> int:
    """How many of the module's parameters `work` reads: what its features rest on, decoders and heads left out."""
    with Reads() as reads:
        work()
    used = (p for p in module.parameters() if p.untyped_storage().data_ptr() in reads.storages)
    return sum(p.numel() for p in used)


@torch.no_grad()
def feature_cost(method: Method, tap: Tap, rng: Rng, batch: int = 4) -> tuple[float, int]:
    """Forward FLOPs of one image's features at `tap`, and the parameters they rest on."""
    parameter = next(method.parameters())
    spec = method.data
    images = torch.zeros(batch, spec.channels, spec.size, spec.size, device=parameter.device)

    def work() -> object:
        return method.features(images, [tap], rng)

    return count(work) / batch, parameters_read(method, work)
