"""From stored images to uint8 pixels of one size: centre square, then one antialiased bicubic resize (Pillow).

Reference images of the evals and training images come through here alike (evaluation card, section 7.2).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from harness.data.stored import Encoded, Images
from harness.errors import HarnessError

CHUNK = 1024


def chunks(images: Images, index: np.ndarray, channels: int, size: int) -> Iterator[np.ndarray]:
    """The images at `index`, decoded, as uint8 [k, C, size, size] pieces in order.

    Raises HarnessError that names the first image which cannot be decoded.
    """
    pieces = [index[i : i + CHUNK] for i in range(0, len(index), CHUNK)]
    if isinstance(images, np.ndarray):
        for piece in pieces:
            part = images[piece]
            same = part.shape[-2:] == (size, size)
            yield part if same else np.stack([_resized_array(image, size) for image in part])
        return

    def one(i: int) -> np.ndarray:
        return _decode(images, int(i), channels, size)

    if not images.threads:
        for piece in pieces:
            yield np.stack([one(i) for i in piece])
        return
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        for piece in pieces:
            yield np.stack(list(pool.map(one, piece)))


def _decode(images: Encoded, i: int, channels: int, size: int) -> np.ndarray:
    source = images.get(i)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut their values at 255, and most images be white
                raise ValueError(f"its pixels are of mode {image.mode}, not of 8 bits a channel")
            return _square(image.convert("RGB" if channels == 3 else "L"), size)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise HarnessError(
            f"{images.name(i)} cannot be decoded: {error}",
            "a whole image",
            "replace it, or take it out of the data set",
        ) from error


def _square(image: Image.Image, size: int) -> np.ndarray:
    """[C, size, size] of the centre square of a picture."""
    width, height = image.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # Cut first: resize(box=...) would let pixels from outside of the square into its border.
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _resized_array(pixels: np.ndarray, size: int) -> np.ndarray:
    """[C, size, size] of [C, h, w]."""
    return _square(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)), size)
