"""Drawing samples in keyed chunks, and showing the first of them as one picture."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from harness.data.pixels import to_uint8
from harness.errors import HarnessError
from harness.files import write_atomic

if TYPE_CHECKING:
    from evals._extractors import Seen
    from harness.evaluation import Context

# Shapes: n samples, C channels, H height, W width.


class Drawn(NamedTuple):
    """What is kept of n samples; the images themselves would not fit at 50,000 large ones."""

    seen: list[Seen]  # of all n, one for each network
    first: Tensor  # uint8 [at most `shown`, C, H, W]
    distinct: int  # how many of the n images differ; collapse and copies show here


def draw(
    context: Context,
    n: int,
    chunk: int,
    steps: int | None,
    shown: int,
    looks: Sequence[Callable[[Tensor], Seen]],
    labels: Tensor | None = None,
    **how: Any,
) -> Drawn:
    """`n` samples, `chunk` at a time, each chunk keyed by the index of its first sample; of `labels` [n], where given.

    Every one of `looks` is at the same samples. `how` goes to the method's `sample` as it is.
    """
    rows: list[list[Seen]] = [[] for _ in looks]
    first, different = [], set()
    for start in range(0, n, chunk):
        if labels is not None:
            how["labels"] = labels[start : start + chunk].to(context.device)
        with context.ledger.account("sample"):
            images = _chunk(context, start, min(chunk, n - start), steps, **how)
        for of_one, look in zip(rows, looks, strict=True):
            of_one.append(look(images))
        different |= {hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images}
        first.append(images[: max(0, shown - start)])
    return Drawn([_joined(of_one) for of_one in rows], torch.cat(first), len(different))


def _joined(chunks: list[Seen]) -> Seen:
    return type(chunks[0])(*(None if some[0] is None else torch.cat(some) for some in zip(*chunks, strict=True)))


def _chunk(context: Context, start: int, n: int, steps: int | None, **how: Any) -> Tensor:
    """Samples `start` to `start + n` as uint8 [n, C, H, W]. Raises HarnessError for too few, odd or broken ones."""
    with torch.no_grad(), context.autocast():
        images = context.method.sample(n, context.rng.at("sample", start), steps=steps, **how)
    spec, name = context.data.spec, type(context.method).__name__
    expected = [n, spec.channels, spec.size, spec.size]
    if list(images.shape) != expected:
        raise HarnessError(f"{name}.sample gave {list(images.shape)}", f"{expected}, values in [-1, 1]")
    if not torch.isfinite(images).all():
        raise HarnessError(
            f"samples of {name} are not finite",
            "finite images; the training may have diverged",
            "look at the loss in the run's log.jsonl, or sample in fp32",
        )
    return to_uint8(images).cpu()


def write_picture(path: Path, images: Tensor, side: int, least_px: int = 64, gap: int = 0) -> None:
    """A grid of `images` uint8 [n, C, H, W] as PNG, each enlarged by a whole factor to at least `least_px`.

    `gap` white px of the images stand around each.
    """
    from PIL import Image

    images = torch.nn.functional.pad(images, [gap] * 4, value=255)
    n, channels, height, width = images.shape
    factor = max(1, -(-least_px // (height - 2 * gap)))
    rows = -(-n // side)
    blank = torch.zeros(rows * side - n, channels, height, width, dtype=torch.uint8)
    tiles = torch.cat([images, blank]).view(rows, side, channels, height, width)
    canvas = tiles.permute(0, 3, 1, 4, 2).reshape(rows * height, side * width, channels)
    canvas = canvas.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)
    picture = Image.fromarray(canvas.squeeze(2).numpy() if channels == 1 else canvas.numpy())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
