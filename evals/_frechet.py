"""Distances between sets of images: torch-fidelity's extractors and formulas, with nothing written by its caches.

The helpers that map features to a metric are called directly (card evaluation, sections 7.4 and 7.5): samples come in
keyed chunks, and the library's own loaders would draw from the global random state. Features go in as float64,
because the mean of 50,000 float32 rows is not good to the digits we print.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from evals import _standin
from harness.errors import HarnessError
from harness.files import write_atomic

if TYPE_CHECKING:
    from harness.data.dataset import Dataset

# Shapes: n images, B images in a chunk, C channels, H height, W width, D feature width.

INCEPTION, STAND_IN = "inception-v3-compat", "harness-stand-in"
KEPT = 10_000  # reference features kept for the kernel distance; the statistics are over all


class StandInExtractor(FeatureExtractorBase):
    """The stand-in classifier as torch-fidelity wants it, made from the file of its weights."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        self.net = _standin.load(Path(feature_extractor_weights_path))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (str(_standin.WIDTH),)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return str(_standin.WIDTH)

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: Tensor) -> tuple[Tensor]:
        return (self.net.features(input),)


class Extractor(NamedTuple):
    """A network that distances are measured in."""

    net: FeatureExtractorBase
    label: str  # in the column's title
    checksum: str  # sha256 of the weights' file
    facts: dict[str, Any]  # for the record

    @property
    def is_inception(self) -> bool:
        return self.net.get_name() == INCEPTION


class Statistics(NamedTuple):
    """What is kept of a set of images."""

    mean: Tensor  # [D] float64
    covariance: Tensor  # [D, D] float64, with n - 1
    features: Tensor  # [at most KEPT, D] float64
    n: int


def inception(path: Path, device: torch.device | str) -> Extractor:
    """torch-fidelity's Inception with weights from `path`. Raises HarnessError for a file that is not those."""
    expected = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
    next_step = "set the eval's `inception` (or HARNESS_INCEPTION) to that file, or unset it for the stand-in"
    if not path.is_file():
        raise HarnessError(f"no Inception weights at {path}", expected, next_step)
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # the library itself would run any pickle
        net = _create(INCEPTION, "2048", path)
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HarnessError(f"{path} holds no Inception weights: {reason}", expected, next_step) from error
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"extractor": INCEPTION, "extractor_sha256": checksum}
    return Extractor(net.to(device), "Inception", checksum, facts)


def stand_in(data: Dataset, cache: Path, device: torch.device | str) -> Extractor:
    """The stand-in classifier of a data set, trained now if the cache has none."""
    if STAND_IN not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(STAND_IN, StandInExtractor)
    found = _standin.stand_in(data, cache)
    net = _create(STAND_IN, str(_standin.WIDTH), found.path)
    facts = {
        "extractor": found.name,
        "extractor_sha256": found.checksum,
        "extractor_train_top1": found.accuracy,
    }
    return Extractor(net.to(device), f"{found.name} on {data.spec.name}", found.checksum, facts)


def _create(name: str, layer: str, weights: Path) -> FeatureExtractorBase:
    with torch.random.fork_rng(devices=[]):  # layers draw initial weights from the global state
        return create_feature_extractor(
            name, [layer], cuda=False, feature_extractor_weights_path=str(weights), verbose=False
        )


def features(extractor: Extractor, images: Tensor) -> Tensor:
    """[B, D] float64 on the CPU, of `images` uint8 [B, C, H, W]; grey images are shown to Inception as colour."""
    device = next(extractor.net.parameters()).device
    images = images.to(device)
    if extractor.is_inception and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    with torch.no_grad():
        return extractor.net(images)[0].double().cpu()


def guess(extractor: Extractor, images: Tensor) -> Tensor:
    """The class [B], on the CPU, that the stand-in classifier takes `images` uint8 [B, C, H, W] for."""
    with torch.no_grad():
        return extractor.net.net(images.to(next(extractor.net.parameters()).device)).argmax(dim=1).cpu()


def statistics(found: Tensor) -> Statistics:
    """Of features [n, D] float64; the first KEPT rows are kept, so they should be in random order."""
    both = fid_features_to_statistics(found)
    covariance = torch.from_numpy(np.atleast_2d(both["sigma"]))
    return Statistics(torch.from_numpy(both["mu"]), covariance, found[:KEPT].clone(), len(found))


def reference(extractor: Extractor, chunks: Iterable[Tensor], path: Path | None) -> Statistics:
    """The statistics of a set of real images given in `chunks`, read from `path` where it exists."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    if path is not None and path.exists():
        try:
            held = load_file(path)
            return Statistics(held["mean"], held["covariance"], held["features"], int(held["n"]))
        except (SafetensorError, KeyError) as error:
            raise HarnessError(
                f"the cached reference statistics {path} cannot be read: {error}",
                "a file as the harness wrote it",
                "delete it and repeat the command",
            ) from error
    found = statistics(torch.cat([features(extractor, chunk) for chunk in chunks]))
    if path is not None:
        tensors = {"mean": found.mean, "covariance": found.covariance, "features": found.features}
        write_atomic(path, save(tensors | {"n": torch.tensor(found.n)}))
    return found


def frechet(a: Statistics, b: Statistics) -> float:
    """|mean difference|^2 + trace(A + B - 2 (A B)^(1/2))."""
    plain = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in (a, b)]
    return fid_statistics_to_metric(*plain, verbose=False)[KEY_METRIC_FID]


def kernel_distance(a: Tensor, b: Tensor, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Mean and spread over random subsets of the unbiased MMD of features [n, D], cubic kernel (KID's formula)."""
    size = min(size, len(a), len(b))
    found = kid_features_to_metric(
        a, b, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed % 2**32, verbose=False
    )
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]
