"""Where extracted features are kept: in memory, or in files that a killed evaluation goes on from.

One file a tap and part, `PART/TAP.npy`, float32 [n, D], which numpy can map into memory; rows are written and read a
chunk at a time with plain reads, since mapped pages would count as this process's memory. `PART/TAP.sums` holds a
checksum of every chunk, so that a chunk is there only if all of it is.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.files import explain
from harness.method import Tap
from harness.protocol import COMMON

# Shapes: n images of a part, B images of a chunk, D feature width.

Place = tuple[Tap, str]  # a tap and the name of a part


class InMemory:
    """Chunks of features [B, D] float32 by their number."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[Place, int], Tensor] = {}

    def has(self, place: Place, number: int) -> bool:
        return (place, number) in self._chunks

    def put(self, place: Place, number: int, rows: Tensor, n: int) -> None:
        self._chunks[place, number] = rows

    def get(self, place: Place, number: int) -> Tensor:
        return self._chunks[place, number]


class InFiles:
    """The same in the files of `folder`. One writer at a time; what a kill left half-written counts as missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Place, _File] = {}

    def has(self, place: Place, number: int) -> bool:
        file = self._file(place)
        return file is not None and file.sums[number] != 0

    def put(self, place: Place, number: int, rows: Tensor, n: int) -> None:
        try:
            file = self._file(place) or self._made(place, n, rows.shape[1])
            file.put(number, rows.numpy())
        except OSError as error:
            raise explain(error, self.folder) from error

    def get(self, place: Place, number: int) -> Tensor:
        file = self._file(place)
        assert file is not None, place
        return torch.from_numpy(file.get(number))

    def _path(self, place: Place) -> Path:
        tap, part = place
        return self.folder / part / f"{str(tap).replace('/', '-')}.npy"

    def _file(self, place: Place) -> _File | None:
        if place not in self._files:
            path = self._path(place)
            if not path.exists():
                return None
            self._files[place] = _File(path)
        return self._files[place]

    def _made(self, place: Place, n: int, width: int) -> _File:
        path = self._path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, width)})
            file.truncate(file.tell() + 4 * n * width)  # sparse: takes room as it fills
        path.with_suffix(".sums").unlink(missing_ok=True)
        os.replace(temporary, path)
        self._files[place] = _File(path)
        return self._files[place]


class _File:
    """One tap on one part."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            (self.n, self.width), _, _ = np.lib.format.read_array_header_1_0(file)
            self._start = file.tell()
        self._rows, self._sums = path, path.with_suffix(".sums")
        count = -(-self.n // COMMON.chunk)
        self.sums = np.zeros(count, "<u4")
        if self._sums.exists():
            found = np.fromfile(self._sums, "<u4")[:count]
            self.sums[: len(found)] = found
        for number in np.flatnonzero(self.sums):
            if _sum(self._read(int(number))) != self.sums[number]:  # a power cut between rows and sum
                self.sums[number] = 0

    def put(self, number: int, rows: np.ndarray) -> None:
        with self._rows.open("r+b") as file:
            file.seek(self._start + 4 * number * COMMON.chunk * self.width)
            file.write(np.ascontiguousarray(rows, "<f4").tobytes())
        self.sums[number] = _sum(rows)
        with self._sums.open("r+b" if self._sums.exists() else "w+b") as file:
            file.seek(4 * number)
            file.write(self.sums[number : number + 1].tobytes())

    def get(self, number: int) -> np.ndarray:
        return self._read(number)

    def _read(self, number: int) -> np.ndarray:
        first = number * COMMON.chunk
        count = min(COMMON.chunk, self.n - first)
        start = self._start + 4 * first * self.width
        return np.fromfile(self._rows, "<f4", count * self.width, offset=start).reshape(count, self.width)


def _sum(rows: np.ndarray) -> int:
    """Never 0, which stands for a chunk that is not there."""
    return zlib.crc32(np.ascontiguousarray(rows, "<f4").tobytes()) or 1
