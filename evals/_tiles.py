"""Dense features of images of any size, from networks that see squares of one size: in tiles.

The rule is the same for every method: an image is resized (bicubic, antialiased) to a whole number of squares of the
network's side, the nearest one in each direction and at least 1; each square passes by itself, and the maps are put
together again in its place. What lies beyond a tile's border is not seen from within it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.evaluation.features import CHUNK, in_half
from harness.fitted import Fitted
from harness.method import Tap, by_noise, require_taps

if TYPE_CHECKING:
    from harness.data.masks import Pair, Pairs
    from harness.evaluation import Context
    from harness.method import Method
    from harness.rng import Rng

# Shapes: C channels, h height and w width of an image, R rows and Q columns of tiles, N a tile's side, S side of a map,
# D feature width, T tiles that pass together.


class Seen(NamedTuple):
    """Of one image: its maps, and its mask."""

    maps: dict[Tap, Tensor]  # [D, R*S, Q*S] float16 on the CPU
    pair: Pair


def grid(height: int, width: int, side: int) -> tuple[int, int]:
    """Rows and columns of tiles of `side` that are nearest to an image's size."""
    return max(1, int(height / side + 0.5)), max(1, int(width / side + 0.5))


def cut(image: Tensor, side: int) -> Tensor:
    """[R*Q, C, N, N] of an image [C, h, w] in [-1, 1], row by row."""
    channels, (rows, columns) = len(image), grid(*image.shape[1:], side)
    size = (rows * side, columns * side)
    if image.shape[1:] != size:
        image = F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    return image.view(channels, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, channels, side, side)


def joined(maps: Tensor, rows: int, columns: int) -> Tensor:
    """[D, R*S, Q*S] of the maps of an image's tiles [R*Q, D, S, S]."""
    width, side = maps.shape[1:3]
    return maps.view(rows, columns, width, side, side).permute(2, 0, 3, 1, 4).reshape(width, rows * side, -1)


def tiled_maps(method: Method, images: Tensor, tap: Tap, side: int, rng: Rng) -> Tensor:
    """[B, D, R*S, Q*S] float32 of `images` [B, C, R*N, Q*N] in [-1, 1], every tile of `side` px read by itself.

    Gradients are the caller's to forbid. Raises HarnessError for maps of another form or not finite.
    """
    height, width = images.shape[2:]
    if height % side or width % side:
        raise ValueError(f"{height} x {width} px are no whole number of tiles of {side} px")
    tiles = torch.cat([cut(image, side) for image in images])
    (maps,) = method.features(tiles, [tap], rng, dense=True)
    _require_maps(method, tap, maps, len(tiles))
    maps = maps.float()
    if not torch.isfinite(maps).all():
        raise HarnessError(
            f"maps of {type(method).__name__} at tap {tap} are not finite",
            "finite features; the training may have diverged, or bf16 overflowed",
            "look at the loss in the run's log.jsonl, or evaluate in fp32",
        )
    rows, columns = height // side, width // side
    return torch.stack([joined(some, rows, columns) for some in maps.split(rows * columns)])


def network(context: Context) -> tuple[int, int]:
    """Channels and side of the images that the network itself takes; a data set's, for what has no network."""
    method = context.method.inner if isinstance(context.method, Fitted) else context.method
    data = getattr(method, "data", None) or context.data.spec
    return data.channels, data.size


def seen(context: Context, taps: Sequence[Tap], name: str, pairs: Pairs, cap: int) -> Iterator[Seen]:
    """The maps of `pairs` at each tap, averaged down to at most `cap` places along a tile's side (0: any).

    Images pass together until they make CHUNK tiles. Noise is keyed by `name` and the first of them.
    """
    require_taps(context.method, taps)
    channels, side = network(context)
    for start, some in _together(pairs, side):
        tiles = torch.cat([cut(_coloured(to_float(p.image), channels), side) for p in some]).to(context.device)
        maps = _maps(context, taps, (name, start), tiles, cap)
        first = 0
        for pair in some:
            rows, columns = grid(*pair.mask.shape, side)
            last = first + rows * columns
            yield Seen({tap: joined(maps[tap][first:last], rows, columns) for tap in taps}, pair)
            first = last


def _together(pairs: Iterable[Pair], side: int) -> Iterator[tuple[int, list[Pair]]]:
    """Lists of pairs of at least CHUNK tiles, but for the last, each with the number of its first."""
    some: list[Pair] = []
    start = tiles = 0
    for pair in pairs:
        some.append(pair)
        rows, columns = grid(*pair.mask.shape, side)
        tiles += rows * columns
        if tiles >= CHUNK:
            yield start, some
            start, some, tiles = start + len(some), [], 0
    if some:
        yield start, some


def _coloured(image: Tensor, channels: int) -> Tensor:
    """[channels, h, w] of a picture [3, h, w]: its channels' mean for a network of one."""
    return image if channels == 3 else image.mean(dim=0, keepdim=True).expand(channels, -1, -1)


def _maps(context: Context, taps: Sequence[Tap], key: tuple[str, int], tiles: Tensor, cap: int) -> dict[Tap, Tensor]:
    """[T, D, S, S] float16 on the CPU per tap, one pass per noise level over `tiles` [T, C, N, N]."""
    found = {}
    rng = context.rng.at("tiles", *key)
    for layers in by_noise(taps):
        with torch.no_grad(), context.autocast():
            maps = context.method.features(tiles, layers, rng, dense=True)
        for tap, values in zip(layers, maps, strict=True):
            found[tap] = _checked(context, tap, values, len(tiles), cap)
    return found


def _checked(context: Context, tap: Tap, maps: Tensor, n: int, cap: int) -> Tensor:
    """`maps` as float16 on the CPU. Raises HarnessError for another shape, or a value that it cannot hold."""
    _require_maps(context.method, tap, maps, n)
    maps = maps.detach().float()
    if cap and maps.shape[-1] > cap:
        maps = F.adaptive_avg_pool2d(maps, cap)
    return in_half(maps, context.method, tap)


def _require_maps(method: Method, tap: Tap, maps: Tensor, n: int) -> None:
    if maps.ndim != 4 or len(maps) != n or maps.shape[2] != maps.shape[3]:
        name = type(method).__name__
        raise HarnessError(f"{name}.features gave {list(maps.shape)} at tap {tap} for {n} tiles", f"[{n}, D, S, S]")
