"""`harness list sizes`: what every method's network is and costs at every size and resolution, and how far they match.

Parameters and FLOPs are counted on fake tensors, which have shapes and no numbers: no network of this table is held in
memory or run. The yardstick is MAE, a plain ViT.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from harness.errors import HarnessError, said
from harness.method import SIZES, DataSpec, Method
from harness.plugins import load_method, method_plugins

RESOLUTIONS = (32, 64, 224)  # px
YARDSTICK = "mae"
MATCH = 0.15  # sizes are meant to agree so far, where the architectures allow it
IMAGES = 4  # a pass; the cost of one is the mean
FOOT = (
    f"off: from {YARDSTICK} of that size; * is beyond {MATCH:.0%}.\n"
    "Transformers share the trunk of a size (width, depth, tokens). adaLN then adds parameters and hardly a FLOP, "
    "masking drops tokens in training only, and a VAE is paid for when features are read. U-Nets are matched in "
    "parameters; a convolution uses each of them at many places, so their FLOPs are higher. No choice of sizes would "
    "match both."
)


@dataclass(frozen=True)
class Measure:
    """A method at a size: parameters that pre-training trains, and forward FLOPs of one image."""

    method: str
    size: str
    parameters: int
    forward_flop: float  # of a training step, mean over the budget
    features_flop: float  # of the default features

    def off(self, yardstick: Measure) -> list[float]:
        """How far parameters, training forward and features lie from the yardstick's, as shares of it."""
        mine, theirs = ((m.parameters, m.forward_flop, m.features_flop) for m in (self, yardstick))
        return [a / b - 1 for a, b in zip(mine, theirs, strict=True)]


def measure(name: str, size: str, resolution: int) -> Measure:
    """The method `name` at a size for colour images of `resolution` px, ten classes."""
    from harness.shared import VERBS, alike

    cls = load_method(name)
    asked = (*VERBS["features"], *VERBS["labelled"], "recipe")
    if cls.pretrained_as and alike(cls, load_method(cls.pretrained_as), asked):
        return replace(measure(cls.pretrained_as, size, resolution), method=name)
    return measured(name, cls, size, resolution)


@cache
def measured(name: str, cls: type[Method], size: str, resolution: int, numbers: bool = False) -> Measure:
    """`measure` of the class itself, also where it shares a pre-training.

    With `numbers` its tensors have some, for a method that looks at them while it runs: it is held in memory and run.
    """
    import torch
    from torch._subclasses import FakeTensorMode

    spec = DataSpec(f"{resolution} px", channels=3, size=resolution, classes=10)
    if numbers:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            method = cls.create(cls.recipe(size, spec), spec)
        forward, features = _flop(method, spec)
    else:
        with torch.device("meta"):
            method = cls.create(cls.recipe(size, spec), spec)
        with FakeTensorMode(allow_non_fake_inputs=True):
            method.to_empty(device="cpu")
            forward, features = _flop(method, spec)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return Measure(name, size, trained, forward, features)


def _flop(method: Method, spec: DataSpec) -> tuple[float, float]:
    """Of one image: the forward pass of a training step, and the default features."""
    import torch

    from harness.rng import Rng
    from harness.train import flops

    forward = flops.forward_flop_per_image(method.train(), _batch(method, spec), Rng(0))
    tap = method.eval().taps()[0]
    with torch.no_grad():
        features = flops.count(lambda: method.features(_images(spec), [tap], Rng(0))) / IMAGES
    return forward, features


def _images(spec: DataSpec):
    import torch

    return torch.zeros(IMAGES, spec.channels, spec.size, spec.size)


def _batch(method: Method, spec: DataSpec):
    import torch

    from harness.method import Batch

    with torch.no_grad():
        latents = method.cached(_images(spec))
    labels = torch.zeros(IMAGES, dtype=torch.int64) if method.sees_labels else None
    return Batch(_images(spec) if latents is None else None, latents, labels)


def measures(resolution: int) -> Iterator[Measure | str]:
    """Every method at every size of it, sizes outermost; in place of one that cannot be counted, why."""
    classes, broken = {}, []
    for name in sorted(method_plugins(), key=lambda name: (name != YARDSTICK, name)):
        try:
            classes[name] = load_method(name)
        except HarnessError as error:
            broken.append(f"skipped {name}: {error}")
    yield from broken
    for size in SIZES:
        for name, cls in classes.items():
            if size not in cls.sizes:
                continue
            try:
                yield measure(name, size, resolution)
            except Exception as error:  # a plugin that reads numbers of its tensors while it runs
                yield f"{name} at {size}, {resolution} px could not be counted: {said(error)}"


def show() -> None:
    """Print a table per resolution, as each is ready."""
    from rich.console import Console

    console = Console()
    for resolution in RESOLUTIONS:
        with console.status(f"counting at {resolution} px"):
            found = list(measures(resolution))
        console.print(_table(resolution, [m for m in found if isinstance(m, Measure)]))
        for line in (line for line in found if isinstance(line, str)):
            console.print(line, style="yellow", highlight=False)
        console.print()
    console.print(FOOT, highlight=False)


def _table(resolution: int, found: list[Measure]):
    from rich.table import Table

    from harness.report.format import count, gflop

    table = Table(box=None, pad_edge=False, header_style="bold", title=f"{resolution} px", title_justify="left")
    for title in ("size", "method"):
        table.add_column(title)
    for title in ("trained parameters", "training forward, GFLOP/img", "features, GFLOP/img"):
        table.add_column(title, justify="right")
        table.add_column("off", justify="right")
    yardsticks = {m.size: m for m in found if m.method == YARDSTICK}
    for m in found:
        off = map(_percent, m.off(yardsticks[m.size])) if m.size in yardsticks else ["–"] * 3
        values = count(m.parameters), gflop(m.forward_flop), gflop(m.features_flop)
        table.add_row(m.size, m.method, *(text for pair in zip(values, off, strict=True) for text in pair))
    return table


def _percent(share: float) -> str:
    """`-3 %`, and `+41 % *` where it is no match."""
    return f"{100 * share:+.0f} %" + (" *" if abs(share) > MATCH else "  ")
