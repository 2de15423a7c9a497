"""One file of annotations in COCO's format, with the images it lists (cocodataset.org, "Data format").

What is annotated is read and checked as a whole, images one at a time when they are asked for: COCO's would not fit.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.errors import HarnessError

# Shapes: n images, m boxes of an image, h and w its height and width in px, K categories.

PREFIX = "coco:"
KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


class Objects(NamedTuple):
    """What is annotated in one image."""

    boxes: Tensor  # float32 [m, 4]: left, top, right, bottom in px of the stored image
    labels: Tensor  # int64 [m], 1 to K
    crowd: Tensor  # bool [m]: a region of many, which the evaluator leaves out of account
    area: Tensor  # float32 [m], px^2; of the segment where the file says it, else of the box


@dataclass(frozen=True)
class BoxPart:
    """n images and their boxes; `index` says which images of the file they are."""

    listed: Path  # the file that describes them
    folder: Path
    files: tuple[str, ...]  # below the folder, of every image of the file
    sizes: np.ndarray  # int64 [all, 2], width and height
    starts: np.ndarray  # int64 [all + 1]: the boxes of an image stand from its start to the next
    objects_flat: Objects  # of all images, one after another
    index: np.ndarray  # int64 [n]
    dropped: int = 0  # boxes without extent that were left out, as asked

    def __len__(self) -> int:
        return len(self.index)

    def subset(self, index: np.ndarray) -> BoxPart:
        """The images at `index` (positions in this part)."""
        return replace(self, index=self.index[index])

    def size(self, i: int) -> tuple[int, int]:
        """Width and height of image `i` in px."""
        width, height = self.sizes[self.index[i]]
        return int(width), int(height)

    def objects(self, i: int) -> Objects:
        where = slice(self.starts[self.index[i]], self.starts[self.index[i] + 1])
        return Objects(*(values[where] for values in self.objects_flat))

    def image(self, i: int) -> Tensor:
        """uint8 [3, h, w], grey images repeated in three channels. Raises HarnessError for a file that is no image."""
        from PIL import Image

        path = self.folder / self.files[self.index[i]]
        try:
            with Image.open(path) as stored_image:
                pixels = np.array(stored_image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise HarnessError(f"{path} cannot be decoded: {error}", "a whole image", "replace it") from error
        width, height = self.size(i)
        if pixels.shape[:2] != (height, width):
            raise HarnessError(
                f"{path} has {pixels.shape[1]} x {pixels.shape[0]} px",
                f"{width} x {height} px, as its annotations say: boxes are in these pixels",
                "use the images that the annotations were made for",
            )
        return torch.from_numpy(pixels).permute(2, 0, 1)


def read(root: Path, path: Path, drop_empty: bool, names: dict[int, str] | None) -> tuple[BoxPart, dict[int, str]]:
    """The part that a file describes, and its categories by id, ascending; `names` are those it may have."""
    content = _content(path)
    own = {int(c["id"]): str(c["name"]) for c in content["categories"]}
    for number, said in own.items() if names is not None else ():
        if names.get(number) != said:
            raise HarnessError(
                f"{path} has the category {number} ({said}), which the train part lacks",
                "the ids and names of the train part's categories",
            )
    names = names if names is not None else dict(sorted(own.items()))
    folder = _image_folder(root, path, "train" if "train" in path.name else "val")
    images = {image["id"]: place for place, image in enumerate(content["images"])}
    if len(images) < len(content["images"]):
        raise HarnessError(f"{path} lists an image id twice", "an id of its own for every image")
    for image in content["images"]:
        if not all(isinstance(image[side], int) and image[side] > 0 for side in ("width", "height")):
            said = f"{image['width']} x {image['height']} px"
            raise HarnessError(f"{path}: the image {image['id']} is {said}", "whole positive numbers")
    part = BoxPart(
        path,
        folder,
        tuple(str(image["file_name"]) for image in content["images"]),
        np.array([(image["width"], image["height"]) for image in content["images"]], dtype=np.int64),
        *_objects(path, content["annotations"], images, content["images"], list(names), drop_empty),
    )
    missing = [file for file in part.files if not (folder / file).is_file()]
    if missing:
        raise HarnessError(
            f"{path} lists {missing[0]}, which is not in {folder} ({len(missing)} of {len(part.files)} are missing)",
            "every image that is listed",
            "copy the images again",
        )
    return part, names


def _content(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The file's images, annotations and categories, each entry with the keys that are read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise HarnessError(f"cannot read {path}: {error}", "a JSON file in COCO's format") from error
    for group, keys in KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(group), list):
            raise HarnessError(f"{path} has no list {group!r}", f"lists {', '.join(KEYS)}, as in COCO's format")
        if not content[group]:
            raise HarnessError(f"{path} has no {group}", "at least one")
        for place, entry in enumerate(content[group]):
            entry = entry if isinstance(entry, dict) else {}
            lacking = [key for key in keys if key not in entry]
            if lacking:
                name = f"entry {entry['id']}" if "id" in entry else f"entry number {place + 1}"
                raise HarnessError(f"{path}: {name} of {group} has no {lacking[0]!r}", f"the keys {', '.join(keys)}")
    return content


def _objects(
    path: Path,
    annotations: list[dict[str, Any]],
    places: dict[Any, int],
    images: list[dict[str, Any]],
    categories: list[int],
    drop_empty: bool,
) -> tuple[np.ndarray, Objects, np.ndarray, int]:
    """What `BoxPart` holds of the annotations: starts, flat objects, index, and how many were dropped."""
    labels = {category: label for label, category in enumerate(categories, 1)}
    rows: list[tuple[int, list[float], int, bool, float]] = []
    seen, dropped = set(), 0
    for entry in annotations:
        about = f"{path}: annotation {entry['id']}"
        if entry["id"] in seen:
            raise HarnessError(f"{about} stands there twice", "an id of its own for every annotation")
        seen.add(entry["id"])
        if entry["image_id"] not in places:
            raise HarnessError(f"{about} is of the image {entry['image_id']}, which is not listed", "a listed image")
        if entry["category_id"] not in labels:
            listing = ", ".join(map(str, categories[:8])) + (" ..." if len(categories) > 8 else "")
            raise HarnessError(f"{about} is of the unknown category {entry['category_id']}", f"one of {listing}")
        box = _box(about, entry["bbox"], images[places[entry["image_id"]]], drop_empty)
        if box is None:
            dropped += 1
            continue
        area = float(entry.get("area", (box[2] - box[0]) * (box[3] - box[1])))
        crowd = bool(entry.get("iscrowd", 0))
        rows.append((places[entry["image_id"]], box, labels[entry["category_id"]], crowd, area))
    if not rows:
        raise HarnessError(f"{path} has no box left", "at least one")
    rows.sort(key=lambda row: row[0])  # stable: within an image as in the file
    of_image, boxes, marks, crowds, areas = zip(*rows, strict=True)
    flat = Objects(torch.tensor(boxes), torch.tensor(marks), torch.tensor(crowds), torch.tensor(areas))
    return np.searchsorted(of_image, np.arange(len(images) + 1)), flat, np.arange(len(images)), dropped


def _box(about: str, given: Any, image: dict[str, Any], drop_empty: bool) -> list[float] | None:
    """[left, top, right, bottom] of COCO's [left, top, width, height]; None for one to be dropped."""
    numbers = isinstance(given, list) and len(given) == 4 and all(isinstance(v, int | float) for v in given)
    if not numbers or not all(map(math.isfinite, given)):
        raise HarnessError(f"{about} has the box {given}", "four numbers: left, top, width, height")
    left, top, width, height = map(float, given)
    if width <= 0 or height <= 0:
        if drop_empty:
            return None
        raise HarnessError(
            f"{about} has the box {given}, without extent",
            "a positive width and height",
            f"correct it, or leave such boxes out: {PREFIX}PATH?drop_empty=1",
        )
    if left >= image["width"] or top >= image["height"] or left + width <= 0 or top + height <= 0:
        raise HarnessError(
            f"{about} has the box {given}, outside of its image", f"a box in {image['width']} x {image['height']} px"
        )
    return [left, top, left + width, top + height]


def _image_folder(root: Path, annotations: Path, part: str) -> Path:
    stem = annotations.stem.removeprefix("instances_")
    places = dict.fromkeys([root / stem, root / "images" / stem, root / part, root / "images" / part, root / "images"])
    for place in places:
        if place.is_dir():
            return place
    raise HarnessError(
        f"{root} has no folder of images for {annotations.name}", f"one of {', '.join(map(str, places))}"
    )
