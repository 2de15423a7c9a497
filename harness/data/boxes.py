"""Images with boxes: a folder in COCO's format, divided as every data set is, its test part behind one door.

ROOT/annotations/instances_train*.json and instances_val*.json (or train.json and val.json, there or in ROOT), and the
images in ROOT/train* and ROOT/val*, by themselves or under ROOT/images. A tenth of train's images, drawn by a fixed
key, is what choices are made on; val is the test part.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from harness.data import catalog, coco, stored
from harness.data.coco import PREFIX, BoxPart
from harness.data.dataset import SELECT_SHARE
from harness.errors import HarnessError, unknown
from harness.records import TestOpened
from harness.rng import Rng


@dataclass(frozen=True)
class BoxSpec:
    name: str
    classes: int


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


def load(name: str, data_dir: Path | None = None) -> BoxData:
    """Read `coco:PATH`; PATH may stand under a data folder. `coco:PATH?drop_empty=1` leaves out boxes without extent.

    The test part stays closed. Raises HarnessError for anything that is missing or does not fit together.
    """
    root, drop_empty, files = find(name, data_dir)
    train, names = coco.read(root, files["train"], drop_empty, None)
    if len(train) < 2:
        raise HarnessError(f"{files['train']} lists a single image", "at least 2, to hold one out for select")
    test, _ = coco.read(root, files["val"], drop_empty, names)
    found = BoxData(BoxSpec(f"coco-{root.name}", len(names)), root.name, "", tuple(names.values()), train, _test=test)
    for part, images in (("fit", found.fit), ("select", found.select)):
        if not any((~images.objects(i).crowd).any() for i in range(len(images))):
            raise HarnessError(
                f"no image of the {part} part of {root} has a box to find", "boxes in both parts of train"
            )
    found.revision = _revision(files, (train, test), drop_empty)
    return found


def find(name: str, data_dir: Path | None = None) -> tuple[Path, bool, dict[str, Path]]:
    """The folder of `coco:PATH`, whether boxes without extent are left out, and the annotations of train and val."""
    root, drop_empty = _parse(name, data_dir)
    return root, drop_empty, {part: _annotation_file(root, part) for part in ("train", "val")}


def _parse(name: str, data_dir: Path | None) -> tuple[Path, bool]:
    path, _, query = name.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key != "drop_empty":
            raise unknown(f"option of {PREFIX}", key, ["drop_empty"], f"for example {PREFIX}{path}?drop_empty=1")
    if not name.startswith(PREFIX) or not path or options.get("drop_empty", "0") not in ("0", "1"):
        raise HarnessError(f"cannot read {name!r}", f"{PREFIX}PATH or {PREFIX}PATH?drop_empty=1")
    given = Path(path).expanduser()
    tried = [given, *(folder / given for folder in catalog.data_folders(data_dir))]
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


def _revision(files: dict[str, Path], parts: tuple[BoxPart, BoxPart], drop_empty: bool) -> str:
    """16 hex digits, the same for a copy of the folder; images stand for themselves by name and length."""
    total = hashlib.sha256(f"{SELECT_SHARE} {stored.SPLIT_KEY} {drop_empty}".encode())
    for path, part in zip(files.values(), parts, strict=True):
        total.update(stored.file_digest([path]).encode())
        total.update(stored.text_digest(f"{f}\t{(part.folder / f).stat().st_size}" for f in part.files).encode())
    return total.hexdigest()[:16]
