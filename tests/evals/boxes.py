"""A small data set with boxes, in COCO's format: red squares, green discs and blue bars on noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = {3: "square", 7: "disc", 8: "bar"}  # ids with holes, as COCO's own


def make(root: Path, train: int = 40, val: int = 20, side: int = 64, seed: int = 0) -> Path:
    """ROOT/annotations and ROOT/{train,val}2017; every fourth image is lower than wide, every fifth is grey."""
    random = np.random.default_rng(seed)
    for part, n in (("train2017", train), ("val2017", val)):
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for i in range(n):
            height = side * 3 // 4 if i % 4 == 3 else side
            picture, objects = _picture(random, side, height, grey=i % 5 == 4)
            file = f"{part}-{i:04}.png"
            Image.fromarray(picture).save(root / part / file)
            images.append({"id": 100 + i, "file_name": file, "width": side, "height": height})
            for category, box in objects:
                entry = {"id": len(annotations), "image_id": 100 + i, "category_id": category, "bbox": box}
                annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": number, "name": name} for number, name in NAMES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    return root


def edit(root: Path, part: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the annotations of a part ("train" or "val") in place."""
    path = root / f"annotations/instances_{part}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _picture(
    random: np.random.Generator, width: int, height: int, grey: bool
) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """uint8 [h, w, 3], or [h, w] with a bright square only, and one or two objects that do not overlap."""
    picture = random.normal(90, 12, (height, width, 3))
    objects = []
    half = width // 2
    for place in range(1 if grey else int(random.integers(1, 3))):  # one in the left half, one in the right
        side = int(random.integers(half // 2, half - 4))
        left = place * half + int(random.integers(0, half - side))
        top = int(random.integers(0, height - side))
        kind = 3 if grey else int(random.choice(list(NAMES)))
        rows, columns = side // 2 if kind == 8 else side, side
        box = picture[top : top + rows, left : left + columns]
        y, x = np.mgrid[:rows, :columns]
        inside = (
            (y - side / 2 + 0.5) ** 2 + (x - side / 2 + 0.5) ** 2 < side**2 / 4 if kind == 7 else np.full_like(x, 1)
        )
        box[inside.astype(bool)] = {3: (230, 60, 60), 7: (60, 230, 60), 8: (60, 60, 230)}[kind]
        objects.append((kind, [left, top, columns, rows]))
    pixels = picture.clip(0, 255).astype(np.uint8)
    return (pixels[..., 0] if grey else pixels), objects
