"""Pictures of segmentations: images, masks and what heads made of them, side by side, in the classes' colours."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from harness.data.layouts import IGNORED
from harness.files import write_atomic

# Shapes: h and w of an image.

LEAST, MOST = 192, 384  # px of a picture's width: small ones are enlarged by whole factors, large ones shrunk
GAP, LINE = 6, 14  # px
NAMED = 40  # classes at most that have room in a legend


def palette(classes: int) -> np.ndarray:
    """A colour for each label, uint8 [256, 3]; what is ignored is black."""
    found = np.zeros((256, 3), np.uint8)
    for label in range(classes):
        # Hues a golden section apart are never near their neighbours; two lightnesses tell the rest apart.
        rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75 if label % 2 else 0.55, 0.8 if label % 3 else 1.0)
        found[label] = [round(255 * value) for value in rgb]
    found[IGNORED] = 0
    return found


def write(path: Path, titles: Sequence[str], rows: Sequence[Sequence[Tensor]], names: Sequence[str]) -> None:
    """One PNG: a row for each of `rows`, an image uint8 [3, h, w] with its mask and guesses [h, w]; a legend below.

    What the mask ignores is black in the guesses too.
    """
    colours = palette(len(names))
    cells = [[_sized(image) for image in _painted(row, colours)] for row in rows]
    width = max(cell.width for row in cells for cell in row)
    shown = list(enumerate(names)) if len(names) <= NAMED else []
    columns = max(1, len(titles) * (width + GAP) // 110)
    height = sum(max(cell.height for cell in row) + GAP for row in cells)
    canvas = Image.new(
        "RGB", (len(titles) * (width + GAP), LINE + height + LINE * -(-len(shown) // columns)), (255, 255, 255)
    )
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((column * (width + GAP), 0), title, fill=(0, 0, 0))
    top = LINE
    for row in cells:
        for column, cell in enumerate(row):
            canvas.paste(cell, (column * (width + GAP), top))
        top += max(cell.height for cell in row) + GAP
    for number, (label, name) in enumerate(shown):
        left, up = number % columns * 110, top + number // columns * LINE
        pen.rectangle((left, up + 1, left + 10, up + 11), fill=tuple(map(int, colours[label])))
        pen.text((left + 14, up), name, fill=(0, 0, 0))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def _painted(row: Sequence[Tensor], colours: np.ndarray) -> list[np.ndarray]:
    image, mask, *guesses = (np.asarray(part) for part in row)
    return [image.transpose(1, 2, 0), *(colours[np.where(mask == IGNORED, IGNORED, x)] for x in (mask, *guesses))]


def _sized(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels, np.uint8))
    if image.width > MOST:
        return image.resize((MOST, max(1, round(image.height * MOST / image.width))), Image.Resampling.NEAREST)
    factor = -(-LEAST // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
