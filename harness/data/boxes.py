"""Images with boxes: a folder in COCO's format, divided as every data set is, its test part behind one door.

ROOT/annotations/instances_train*.json and instances_val*.json (or train.json and val.json, there or in ROOT), and the
images in ROOT/train* and ROOT/val*, by themselves or under ROOT/images. A tenth of train's images, drawn by a fixed
key, is what choices are made on; val is the test part. Annotations are read and checked as a whole, images one at a
time when they are asked for, since COCO's would not fit. Format: cocodataset.org, "Data format", object detection.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from harness.data import catalog, stored
from harness.data.dataset import SELECT_SHARE
from harness.errors import HarnessError, unknown
from harness.records import TestOpened
from harness.rng import Rng

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
class BoxSpec:
    name: str
    classes: int


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


@dataclass
class BoxData:
    """See the module's docstring. `revision` names the annotations, the files with their sizes, and the split."""

    spec: BoxSpec
    title: str
    revision: str
    names: tuple[str, ...]  # of the categories, in the order of their labels 1 to K
    train: BoxPart
    opened: list[TestOpened] = field(default_factory=list)
    _test: BoxPart | None = field(default=None, repr=False)

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        order = Rng(stored.SPLIT_KEY).at("select").permutation("boxes", len(self.train)).numpy()
        border = max(1, round(SELECT_SHARE * len(order)))
        return np.sort(order[border:]), np.sort(order[:border])

    @property
    def fit(self) -> BoxPart:
        return self.train.subset(self._split[0])

    @property
    def select(self) -> BoxPart:
        return self.train.subset(self._split[1])

    @property
    def test_n(self) -> int:
        assert self._test is not None
        return len(self._test)

    def open_test(self, by: str) -> BoxPart:
        """The test part. Every call is recorded in `opened` as done `by` someone."""
        assert self._test is not None
        self.opened.append(TestOpened(by=by, at=datetime.now(UTC).isoformat(timespec="seconds")))
        return self._test


def load(name: str) -> BoxData:
    """Read `coco:PATH`; PATH may stand under a data folder. `coco:PATH?drop_empty=1` leaves out boxes without extent.

    The test part stays closed. Raises HarnessError for anything that is missing or does not fit together.
    """
    root, drop_empty = _parse(name)
    files = {part: _annotation_file(root, part) for part in ("train", "val")}
    train, names = _read(root, files["train"], drop_empty, None)
    if len(train) < 2:
        raise HarnessError(f"{files['train']} lists a single image", "at least 2, to hold one out for select")
    test, _ = _read(root, files["val"], drop_empty, names)
    found = BoxData(BoxSpec(f"coco-{root.name}", len(names)), root.name, "", tuple(names.values()), train, _test=test)
    for part, images in (("fit", found.fit), ("select", found.select)):
        if not any((~images.objects(i).crowd).any() for i in range(len(images))):
            raise HarnessError(
                f"no image of the {part} part of {root} has a box to find", "boxes in both parts of train"
            )
    found.revision = _revision(files, (train, test), drop_empty)
    return found


def _parse(name: str) -> tuple[Path, bool]:
    path, _, query = name.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key != "drop_empty":
            raise unknown(f"option of {PREFIX}", key, ["drop_empty"], f"for example {PREFIX}{path}?drop_empty=1")
    if not name.startswith(PREFIX) or not path or options.get("drop_empty", "0") not in ("0", "1"):
        raise HarnessError(f"cannot read {name!r}", f"{PREFIX}PATH or {PREFIX}PATH?drop_empty=1")
    given = Path(path).expanduser()
    tried = [given, *(folder / given for folder in catalog.data_folders())]
    for root in tried:
        if root.is_dir():
            return root.resolve(), options.get("drop_empty") == "1"
    raise HarnessError(
        f"there is no folder {given}, nor one of that name in the data folders",
        "a folder with annotations/instances_train*.json and instances_val*.json",
        f"name one that is there: {PREFIX}PATH",
    )


def _annotation_file(root: Path, part: str) -> Path:
    found = sorted(root.glob(f"annotations/instances_{part}*.json"))
    found = found or [path for path in (root / "annotations" / f"{part}.json", root / f"{part}.json") if path.is_file()]
    if len(found) != 1:
        said = ", ".join(path.name for path in found[:3])
        raise HarnessError(
            f"{root} has several files of the {part} part: {said}"
            if found
            else f"{root} has no file of the {part} part",
            f"one file annotations/instances_{part}*.json, annotations/{part}.json or {part}.json",
            "keep one of them in the folder" if found else f"name a folder in COCO's format: {PREFIX}PATH",
        )
    return found[0]


def _image_folder(root: Path, annotations: Path, part: str) -> Path:
    stem = annotations.stem.removeprefix("instances_")
    places = dict.fromkeys([root / stem, root / "images" / stem, root / part, root / "images" / part, root / "images"])
    for place in places:
        if place.is_dir():
            return place
    raise HarnessError(
        f"{root} has no folder of images for {annotations.name}", f"one of {', '.join(map(str, places))}"
    )


# -- one file ---------------------------------------------------------------------------------------------------------


def _read(root: Path, path: Path, drop_empty: bool, names: dict[int, str] | None) -> tuple[BoxPart, dict[int, str]]:
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


def _revision(files: dict[str, Path], parts: tuple[BoxPart, BoxPart], drop_empty: bool) -> str:
    """16 hex digits, the same for a copy of the folder; images stand for themselves by name and length."""
    total = hashlib.sha256(f"{SELECT_SHARE} {stored.SPLIT_KEY} {drop_empty}".encode())
    for path, part in zip(files.values(), parts, strict=True):
        total.update(stored.file_digest([path]).encode())
        total.update(stored.text_digest(f"{f}\t{(part.folder / f).stat().st_size}" for f in part.files).encode())
    return total.hexdigest()[:16]
