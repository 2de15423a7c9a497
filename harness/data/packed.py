"""The packed form: encoded images one after another in an .npz (`blob`, `offsets`, `labels`), no pickles."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from harness.data import stored
from harness.data.catalog import Found
from harness.data.stored import Encoded, Split
from harness.errors import HarnessError

# SHA-256 of the known files; another file under one of these names is an error, never a silent other data set.
SHA256 = {
    "cifar10/train.npz": "f1fed9776e68e7fd67b6449ad851d26d7b4a5822695bf9dd90ab1996e9fbfaf1",
    "cifar10/test.npz": "3631db3367a2fcedf4c477f6af348fc72e4edd0701fe4ff98010782c25fcb314",
    "cifar10/lossless4k.npz": "7a10e591acba675c1a02007fbfa40e7bc5a6befa96ea90da01e7616150ad6172",
    "tinyimagenet100/shard0.npz": "1ee0a314e7aea976fc9330dc8961ea17ac65a427420729d790636d10d4400e1b",
    "tinyimagenet100/shard1.npz": "66dc409e82482fb07999ee3c2857cd257318f5eedfbd1c2d07da15a2e53afca6",
    "tinyimagenet100/shard2.npz": "a1d3e2f7f15b0554c009c3cae68786fcf4739ce1446159d6d2db94d47ca5aef6",
    "tinyimagenet100/shard3.npz": "9619d4bbf2d5262084a2c3996b19765b60ab785c74de3739dd9828daffca6981",
    "tinyimagenet100/shard4.npz": "c25321a1fec36cad6ed370168f17e24b14589d57d45c08ec2f00479d4363c01d",
    "tinyimagenet100/shard5.npz": "eab4d8d76bfb36e1d2d03644e655a26793625c1f7caf46213f917e77cdd4acfc",
    "tinyimagenet100/shard6.npz": "5abd797e2d134489947378425a0f5dcae5eb4505370f43b01eb3af960d66d6d4",
    "tinyimagenet100/shard7.npz": "6a23c9a67224ba716d5b46e4146e5480d9dcedf081a15a99d42f3c259fb88972",
    "tinyimagenet100/shard8.npz": "56b76088eb87426f3003b4f7b4b32e9f4415c099a6954c510426063f50be3726",
    "tinyimagenet100/shard9.npz": "d0e22fb433425d8951b37088b6d451328bfa9d860dd08786f30de37efcb0d77e",
    "flowers89/flowers.npz": "eb30e503722196b323dc7aeb9f365c4e5f8ed6653ef21c1b230c101f07c03079",
    "camvid128/camvid.npz": "71942d7f464c814fd97683222dd1cf6b6898e9c8fd0dfc5203a1d982177ad1ef",
}
TRAIN, TEST = "train", "test"
Parts = list[tuple[str, str]]  # (file, prefix of its arrays)
PARTS: dict[str, dict[str, Parts]] = {
    "cifar10-jpeg": {TRAIN: [("train.npz", "")], TEST: [("test.npz", "")]},
    "cifar10-lossless4k": {TRAIN: [("lossless4k.npz", "")]},
    "tiny-imagenet100": {
        TRAIN: [(f"shard{i}.npz", "train_") for i in range(10)],
        TEST: [(f"shard{i}.npz", "val_") for i in range(10)],
    },
    "flowers89": {TRAIN: [("flowers.npz", "train_"), ("flowers.npz", "val_")], TEST: [("flowers.npz", "test_")]},
}
RANKED = ("tiny-imagenet100",)  # labels are ranks among the full set's classes: renumbered 0..classes-1


def read(found: Found) -> dict[str, Split]:
    """The splits of a packed data set, checksums compared. Raises HarnessError for a wrong or damaged file."""
    assert found.where is not None
    parts, name = PARTS[found.entry.name], found.entry.name
    digests = {file: check(found.where / file) for file in found.entry.files}
    ids = _class_ids(found) if name in RANKED else None
    splits = {}
    for which, pieces in parts.items():
        labels = np.concatenate([array(found.where / f, f"{prefix}labels") for f, prefix in pieces]).astype(np.int64)
        key = stored.text_digest(digests[f] + prefix for f, prefix in pieces)
        where = ", ".join(dict.fromkeys(str(found.where / f) for f, _ in pieces))
        splits[which] = stored.split(
            labels if ids is None else _renumber(labels, ids, where),
            lambda pieces=pieces: encoded(found.where, pieces),
            key,
            where,
        )
    return splits


def check(path: Path) -> str:
    """The file's SHA-256; raises HarnessError where it is a known file's name with other bytes."""
    name = f"{path.parent.name}/{path.name}"
    digest, known = stored.file_digest([path]), SHA256.get(name)
    if known is not None and digest != known:
        raise HarnessError(
            f"wrong checksum of {path}: SHA-256 {digest[:16]}...", f"{known[:16]}...", f"copy {name} again"
        )
    return digest


def array(path: Path, name: str) -> np.ndarray:
    """One array of the file. Raises HarnessError where it cannot be read."""
    try:
        # Opened here, since np.load leaves a truncated file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as held:
            return held[name]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise HarnessError(
            f"cannot read {name!r} of {path}: {error}", "a packed .npz with blob, offsets and labels", "copy it again"
        ) from None


def _class_ids(found: Found) -> np.ndarray:
    assert found.where is not None
    return np.sort(np.concatenate([array(found.where / f, "class_ids") for f in found.entry.files]))


def _renumber(labels: np.ndarray, ids: np.ndarray, where: str) -> np.ndarray:
    stray = np.setdiff1d(labels, ids)
    if len(stray):
        raise HarnessError(f"label {stray[0]} in {where} is out of range", "one of the file's class_ids")
    return np.searchsorted(ids, labels)


def encoded(folder: Path, pieces: Parts) -> Encoded:
    """The images of `pieces`, one after another."""
    blobs = [array(folder / f, f"{prefix}blob") for f, prefix in pieces]
    ends = [array(folder / f, f"{prefix}offsets") for f, prefix in pieces]
    firsts = np.cumsum([0, *(len(e) - 1 for e in ends)])

    def place(i: int) -> tuple[int, int]:
        piece = int(np.searchsorted(firsts, i, side="right")) - 1
        return piece, i - int(firsts[piece])

    def get(i: int) -> bytes:
        piece, j = place(i)
        return blobs[piece][ends[piece][j] : ends[piece][j + 1]].tobytes()

    def name(i: int) -> str:
        piece, j = place(i)
        return f"image {j} ({pieces[piece][1]}blob) of {folder / pieces[piece][0]}"

    return Encoded(get, name)
