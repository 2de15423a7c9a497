"""Samples and panels side by side: which pictures the page holds, and which it only names."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.report.layout import Table

MOST = 24 * 2**20  # bytes of pictures in one page: what a browser on a phone still opens at once


@dataclass(frozen=True)
class Shown:
    """A picture in the page; `who` are the rows that it is of, more than one where they read the same weights."""

    kind: str  # "samples", "inpainting", ...
    of: tuple[str, ...]
    who: tuple[str, ...]
    caption: str
    path: str  # in the study's folder
    source: str  # a data URI


@dataclass(frozen=True)
class Album:
    shown: tuple[Shown, ...]
    left: int = 0  # pictures that are not in the page
    missing: int = 0  # pictures that records name and the folder does not have


def album(tables: Sequence[Table], folder: Path, most: int = MOST) -> Album:
    """The first picture of each kind of every row, up to `most` bytes; `folder` is the study's."""
    found: dict[tuple[object, ...], Shown] = {}
    seen: set[tuple[object, ...]] = set()
    paths: set[str] = set()
    size = left = missing = 0
    for section, picture in ((s, p) for table in tables for s in table.sections for p in s.pictures):
        if picture.path in paths:
            continue
        paths.add(picture.path)
        path = PurePosixPath(picture.path).relative_to("..")  # a table's pictures are seen from the folder of tables
        kind = path.stem
        if (kind, section.of, picture.who) in seen:  # another seed of the same row
            left += 1
            continue
        try:
            content = (folder / path).read_bytes()
        except FileNotFoundError:
            missing += 1
            continue
        same = (kind, section.of, hashlib.sha256(content).digest())
        seen.add((kind, section.of, picture.who))
        if same in found:
            old = found[same]
            found[same] = Shown(old.kind, old.of, (*old.who, picture.who), old.caption, old.path, old.source)
            continue
        if size + len(content) > most:
            left += 1
            continue
        size += len(content)
        source = f"data:image/{_form(content)};base64,{base64.b64encode(content).decode()}"
        found[same] = Shown(kind, section.of, (picture.who,), picture.caption, str(path), source)
    ordered = sorted(found.values(), key=lambda shown: shown.kind != "samples")
    return Album(tuple(ordered), left, missing)


def _form(content: bytes) -> str:
    return "png" if content.startswith(b"\x89PNG") else "jpeg"
