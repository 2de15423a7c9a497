"""What a fine-tune trains of a method, and how deep each parameter lies on the way to a tap.

One rule for every architecture, found by running one small batch and never written in a method. A *block* is an entry
of the outermost row of modules that a parameter lies in; a row is an `nn.ModuleList`, or an `nn.Sequential` of modules
that have modules of their own (timm's). The depth of a block is its place, from 1, in the order in which blocks first
run. What lies in no block has the depth of the block that has begun when it is first read: patch embedding, positions,
class tokens and the code of the noise level 0; what is read after the last block has begun (a last norm), the new
head's. For a ViT that is MAE's grouping; for a U-Net a block is a level of the encoder or decoder, or a part of the
middle. Parameters that the gradient does not reach (decoders, a VAE) have no depth and stay frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.method import DataSpec, Method, Tap
from harness.rng import Rng
from harness.train import flops

PROBE = 2  # images of the batch


@dataclass(frozen=True)
class Way:
    """The way of an image to a tap."""

    depths: dict[str, int]  # of each trained parameter, by its name in the method
    layers: int  # the head's depth
    residual: list[str]  # modules that drop path may skip, in the order in which they run
    width: int  # of the features
    parameters: int  # that are trained
    flop: float  # forward and backward per image, without the head


def trainable_copy(method: Method) -> Method:
    """A copy whose own parameters want a gradient; what the method holds frozen or prepares first stays frozen.

    A data set that a method was given to look at is shared, not copied.
    """
    plain = [v for m in method.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    new = copy.deepcopy(method, {id(v): v for v in plain if not v.is_floating_point()})
    for parameter in new.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    new.param_groups()  # as before pre-training, methods freeze here what they do not train
    preparation = new.preparation()
    if preparation is not None:
        preparation.objective.requires_grad_(False)
    return new


def way_to(method: Method, spec: DataSpec, tap: Tap, rng: Rng) -> Way | None:
    """None where the features rest on no parameter (raw pixels).

    Raises HarnessError for a method with parameters that its features give no gradient.
    """
    model = trainable_copy(method).eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return None
    images = rng.uniform("probe", (PROBE, spec.channels, spec.size, spec.size)) * 2 - 1
    with torch.enable_grad(), flops.Reads() as reads, _running(model) as ran:
        (values,) = model.features(images, [tap], rng)
    if not values.requires_grad:
        raise HarnessError(
            f"{type(method).__name__}.features gives no gradient at tap {tap}",
            "features that are differentiable where gradients are enabled",
            "no torch.no_grad around features in the method; its callers have it",
        )
    with torch.enable_grad():
        cost = flops.count(lambda: model.features(images, [tap], rng)[0].sum().backward()) / PROBE
    reached = [name for name, p in trained.items() if p.grad is not None]
    place = {storage: number for number, storage in enumerate(reads.storages)}
    order = sorted(reached, key=lambda name: place[trained[name].untyped_storage().data_ptr()])
    depths, layers = _depths(order, blocks(model))
    residual = [name for name in ran if any(p.startswith(f"{name}.") for p in reached)]
    residual = [name for name in residual if not any(other.startswith(f"{name}.") for other in residual)]
    return Way(depths, layers, residual, values.shape[1], sum(trained[n].numel() for n in reached), cost)


def blocks(model: nn.Module) -> list[str]:
    """The names of all entries of rows."""
    rows = [(name, module) for name, module in model.named_modules() if name and _is_row(module)]
    return [f"{name}.{entry}" for name, row in rows for entry, _ in row.named_children()]


def _is_row(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):
        return len(module) > 0 and all(next(entry.children(), None) is not None for entry in module)
    return isinstance(module, nn.ModuleList)


def _depths(order: list[str], known: list[str]) -> tuple[dict[str, int], int]:
    """The depth of each parameter, named in the `order` of first reading, and the head's."""
    entries, begun, depths, loose = set(known), {}, {}, []
    for name in order:
        block = _outermost(name, entries)
        if block is None:
            loose.append(name)
            depths[name] = len(begun)
        else:
            depths[name] = begun.setdefault(block, len(begun) + 1)
    last, head = len(begun), len(begun) + 1
    depths |= {name: head for name in loose if depths[name] == last > 0}
    return depths, head


def _outermost(name: str, entries: set[str]) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix in entries), None)


class _running:
    """Inside, the entries of rows that ran and gave a tensor of the shape of their first argument, in order.

    Only those with modules of their own: a layer in a list is no residual block.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._names = model, []
        self._hooks = []

    def __enter__(self) -> list[str]:
        for name in blocks(self._model):
            module = self._model.get_submodule(name)
            if next(module.children(), None) is not None:
                self._hooks.append(module.register_forward_hook(self._noting(name)))
        return self._names

    def _noting(self, name: str):
        def note(_, given: tuple, out: object) -> None:
            if name not in self._names and keeps_shape(given, out):
                self._names.append(name)

        return note

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def keeps_shape(given: tuple, out: object) -> bool:
    first = given[0] if given else None
    return isinstance(first, Tensor) and isinstance(out, Tensor) and first.shape == out.shape


def groups(way: Way, named: Iterator[tuple[str, nn.Parameter]], decay: float, weight_decay: float) -> list[dict]:
    """Optimizer groups of a method's parameters: each depth's rate `decay` times the next one's (`lr_scale`).

    No weight decay on vectors, also where they are kept as [1, 1, D].
    """
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if name in way.depths:
            found.setdefault((way.depths[name], parameter.squeeze().ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": decay ** (way.layers - depth),
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (depth, matrix), parameters in sorted(found.items(), key=lambda item: item[0])
    ]
