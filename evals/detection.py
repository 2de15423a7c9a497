"""Object detection: one of torchvision's detectors on a pyramid made of the network's map, mean average precision.

Images are scaled into a square of whole tiles of the network's side; each tile is read by itself and the maps are put
together, so that every method sees images of the size it was trained on (evals/_tiles.py, _squares.py). By default the
network is frozen and all that is trained is the pyramid and the detector (_detectors.py). The tap is the linear
probe's, or the best scored beside it that has maps; the rate is chosen on held-out train by mAP, from equally many for
every method; the detector then learns once for each seed. Nothing is augmented: maps are read once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.protocol import COMMON

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.boxes import BoxData
    from harness.evaluation import Context, Outcome
    from harness.method import DataSpec, Method
    from harness.records import Number

TITLE = "object detection"
PROTOCOL = 1
NEEDS = "features"
FULL_ONLY = True
READS = ("taps", "features", "maps")


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ()  # coco:PATH, a folder in COCO's format (harness/data/boxes.py)
    detector: Literal["fcos", "retinanet", "faster-rcnn"] = "fcos"
    train_backbone: bool = False  # the network learns with the detector
    taps: int = COMMON.candidates  # candidates, the method's own first, as for the linear probe
    square_px: int = 512  # at least: rounded up to whole tiles and to whole places at the coarsest stride
    strides: tuple[int, ...] = (8, 16, 32, 64)  # of the pyramid, in px of the square
    width: int = 256  # of the pyramid
    convs: int = 4  # in each tower of FCOS's head
    images: int = 20_000  # of fit, at most, that a detector learns from
    select_images: int = 2_000  # of select, at most, that the rate is chosen on
    epochs: int = 12
    batch: int = 16
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)  # of AdamW, to choose from
    backbone_rate: float = 0.1  # of the rate, for the network where it is trained
    seeds: int = COMMON.seeds  # of the detector's start, order of images and draws, and of the noise at a noisy tap
    memory_gb: float = 16.0  # that maps may take; what does not fit is read again, with the same result

    def __post_init__(self) -> None:
        counts = (self.taps, self.square_px, self.convs, self.images, self.select_images, self.epochs, self.batch)
        if min(*counts, self.seeds) < 1 or self.memory_gb < 0:
            raise ValueError("counts must be at least 1, memory_gb at least 0")
        if self.width < 32 or self.width % 32:
            raise ValueError(f"width {self.width} must be a multiple of 32, in which the heads' norms divide it")
        powers = [stride for stride in self.strides if stride >= 1 and stride & (stride - 1) == 0]
        if not self.strides or list(self.strides) != sorted(set(powers)):
            raise ValueError("strides must be different powers of two, ascending")
        if not self.rates or min(*self.rates, self.backbone_rate) <= 0 or len(set(self.rates)) < len(self.rates):
            raise ValueError("rates must be different and positive, backbone_rate too")


def recipe(size: str) -> Config:
    """For nano, a laptop: small squares, few images."""
    if size == "nano":
        return Config(
            square_px=128,
            strides=(8, 16, 32),
            width=32,
            convs=2,
            images=256,
            select_images=64,
            epochs=8,
            batch=8,
            rates=(1e-3, 3e-3, 1e-2),
            memory_gb=1.0,
        )
    return Config()


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None on snapshots, for which it is too dear, and for a method without maps."""
    from evals._detecting import Work
    from evals.attentive import mapped_tap
    from harness.evaluation import Outcome

    if context.cheap or not context.method.maps():
        return None
    data = _load(config, context.data_dir)
    network, spec = _network(context)
    choice = context.choose_tap(config.taps)
    tap = mapped_tap(choice, context.method.maps())
    works = [Work(context, config, network, spec.size, tap, named) for named in data]
    for work in works:
        work.choose()
    chosen: dict[str, Any] = {"tap": str(tap), "probe_tap": str(choice.tap), "tap_scores": choice.scores}
    numbers: dict[str, Number] = {}
    for work in works:
        numbers |= work.test()
        chosen[work.data.spec.name] = work.facts
    return Outcome(
        numbers,
        chosen,
        choice.trials + len(works) * len(config.rates),
        pictures=[work.picture for work in works],
        notes=[note for work in works for note in work.notes],
    )


def require(config: Config, data_dir: Path | None) -> None:
    """Raise HarnessError where no data set is named, or one that is named is not here."""
    from harness.data import boxes
    from harness.errors import HarnessError

    if not config.data:
        raise HarnessError(
            "the eval 'detection' has no data set", "images with boxes, in COCO's format", "detection.data=coco:PATH"
        )
    for name in config.data:
        boxes.find(name, data_dir)


def revisions(config: Config, data_dir: Path | None) -> dict[str, str]:
    """Of each data set, by name."""
    return {data.spec.name: data.revision for data in _load(config, data_dir)}


def _load(config: Config, data_dir: Path | None) -> list[BoxData]:
    from harness.data import boxes
    from harness.errors import HarnessError

    require(config, data_dir)
    data = [boxes.load(name, data_dir) for name in config.data]
    names = [named.spec.name for named in data]
    if len(set(names)) < len(names):
        raise HarnessError(f"detection.data names {', '.join(names)}", "data sets of different names")
    return data


def _network(context: Context) -> tuple[Method, DataSpec]:
    """The network itself, and its images: one that resizes a data set's images would resize the tiles."""
    from harness.errors import HarnessError
    from harness.fitted import Fitted

    method, spec = context.method, context.data.spec
    if isinstance(method, Fitted):
        method, spec = method.inner, method.inner.data
    if spec.channels != 3:
        raise HarnessError(
            f"a network for images of {spec.channels} channel(s), and photographs to detect in",
            "a network for images of colour",
            "leave detection out of --evals for this data set",
        )
    return method, spec
