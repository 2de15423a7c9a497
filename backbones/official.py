"""Reading an architecture off the tensors of an official checkpoint, and what of it finds no place here.

Shared by `methods/<name>/weights.py`; nothing here loads a file (harness/released/ does).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backbones.sizes import TRUNKS
from harness.errors import HarnessError

HEADS = {trunk.width: trunk.heads for trunk in TRUNKS.values()} | {1280: 16}  # and MAE's H


def shape_of(state: Mapping[str, Tensor], name: str, dims: int, what: str) -> tuple[int, ...]:
    """The shape of a tensor that the architecture is read off; HarnessError where it is absent or of other rank."""
    if name not in state:
        near = ", ".join(sorted(state)[:3]) or "nothing"
        raise HarnessError(
            f"no {name!r} among the tensors ({near} ...)",
            f"an official state dict of {what}",
            "another --format, or the file that the method's authors published; other libraries' names are not read",
        )
    shape = tuple(state[name].shape)
    if len(shape) != dims:
        raise HarnessError(f"{name!r} is {list(shape)}", f"{dims} dimensions, as in {what}")
    return shape


def layers_in(names: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks `prefix`0, `prefix`1 ... there are; HarnessError where the numbers have a gap."""
    found = {int(m[1]) for name in names if (m := re.match(rf"{re.escape(prefix)}(\d+)\.", name))}
    if found != set(range(len(found))):
        raise HarnessError(f"blocks {sorted(found)} under {prefix!r}", "blocks numbered from 0 without a gap")
    return len(found)


def heads_of(width: int, known: Mapping[int, int] = HEADS) -> int:
    """Attention heads at a width, by the papers' convention: no tensor's shape tells them."""
    if width not in known:
        listing = ", ".join(map(str, sorted(known)))
        raise HarnessError(f"a network of width {width}, whose heads no tensor tells", f"one of the widths {listing}")
    return known[width]


def square(count: int, what: str) -> int:
    """The side of a square of `count` places."""
    side = round(count**0.5)
    if side * side != count:
        raise HarnessError(f"{count} {what}", "a square number")
    return side


class Settled(NamedTuple):
    state: dict[str, Tensor]  # what found its place, named as the method names it
    missing: list[str]  # of the method, in its names
    unexpected: list[str]  # of the file, in its names


def settle(build: Callable[[], nn.Module], prefix: str, mapped: Mapping[str, tuple[str, Tensor]]) -> Settled:
    """Tensors put to the places of the network that `build` makes, which the method holds under `prefix`.

    `mapped` has the file's name and the tensor under the network's name for it. HarnessError where a tensor has
    another shape than its place.
    """
    with torch.device("meta"):
        wanted = build().state_dict()
    placed = {}
    for name in sorted(wanted.keys() & mapped.keys()):
        theirs, tensor = mapped[name]
        if wanted[name].shape != tensor.shape:
            shape = list(wanted[name].shape)
            raise HarnessError(f"{theirs!r} has the shape {list(tensor.shape)}", f"{shape}, going by the other tensors")
        placed[prefix + name] = tensor.contiguous()
    missing = sorted(prefix + name for name in wanted.keys() - mapped.keys())
    return Settled(placed, missing, sorted(mapped[name][0] for name in mapped.keys() - wanted.keys()))


def is_fixed(found: Tensor, code: Tensor) -> bool:
    """Whether a position table of the file, in its own precision, is the fixed code that the network makes."""
    off = max(1e-5, torch.finfo(found.dtype).eps)
    return found.numel() == code.numel() and torch.allclose(found.float().reshape(code.shape), code.float(), atol=off)
