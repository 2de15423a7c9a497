"""Networks that distances are measured in: Inception, or classifiers that stand in for it, all as torch-fidelity's.

One pass over images gives everything that any of the metrics reads. torch-fidelity's default for precision and recall
is another network (VGG16); here every metric of a column reads the network that the column names.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from evals import _resnet, _standin
from evals._weights import FILE, UNSET, require_file
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.data.dataset import Dataset

# Shapes: B images in a chunk, C channels, H height, W width, D feature width, K classes, P places x channels.

INCEPTION, STAND_IN, RESNET = "inception-v3-compat", "harness-stand-in", "harness-cifar-resnet"
SPATIAL = 7  # channels of mixed_6/conv that sFID reads, at all 17 x 17 places (card evaluation, section 7)


class Seen(NamedTuple):
    """What a network made of images, float32 on the CPU."""

    features: Tensor  # [B, D]
    logits: Tensor  # [B, K]
    spatial: Tensor | None = None  # [B, P], Inception's only


class _Classifier(FeatureExtractorBase):
    """A classifier as torch-fidelity wants it, made from the file of its weights."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        self.net = self.read(Path(feature_extractor_weights_path))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (str(_standin.WIDTH), "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else str(_standin.WIDTH)

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        features = self.net.features(input)
        found = {str(_standin.WIDTH): features, "logits": self.net.logits(features)}
        return tuple(found[name] for name in self.features_list)


class StandInExtractor(_Classifier):
    def read(self, path: Path) -> nn.Module:
        return _standin.load(path)


class ResNetExtractor(_Classifier):
    def read(self, path: Path) -> nn.Module:
        return _resnet.load(path)[0]


OWN = {STAND_IN: StandInExtractor, RESNET: ResNetExtractor}


class Extractor(NamedTuple):
    """A network that distances are measured in."""

    net: FeatureExtractorBase
    label: str  # in the column's title
    checksum: str  # sha256 of the weights' file
    facts: dict[str, Any]  # for the record

    @property
    def is_inception(self) -> bool:
        return self.net.get_name() == INCEPTION

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def look(self, images: Tensor) -> Seen:
        """At `images` uint8 [B, C, H, W]; grey ones are shown to Inception as colour."""
        images = images.to(self.device)
        if not self.is_inception:
            with torch.no_grad():
                return Seen(*(found.float().cpu() for found in self.net(images)))
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        places: list[Tensor] = []
        # TensorFlow's mixed_6 is Mixed_6d here, and the 1 x 1 branch its mixed_6/conv (after the ReLU).
        hook = self.net.Mixed_6d.branch1x1.register_forward_hook(lambda *args: places.append(args[2][:, :SPATIAL]))
        try:
            with torch.no_grad():
                features, logits = self.net(images)
        finally:
            hook.remove()
        return Seen(features.float().cpu(), logits.float().cpu(), places[0].flatten(1).float().cpu())

    def guess(self, images: Tensor) -> Tensor:
        """The class [B], on the CPU, that a classifier takes `images` uint8 [B, C, H, W] for."""
        return self.look(images).logits.argmax(dim=1)


def inception(path: Path, device: torch.device | str) -> Extractor:
    """torch-fidelity's Inception with weights from `path`. Raises HarnessError for a file that is not those."""
    require_file(path)
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # the library itself would run any pickle
    except Exception as error:  # whatever a file of anything makes a loader raise
        raise HarnessError(
            f"{path} holds no Inception weights: it is no file of tensors that can be read safely", FILE, UNSET
        ) from error
    try:
        net = _create(INCEPTION, ["2048", "logits_unbiased"], path)
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise HarnessError(f"{path} holds no Inception weights, but other tensors", FILE, UNSET) from error
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"extractor": INCEPTION, "extractor_sha256": checksum}
    return Extractor(net.to(device), "Inception", checksum, facts)


def stand_in(data: Dataset, cache: Path, device: torch.device | str) -> Extractor:
    """The stand-in classifier of a data set, trained now if the cache has none."""
    found = _standin.stand_in(data, cache)
    net = _create(STAND_IN, [str(_standin.WIDTH), "logits"], found.path)
    facts = {
        "extractor": found.name,
        "extractor_sha256": found.checksum,
        "extractor_train_top1": found.accuracy,
    }
    return Extractor(net.to(device), f"{found.name} on {data.spec.name}", found.checksum, facts)


def resnet(path: Path, data: Dataset, device: torch.device | str) -> Extractor:
    """The CIFAR ResNet in a file. Raises HarnessError for another file, or for images of another form."""
    _, name = _resnet.load(path)
    _resnet.require_fits(name, data.spec)
    net = _create(RESNET, [str(_standin.WIDTH), "logits"], path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"extractor": name, "extractor_sha256": checksum}
    return Extractor(net.to(device), f"{name} (CIFAR-10)", checksum, facts)


def _create(name: str, layers: list[str], weights: Path) -> FeatureExtractorBase:
    if name in OWN and name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, OWN[name])
    with torch.random.fork_rng(devices=[]):  # layers draw initial weights from the global state
        return create_feature_extractor(
            name, layers, cuda=False, feature_extractor_weights_path=str(weights), verbose=False
        )
