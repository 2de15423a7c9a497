"""Mean average precision of boxes, by COCO's own evaluator (pycocotools)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import HarnessError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.coco import Objects


class Detections(NamedTuple):
    """What was found in one image."""

    boxes: Tensor  # float32 [m, 4]: left, top, right, bottom in px of the stored image
    scores: Tensor  # float32 [m]
    labels: Tensor  # int64 [m], 1 to K


class Precision(NamedTuple):
    """In %, means over the categories that have boxes; at most 100 detections of an image count."""

    map: float  # mean over overlaps of .5 to .95 in steps of .05
    map50: float  # at an overlap of .5


def average_precision(found: Sequence[Detections], truth: Sequence[Objects], classes: int) -> Precision:
    """Of the detections in each image against what is annotated there. Raises HarnessError without a box to find."""
    from pycocotools.cocoeval import COCOeval

    if not any((~objects.crowd).any() for objects in truth):
        raise HarnessError(f"no box to find in {len(truth)} images", "one that is no crowd, to measure precision on")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints whatever it does
        evaluator = COCOeval(
            _coco(_true(truth), len(truth), classes), _coco(_found(found), len(found), classes), "bbox"
        )
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return Precision(*(100.0 * float(value) for value in evaluator.stats[:2]))


def _coco(annotations: list[dict[str, Any]], images: int, classes: int) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": label} for label in range(1, classes + 1)],
        # Numbered from 1: the evaluator takes a match with the annotation 0 for none.
        "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco


def _true(truth: Sequence[Objects]) -> list[dict[str, Any]]:
    entries = []
    for image, objects in enumerate(truth):
        for box, label, crowd, area in zip(*(values.tolist() for values in objects), strict=True):
            entries.append(_entry(image, box, label) | {"iscrowd": int(crowd), "area": area})
    return entries


def _found(found: Sequence[Detections]) -> list[dict[str, Any]]:
    entries = []
    for image, detections in enumerate(found):
        for box, score, label in zip(*(values.tolist() for values in detections), strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1])
            entries.append(_entry(image, box, label) | {"iscrowd": 0, "area": area, "score": score})
    return entries


def _entry(image: int, box: Sequence[float], label: int) -> dict[str, Any]:
    left, top, right, bottom = box
    return {"image_id": image, "category_id": label, "bbox": [left, top, right - left, bottom - top]}
