"""What generation is measured with: the networks whose features are compared, and the real images compared with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evals import _extractors, _frechet
from evals._frechet import Moments, Statistics
from evals._weights import AUTO, ENVIRONMENT, INCEPTION, STAND_IN, classifier, require_weights
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.rng import Rng

if TYPE_CHECKING:
    from evals._extractors import Extractor
    from harness.evaluation import Context

# Shapes: n real images, k kept ones, D feature width, P width of sFID's features.

KEPT_BYTES = 512 * 2**20  # of real features kept: all of CIFAR-10's in Inception
CHUNK = 500


@dataclass(frozen=True)
class Real:
    """What is kept of a set of real images, seen by one network."""

    all: Statistics
    spatial: Statistics | None  # of sFID's features, Inception's only
    features: Tensor  # [k, D] float32 in random order: all of them, or KEPT_BYTES
    index: Tensor  # int64 [k], where each stands in the set


def extractors(context: Context, names: Iterable[str], inception: str | None) -> list[Extractor]:
    """The networks of those `names`. Raises HarnessError for one that cannot be had, before anything is drawn.

    "auto" is Inception with weights from the path `inception` (or ENVIRONMENT), else the data set's own stand-in;
    "inception" and "cnn64" are either of them; anything else names a classifier's file, or a file under weights/.
    """
    path = inception or os.environ.get(ENVIRONMENT)
    return [_extractor(context, name, path) for name in names]


def _extractor(context: Context, name: str, inception: str | None) -> Extractor:
    require_weights(name, inception)
    if name in (AUTO, INCEPTION) and inception:
        return _extractors.inception(Path(inception), context.device)
    if name in (AUTO, STAND_IN):
        return _extractors.stand_in(context.data, context.cache, context.device)
    return _extractors.resnet(classifier(name, context.data_dir), context.data, context.device)


def reference(context: Context, extractor: Extractor, name: str) -> Real:
    """The real part `name`: the whole of train, once per data set and network; or test, through its door."""
    if name == "test":
        images = context.open_test()
        return _seen(extractor, (images.pixels(i, CHUNK) for i in range(0, images.n, CHUNK)), torch.arange(images.n))
    data = context.data
    file = f"real-{data.spec.name}-{data.revision[:16]}-{extractor.checksum[:16]}.safetensors"
    path, order = context.cache / file, Rng(0).permutation("real images of train", len(data.train))
    if path.exists():
        return _read(path)
    found = _seen(extractor, (data.train.images[part] for part in order.split(CHUNK)), order)
    _write(path, found)
    return found


def _seen(extractor: Extractor, chunks: Iterable[Tensor], order: Tensor) -> Real:
    """Of all images, in `chunks` of the order [n]."""
    all_, spatial, kept, held = Moments(), Moments(), [], 0
    for chunk in chunks:
        seen = extractor.look(chunk)
        all_.add(seen.features)
        if seen.spatial is not None:
            spatial.add(seen.spatial)
        if held < max(_frechet.MOST, KEPT_BYTES // (4 * seen.features.shape[1])):
            kept.append(seen.features)
            held += len(seen.features)
    features = torch.cat(kept)
    return Real(all_.statistics(), spatial.statistics() if spatial.n else None, features, order[: len(features)])


def _write(path: Path, real: Real) -> None:
    from safetensors.torch import save

    tensors = {"features": real.features, "index": real.index.contiguous()}
    for name in ("all", "spatial"):
        found = getattr(real, name)
        if found is not None:
            tensors |= {
                f"{name}.mean": found.mean,
                f"{name}.covariance": found.covariance,
                f"{name}.n": torch.tensor(found.n),
            }
    write_atomic(path, save(tensors))


def _read(path: Path) -> Real:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        held = load_file(path)
        sets = {
            name: Statistics(held[f"{name}.mean"], held[f"{name}.covariance"], int(held[f"{name}.n"]))
            for name in ("all", "spatial")
            if f"{name}.mean" in held
        }
        return Real(sets["all"], sets.get("spatial"), held["features"], held["index"])
    except (SafetensorError, KeyError) as error:
        raise HarnessError(
            f"the cached reference statistics {path} cannot be read: {error}",
            "a file as the harness wrote it",
            "delete it and repeat the command",
        ) from error
