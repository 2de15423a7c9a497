"""The cache of what a latent method trains on: computed once, charged to `prepare`, kept beside the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness import checkpoint
from harness.data.pixels import to_float
from harness.distributed import ALONE, Ranks
from harness.method import Method
from harness.train import flops

if TYPE_CHECKING:
    from harness.train.pretraining import Pretraining

CHUNK = 256
VIEWS = 0.0  # the cache is stored like a snapshot, under the share at which it is made


@torch.no_grad()
def cached_latents(run: Pretraining, again: bool) -> Tensor | None:
    """[V, n, ...] float32 on the run's device: the fit part as `Method.cached` sees it, and mirrored where the
    method and the data set allow that (V = 2). None when the method trains on images.

    `again`: the run goes on from a checkpoint that was trained on this cache. Only then are the stored latents those
    of the weights at hand, and their cost on the meter already. Raises Interrupted when asked to stop.
    """
    images = run.fit.images
    views = views_of(run.method.eval(), images, run.mirror, run.device)
    if not views:
        return None
    if not again:
        run.flop += encoding_flop(run.method, images, views, run.device)
    stored = checkpoint.find_snapshot(run.folder.cache, VIEWS) if again and run.ranks.first else None
    name = run.ranks.told(stored.name if stored else None)
    if name is not None:
        return checkpoint.load_snapshot(run.folder.cache / name)["latents"].to(run.device)
    begin = time.perf_counter()
    latents = encode(run.method, images, views, run.device, run.prepared_in, run.after_chunk, run.ranks)
    if not again:
        run.worked_s += time.perf_counter() - begin
    if run.ranks.first:
        checkpoint.save_snapshot(run.folder.cache, VIEWS, {"latents": latents})
    return latents


@torch.no_grad()
def views_of(method: Method, images: Tensor, mirror: bool, device: torch.device) -> list[bool]:
    """The views to cache of uint8 `images` [n, ...], False plain and True mirrored; none when it trains on images."""
    if method.cached(to_float(images[:1].to(device))) is None:
        return []
    return [False, True] if mirror and method.augment().mirror else [False]


@torch.no_grad()
def encoding_flop(method: Method, images: Tensor, views: list[bool], device: torch.device) -> float:
    """FLOPs of `encode`."""
    probe = to_float(images[:1].to(device))
    return flops.count(lambda: method.cached(probe)) * len(views) * len(images)


@torch.no_grad()
def encode(
    method: Method,
    images: Tensor,
    views: list[bool],
    device: torch.device,
    precision: str,
    after_chunk: Callable[[], object] = lambda: None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """[V, n, ...] float32 of uint8 `images` [n, ...]; each of `ranks` encodes every so many chunks, and has them all.

    In the precision that what encodes was trained in; a method that borrows its encoder holds it to float32.
    """
    chunks = [(view, start) for view in range(len(views)) for start in range(0, len(images), CHUNK)]
    whole = None
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for first in range(0, len(chunks), ranks.world):
            view, start = chunks[min(first + ranks.rank, len(chunks) - 1)]  # one too many does the last again
            chunk = to_float(images[start : start + CHUNK].to(device))
            own = method.cached(chunk.flip(-1) if views[view] else chunk).float()
            if whole is None:
                whole = own.new_empty(len(views), len(images), *own.shape[1:])
            for (view, start), part in zip(chunks[first:], _exchanged(own, ranks), strict=False):
                place = whole[view, start : start + CHUNK]
                place.copy_(part[: len(place)])
            after_chunk()
    return whole


def _exchanged(own: Tensor, ranks: Ranks) -> list[Tensor]:
    """The chunks of all ranks, each of at least its own rows: what is exchanged has one shape."""
    if ranks.world == 1:
        return [own]
    padded = own.new_zeros(CHUNK, *own.shape[1:])
    padded[: len(own)] = own
    return ranks.gather_tensors(padded)
