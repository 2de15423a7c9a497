"""Data sets of photographs whose makers list what is in which split: Flowers-102, Pets, DTD, EuroSAT, Food-101, ...

torchvision's own classes read the lists; they are asked for paths in place of images, which stay closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.data import folder
from harness.data.arrays import checked
from harness.data.catalog import Entry, Found
from harness.data.folder import Listing
from harness.data.packed import TEST, TRAIN
from harness.data.stored import Split
from harness.errors import HarnessError

THREE = {TRAIN: ["train", "val"], TEST: ["test"]}
JOINED = {TRAIN: ["trainval"], TEST: ["test"]}
TWO = {TRAIN: ["train"], TEST: ["test"]}
READERS: dict[str, dict[str, list[str]]] = {  # torchvision's splits that make ours; EuroSAT has a single, unnamed one
    "torchvision:Flowers102": THREE,
    "torchvision:OxfordIIITPet": JOINED,
    "torchvision:DTD": THREE,
    "torchvision:EuroSAT": {TRAIN: [""]},
    "torchvision:Food101": TWO,
    "torchvision:StanfordCars": TWO,
    "torchvision:FGVCAircraft": JOINED,
}


def read(found: Found) -> dict[str, Split]:
    """The splits of a data set with lists. Raises HarnessError for lists or images that are not as published."""
    return {which: _split(found, official) for which, official in READERS[found.entry.source].items()}


def _split(found: Found, official: Sequence[str]) -> Split:
    assert found.where is not None
    listing: Listing = []
    for split in official:
        names, part = _part(found, split)
        # torchvision numbers some sets' classes by what a list holds: one class less would renumber the others.
        if len(names) != found.entry.classes:
            raise HarnessError(
                f"the {split or 'only'} split in {found.where} has {len(names)} classes",
                f"{found.entry.classes}, as {found.entry.title} has in every split",
            )
        listing += part
    return folder.split_of(found.where, listing, names)


def _part(found: Found, split: str) -> tuple[list[str], Listing]:
    """The classes' names, and (path below the data set's folder, label) of one of torchvision's splits."""
    import torchvision.datasets

    where, kind = found.where, found.entry.source.partition(":")[2]
    assert where is not None
    with checked(found):
        if kind == "OxfordIIITPet":
            return _pets(found.entry, where, split)
        options: dict[str, Any] = {"split": split} if split else {}
        data = getattr(torchvision.datasets, kind)(where.parent, loader=str, **options)
        pairs = (data[i] for i in range(len(data)))
        return list(data.classes), [(Path(path).relative_to(where).as_posix(), int(label)) for path, label in pairs]


def _pets(entry: Entry, where: Path, split: str) -> tuple[list[str], Listing]:
    """Read here: torchvision's class opens every image it is asked about."""
    lines = (where / f"annotations/{split}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    names = {int(label): name.rpartition("_")[0] for name, label, *_ in rows}
    listing = [(f"images/{name}.jpg", int(label) - 1) for name, label, *_ in rows]
    return [names.get(k + 1, str(k + 1)) for k in range(entry.classes)], listing
