"""The cache of decoded pixels: one plain .npy per split, named by what it was made from and by what it holds.

`KEY.DIGEST.npy`: KEY stands for the stored files and the size, DIGEST is the SHA-256 of the pixels. A file is written
under a temporary name and renamed when whole; small ones are read into memory and compared with their name, large ones
are mapped, so that a data set may be larger than memory. The cache can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from harness.data.catalog import cache_home
from harness.errors import HarnessError

IN_MEMORY_BYTES = 1 << 30  # above it a cached split is mapped instead of read
MIN_BYTES = 1 << 20  # below it decoding is as fast as reading

Chunks = Callable[[], Iterator[np.ndarray]]
log = logging.getLogger(__name__)


def folder() -> Path:
    """$HARNESS_CACHE/decoded, or the same below ~/.cache/recognise-and-draw."""
    return cache_home() / "decoded"


def pixels(key: str, shape: tuple[int, ...], chunks: Chunks) -> tuple[np.ndarray, str]:
    """The uint8 array of `shape` that `chunks` yields piece by piece, and its SHA-256: cached, or made and cached.

    Where the cache cannot be written the array is made in memory, with a line in the log.
    """
    if not worth(shape):
        return _in_memory(shape, chunks)
    if (held := _read(key, shape)) is not None:
        return held
    try:
        _write(key, shape, chunks)
    except OSError as error:
        log.info("decoded pixels are not cached in %s: %s", folder(), error)
        return _in_memory(shape, chunks)
    return _read(key, shape) or _in_memory(shape, chunks)


def worth(shape: tuple[int, ...]) -> bool:
    """Whether pixels of that shape are cached at all."""
    return math.prod(shape) >= MIN_BYTES


def mapped(key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, str] | None:
    """What `pixels` has cached, at the price of a look: mapped, and taken by its name. None where nothing is there."""
    for path in sorted(folder().glob(f"{key}.*.npy")):
        try:
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if array.shape == shape and array.dtype == np.uint8:
            return array, path.name.split(".")[1]
    return None


def digest(chunks: Chunks) -> str:
    """The SHA-256 that `pixels` would give, of pixels that are kept nowhere."""
    total = hashlib.sha256()
    for chunk in chunks():
        total.update(np.ascontiguousarray(chunk).data)
    return total.hexdigest()


def _read(key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, str] | None:
    for path in sorted(folder().glob(f"{key}.*.npy")):
        digest = path.name.split(".")[1]
        large = math.prod(shape) > IN_MEMORY_BYTES
        try:
            # Copy-on-write: torch wants a writable array, and nothing may reach the file.
            array = np.load(path, mmap_mode="c" if large else None, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if array.shape == shape and array.dtype == np.uint8 and (large or _digest(array) == digest):
            return array, digest
    return None


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(memoryview(array).cast("B")).hexdigest()


def _write(key: str, shape: tuple[int, ...], chunks: Chunks) -> None:
    folder().mkdir(parents=True, exist_ok=True)
    temporary = folder() / f".{key}.{uuid.uuid4().hex[:8]}.tmp"
    total = hashlib.sha256()
    try:
        with open(temporary, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks():
                content = np.ascontiguousarray(chunk).data
                total.update(content)
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        for stale in folder().glob(f"{key}.*.npy"):  # `_read` refused it: damaged
            stale.unlink(missing_ok=True)
        os.replace(temporary, folder() / f"{key}.{total.hexdigest()}.npy")
    finally:
        temporary.unlink(missing_ok=True)


def _in_memory(shape: tuple[int, ...], chunks: Chunks) -> tuple[np.ndarray, str]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if math.prod(shape) > memory:
        raise HarnessError(
            f"the decoded pixels take {math.prod(shape) / 1e9:.1f} GB, more than this machine's memory",
            f"to write them to {folder()}, which failed",
            "set HARNESS_CACHE to a folder with enough space, or choose a smaller image size",
        )
    array, filled = np.empty(shape, np.uint8), 0
    for chunk in chunks():
        array[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return array, _digest(array)
