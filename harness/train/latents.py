"""The cache of what a latent method trains on: computed once, charged to `prepare`, kept beside the run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness import checkpoint
from harness.data.pixels import to_float
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
    of the weights at hand, and their FLOPs on the meter already.
    """
    probe = to_float(run.fit.images[:1].to(run.device))
    run.method.eval()
    if run.method.cached(probe) is None:
        return None
    views = [False, True] if run.mirror and run.method.augment().mirror else [False]
    stored = checkpoint.find_snapshot(run.folder.cache, VIEWS)
    if not again:
        run.flop += flops.count(lambda: run.method.cached(probe)) * len(views) * len(run.fit.images)
    if again and stored is not None:
        return checkpoint.load_snapshot(stored)["latents"].to(run.device)
    begin = time.perf_counter()
    latents = _encoded(run, views)
    run.worked_s += time.perf_counter() - begin
    checkpoint.save_snapshot(run.folder.cache, VIEWS, {"latents": latents})
    return latents


def _encoded(run: Pretraining, views: list[bool]) -> Tensor:
    """In the precision that what encodes was trained in; a method that borrows its encoder holds it to float32."""
    whole = None
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.prepared_in == "bf16"):
        for view, mirrored in enumerate(views):
            for start in range(0, len(run.fit.images), CHUNK):
                images = to_float(run.fit.images[start : start + CHUNK].to(run.device))
                part = run.method.cached(images.flip(-1) if mirrored else images).float()
                if whole is None:
                    whole = part.new_empty(len(views), len(run.fit.images), *part.shape[1:])
                whole[view, start : start + len(part)] = part
    return whole
