"""One data set of the eval `detection`: train with each rate, choose, train once for each seed, test, draw.

Shapes: B images, D map width, P side of the square in px, G side of its map.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

from evals import _detectors
from evals._average_precision import Detections, Precision, average_precision
from evals._depths import trainable_copy
from evals._detectors import Detector
from evals._samples import write_picture
from evals._squares import Kept, Squares, Within, from_square, into_square, moments
from evals._tiles import tiled_maps
from harness.data.pixels import to_uint8
from harness.errors import HarnessError
from harness.evaluation import measured
from harness.method import Method, Tap
from harness.records import Number
from harness.rng import Rng

if TYPE_CHECKING:
    from evals.detection import Config
    from harness.data.boxes import BoxData
    from harness.data.coco import BoxPart
    from harness.evaluation import Context

SHOWN, SHOWN_BOXES, SHOWN_LEAST = 6, 5, 0.3  # test images in the picture; boxes found in each, and their least score
NAMES = {"fcos": "FCOS", "retinanet": "RetinaNet", "faster-rcnn": "Faster R-CNN"}


def square_side(config: Config, tile_px: int) -> int:
    """The least side, in px, from `square_px` up, of whole tiles and of whole places at the coarsest stride."""
    step = math.lcm(tile_px, config.strides[-1])
    return -(-config.square_px // step) * step


class Trained(NamedTuple):
    detector: Detector
    network: Method  # whose maps it reads
    finite: bool  # whether the loss stayed so; where not, training ended there
    fit_s: float


class Work:
    """One data set: `choose` the rate, then `test` what was trained."""

    def __init__(
        self, context: Context, config: Config, network: Method, tile_px: int, tap: Tap, data: BoxData
    ) -> None:
        self.context, self.config, self.network, self.tap, self.data = context, config, network, tap, data
        self.tile_px, self.square_px = tile_px, square_side(config, tile_px)
        self.within = Within(Kept(config.memory_gb * 1e9), context.autocast)
        self.notes = [
            f"{data.title}: {part.dropped} boxes without extent were left out of a part"
            for part in (data.train, data._test)
            if part.dropped
        ]
        self.picture = f"detection-{data.spec.name}.png"
        self.facts: dict[str, Any] = {}

    # -- choosing -----------------------------------------------------------------------------------------------

    def choose(self) -> None:
        """Train with each rate, from the same start in the same order; among equal scores the lower rate wins."""
        scores: dict[float, float] = {}
        with self.context.choosing():
            trained = {}
            for rate in sorted(self.config.rates):
                trained[rate] = self._train(self.context, rate)
                scores[rate] = self._score(trained[rate]) if trained[rate].finite else -1.0
        self.rate = max(scores, key=lambda rate: (scores[rate], -rate))
        self.first = trained[self.rate]
        if not self.first.finite:
            raise HarnessError(
                f"no detector could be trained on {self.data.title}: the loss is not finite at any rate",
                "a finite loss at one rate at least",
                "lower rates, the same for every method: detection.rates=1e-5,3e-5,1e-4",
            )
        self.notes += [
            f"{self.data.title}: rate {rate:g} diverged" for rate, found in trained.items() if not found.finite
        ]
        # What is trained with labels is evaluation; choosing is what was tried beside it (card, section 8).
        self.context.ledger.add("select", -self.first.fit_s)
        self.context.ledger.add("evaluate", self.first.fit_s)
        self.facts = {
            "rate": self.rate,
            "rate_scores": {f"{rate:g}": round(score, 3) for rate, score in scores.items()},  # mAP %; -1: diverged
            "square_px": self.square_px,
            "tile_px": self.tile_px,
            "images": len(self._squares(self.context, "fit")),
            "parameters": sum(p.numel() for p in self.first.detector.parameters()),
        }

    def _score(self, trained: Trained) -> float:
        squares = self._squares(self.context, "select", network=trained.network)
        return self._precision(squares, self._found(trained, squares)).map

    # -- the test part ------------------------------------------------------------------------------------------

    def test(self) -> dict[str, Number]:
        seeds = [(self.context, self.first)]
        for number in range(1, self.config.seeds):
            where = self.context.repeat(number)
            seeds.append((where, self._train(where, self.rate)))
        part = self.context.borrow(self.data).open_test()
        values = []
        for where, trained in seeds:
            squares = self._squares(where, "test", part, trained.network)
            found = self._found(trained, squares)
            values.append(self._precision(squares, found))
            if where is self.context:
                _draw(self.context.pictures / self.picture, squares, found, self.data.names)
        return self._numbers(values, len(part))

    def _numbers(self, values: Sequence[Precision], n: int) -> dict[str, Number]:
        network = "trained with it" if self.config.train_backbone else "frozen"
        note = (
            f"{NAMES[self.config.detector]} on a pyramid of the map at {self.tap}, the network {network}; "
            f"{self.facts['images']} images of train for {self.config.epochs} epochs"
        )
        about = {"table": "dense", "better": "higher", "n": n, "note": note}
        name, title = self.data.spec.name, self.data.title
        return {
            f"{name}_map": measured([v.map for v in values], title=f"detection mAP % on {title}", **about),
            f"{name}_map50": measured([v.map50 for v in values], title=f"detection mAP50 % on {title}", **about),
        }

    # -- both ---------------------------------------------------------------------------------------------------

    def _squares(
        self, where: Context, name: str, part: BoxPart | None = None, network: Method | None = None
    ) -> Squares:
        """A part of the data; of fit and select the first images in a fixed order, the same for every method."""
        if part is None:
            part = getattr(self.data, name)
            limit = {"fit": self.config.images, "select": self.config.select_images}[name]
            part = part.subset(Rng(0).at("evaluation", name).permutation("order", len(part)).numpy()[:limit])
        rng = where.rng.at("detection", self.data.spec.name, name)
        within = self.within if network in (None, self.network) else self.within.forgetful()
        return Squares(network or self.network, self.tap, part, self.tile_px, self.square_px, rng, within)

    def _train(self, where: Context, rate: float) -> Trained:
        begin, config = time.perf_counter(), self.config
        fit = self._squares(where, "fit")
        rng = where.rng.at("detection", self.data.spec.name, "training")
        shape = _detectors.Shape(
            config.detector, self.data.spec.classes, self.square_px, config.strides, config.width, config.convs
        )
        mean, scale, grid = moments(fit)
        with rng.to("cpu").lent("init"):
            detector = _detectors.Detector(shape, len(mean), grid, mean, scale).to(self.context.device)
        network, groups = self.network, [{"params": list(detector.parameters()), "lr": rate}]
        learns = config.train_backbone and any(True for _ in network.parameters())  # raw pixels have none
        if learns:
            network = trainable_copy(self.network)
            weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
            groups.append({"params": weights, "lr": rate * config.backbone_rate})

        def loss(index: Tensor, step: int) -> Tensor:
            at = rng.at("step", step)
            maps = self._live(network, fit, index, at) if learns else fit.maps(index)
            with at.lent("draws"):
                return detector.losses(maps, fit.targets(index))

        def order(epoch: int) -> Tensor:
            return rng.to("cpu").at("epoch", epoch).permutation("order", len(fit))

        finite = _detectors.train(groups, loss, len(fit), config.epochs, config.batch, order)
        if learns:
            network.requires_grad_(False)
        return Trained(detector, network, finite, time.perf_counter() - begin)

    def _live(self, network: Method, fit: Squares, index: Tensor, rng: Rng) -> Tensor:
        """[B, D, G, G] with gradient. Raises HarnessError where the network gives none."""
        with self.context.autocast():
            maps = tiled_maps(network, fit.images(index), self.tap, self.tile_px, rng)
        if not maps.requires_grad:
            raise HarnessError(
                f"no gradient comes through {type(network).__name__}.features at tap {self.tap}",
                "features that can be differentiated, for detection.train_backbone=true",
                "detection.train_backbone=false",
            )
        return maps

    def _found(self, trained: Trained, squares: Squares) -> list[Detections]:
        """What the detector finds in each image, in px of the stored image."""
        found: list[Detections] = []
        for index in torch.arange(len(squares)).split(self.config.batch):
            for i, raw in zip(index.tolist(), trained.detector.detections(squares.maps(index)), strict=True):
                found.append(from_square(raw, squares.part.size(i), self.square_px))
        return found

    def _precision(self, squares: Squares, found: Sequence[Detections]) -> Precision:
        truth = [squares.part.objects(i) for i in range(len(squares))]
        return average_precision(found, truth, self.data.spec.classes)


def _draw(path: Path, squares: Squares, found: Sequence[Detections], names: Sequence[str]) -> None:
    """The first test images with their true boxes in green and the best found ones in red, as one PNG."""
    count = min(SHOWN, len(squares))
    factor = max(1, -(-256 // squares.square_px))
    drawn = []
    for i in range(count):
        size, objects = squares.part.size(i), squares.part.objects(i)
        image = to_uint8(squares.images(torch.tensor([i]))[0]).cpu()
        image = image.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        best = [k for k in found[i].scores.argsort(descending=True).tolist() if found[i].scores[k] > SHOWN_LEAST]
        best = best[:SHOWN_BOXES]
        boxes = torch.cat([objects.boxes, found[i].boxes[best]])
        if len(boxes):
            labels = [names[int(label) - 1] for label in objects.labels]
            # A line lower: a found box begins where the true one does.
            labels += [f"\n{names[int(found[i].labels[k]) - 1]} {found[i].scores[k]:.2f}" for k in best]
            colours = ["lime"] * len(objects.labels) + ["red"] * len(best)
            boxes = into_square(boxes, size, squares.square_px) * factor
            image = draw_bounding_boxes(image, boxes, labels, colours, width=2)
        drawn.append(image)
    write_picture(path, make_grid(torch.stack(drawn), nrow=3, padding=4, pad_value=255)[None], 1)
