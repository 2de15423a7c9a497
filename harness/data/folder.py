"""Image folders: PATH/train/CLASS/**, with PATH/test/CLASS/** or PATH/val/CLASS/** where there is one.

Without a train folder, PATH/CLASS/** is divided by a fixed key. Tiny ImageNet's own layout (images below
CLASS/images, labels of val in val_annotations.txt) is read as it is. The test part is `test` where that holds the
train part's classes, else `val`; test parts without labels, as Tiny ImageNet's, are so passed over.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from harness.data import stored
from harness.data.catalog import Found, class_names
from harness.data.packed import TEST, TRAIN
from harness.data.stored import Encoded, Split
from harness.errors import HarnessError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
ANNOTATIONS = "val_annotations.txt"
Listing = list[tuple[str, int]]  # (path below the split's folder, label)


def read(found: Found) -> dict[str, Split]:
    """The splits of an image folder; the pixels stay closed."""
    assert found.where is not None
    train = found.where / "train" if (found.where / "train").is_dir() else found.where
    names = class_names(train)
    if not names:
        raise HarnessError(f"no class folders in {train}", "one sub-folder of images for each class")
    splits = {TRAIN: split_of(train, _listing(train, names), names)}
    if train != found.where and (test := _test_folder(found.where, names)) is not None:
        annotated = (test / ANNOTATIONS).is_file()
        listing = _annotated(test, names) if annotated else _listing(test, names)
        splits[TEST] = split_of(test, listing, names)
    return splits


def _test_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder of the test part. Raises HarnessError where one is there but holds none of the classes."""
    candidates = [root / n for n in ("test", "val", "validation") if (root / n).is_dir()]
    for folder in candidates:
        if (folder / ANNOTATIONS).is_file() or set(class_names(folder)) & set(names):
            return folder
    if candidates:
        raise HarnessError(
            f"{candidates[0]} holds none of the {len(names)} classes of {root / 'train'}",
            f"sub-folders named {', '.join(names[:3])} ...",
        )
    return None


def _listing(folder: Path, names: Sequence[str]) -> Listing:
    stray = set(class_names(folder)) - set(names)
    if stray:
        raise HarnessError(
            f"{folder} has the class {min(stray)!r}, which the train part lacks", f"one of {len(names)} classes"
        )
    return [(path, label) for label, name in enumerate(names) for path in _images(folder, name)]


def _images(folder: Path, name: str) -> list[str]:
    found = []
    for parent, _, files in os.walk(folder / name, followlinks=True):
        below = Path(parent).relative_to(folder).as_posix()
        found += [f"{below}/{f}" for f in files if os.path.splitext(f)[1].lower() in SUFFIXES]
    return sorted(found)


def _annotated(folder: Path, names: Sequence[str]) -> Listing:
    labels = {name: label for label, name in enumerate(names)}
    listing = []
    for number, line in enumerate((folder / ANNOTATIONS).read_text().splitlines(), 1):
        file, name = (*line.split("\t"), "")[:2]
        if name not in labels:
            raise HarnessError(f"{folder / ANNOTATIONS}, line {number}: class {name!r}", "a class of the train part")
        listing.append((f"images/{file}", labels[name]))
    return listing


def split_of(folder: Path, listing: Listing, names: Sequence[str]) -> Split:
    """The images that `listing` names; their pixels stay closed. Raises HarnessError where one is not there."""
    stats = [_stat(folder / path) for path, _ in listing]
    header = [f"{path}\t{label}\t{s.st_size}" for (path, label), s in zip(listing, stats, strict=True)]
    # A copied folder has other times but is the same data set: times make the cache's key, not the revision.
    key = [str(folder.resolve()), *header, *(str(s.st_mtime_ns) for s in stats)]
    images = Encoded(lambda i: folder / listing[i][0], lambda i: str(folder / listing[i][0]), threads=True)
    labels = [label for _, label in listing]
    part = stored.split(labels, lambda: images, stored.text_digest(key), str(folder), stored.text_digest(header))
    stored.check_labels(part, len(names), names)
    return part


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise HarnessError(f"cannot read {path}: {error.strerror}", "an image that can be opened") from None
