"""A data set seen from outside: what a plan needs to know, without its images and, where it is kept, without torch.

What reading it gave is kept by sizes and times of the stored files. Whether its pixels are decoded is looked up anew.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.answers import Answers
from harness.data import cache, catalog
from harness.data.catalog import Found
from harness.data.spec import DataSpec

if TYPE_CHECKING:
    from harness.data.dataset import Dataset


@dataclass(frozen=True)
class Glance:
    """Stands for a Dataset where no image is asked for."""

    spec: DataSpec
    revision: str  # "" where it would cost decoding and was not asked for
    mirror: bool
    fit_n: int
    shape: tuple[int, ...]  # of the train part's images, uint8
    decoded: bool  # whether the cache holds the train part

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape)


def glance(name: str, data_dir: Path | None, exact: bool, answers: Answers, read: Dataset | None = None) -> Glance:
    """The data set of that name; nothing of it is written. Raises HarnessError as `dataset.load` does.

    Pixels decoded before are not compared with their file's name. Those that never were are decoded for the revision,
    and let go, only if it has to be `exact`. `read` is the same data set, where it has been read already.
    """
    found = catalog.resolve(name, data_dir)
    question = {"data set": asdict(found.entry), "at": str(found.where), "files": _stamp(found)}
    answer = answers.ask(question, lambda: _outside(found, exact, read), lambda answer: _holds(answer, exact))
    return Glance(
        DataSpec(**answer["spec"]),
        answer["revision"],
        answer["mirror"],
        answer["fit_n"],
        tuple(answer["shape"]),
        _decoded(answer) is not None,
    )


def _outside(found: Found, exact: bool, read: Dataset | None) -> dict[str, Any]:
    from harness.data.dataset import look, outside

    return outside(read or look(found, exact))


def _decoded(answer: dict[str, Any]) -> str | None:
    """The digest of the decoded pixels, where they are in the cache."""
    held = cache.mapped(answer["pixels"]["key"], tuple(answer["shape"]))
    return None if held is None else held[1]


def _holds(answer: dict[str, Any], exact: bool) -> bool:
    """Decoded since, its digest comes at no price; else the revision is there, or is not asked for."""
    digest = _decoded(answer)
    return bool(answer["revision"]) or not exact if digest is None else digest == answer["pixels"]["digest"]


def _stamp(found: Found) -> str:
    """Changes when a stored file does: names, sizes and times of all of them."""
    total = hashlib.sha256()
    for path in _stored(found):
        try:
            stat = path.stat()
            total.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        except OSError as error:  # a link to nowhere, which only a reader that wants it refuses
            total.update(f"{path} {error.strerror}\n".encode())
    return total.hexdigest()


def _stored(found: Found) -> Iterator[Path]:
    if found.where is None:  # inside a package, whose version is part of the code
        return
    for top in [found.where / file for file in found.entry.files] if found.entry.source != "folder" else [found.where]:
        yield from (path for path in (top, top.with_name(f"{top.name}.gz")) if path.is_file())
        for parent, folders, files in os.walk(top, followlinks=True):
            folders.sort()
            yield from (Path(parent, name) for name in sorted(files))
