"""The data sets by name, as plain data, and where they lie on this machine. Imports neither torch nor numpy."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from harness.errors import HarnessError, unknown

FOLDER = "folder:"
FOLDER_SIZE = 64
Metric = Literal["top1", "mean-per-class"]  # the latter where the data set's own papers use it


@dataclass(frozen=True)
class Entry:
    """One data set: what it is, and how it is had."""

    name: str
    title: str
    channels: int
    size: int
    classes: int
    mirror: bool  # whether an image keeps its meaning when mirrored
    source: str  # "embedded", "torchvision:CLASS", "packed", "folder"
    train_n: int | None = None  # None: known once it is read (image folders)
    test_n: int | None = None
    note: str = ""
    licence: str = "not stated by its makers"
    places: tuple[str, ...] = ()  # folders under a data folder that may hold it
    files: tuple[str, ...] = ()  # what such a folder must hold
    holdout: float | None = None  # share kept as test part, by a fixed key, where the makers gave none
    fallback: str | None = None  # the data set that stands in, under its own title, when this one is absent
    metric: Metric = "top1"
    by_hand: str = ""  # how it is had where nothing can download it


IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
CARS_FILES = (
    "cars_train",
    "cars_test",
    "devkit/cars_meta.mat",
    "devkit/cars_train_annos.mat",
    "cars_test_annos_withlabels.mat",
)
STL10_FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
JPEG_NOTE = "lossy copy: not comparable with published CIFAR-10 figures"
IMAGENET_LICENCE = "ImageNet's terms: non-commercial research and education"

_ENTRIES = (
    Entry("digits", "Digits (scikit-learn)", 1, 8, 10, False, "embedded", 1438, 359,
          "8 px, the 16 grey levels spread over 0..255; every class's fifth part is held out as test",
          "CC BY 4.0 (UCI); ships inside scikit-learn", holdout=0.2),
    Entry("fashion-mnist", "Fashion-MNIST", 1, 28, 10, True, "torchvision:FashionMNIST", 60_000, 10_000,
          "also found where Debian's package dataset-fashion-mnist puts it", "MIT",
          ("fashion-mnist", "FashionMNIST/raw", "fashion-mnist/FashionMNIST/raw",
           "/usr/share/datasets/fashion-mnist"), IDX),
    Entry("cifar10", "CIFAR-10", 3, 32, 10, True, "torchvision:CIFAR10", 50_000, 10_000,
          places=("cifar-10-batches-py", "cifar10/cifar-10-batches-py"), files=CIFAR10_FILES,
          fallback="cifar10-jpeg"),
    Entry("cifar10-jpeg", "CIFAR-10 (JPEG q75)", 3, 32, 10, True, "packed", 50_000, 10_000, JPEG_NOTE,
          places=("cifar10",), files=("train.npz", "test.npz")),
    Entry("cifar10-lossless4k", "CIFAR-10 (4,000 lossless)", 3, 32, 10, True, "packed", 2999, 1001,
          "the first 4,000 official train images; every class's fourth part is held out as test",
          places=("cifar10",), files=("lossless4k.npz",), holdout=0.25),
    Entry("cifar100", "CIFAR-100", 3, 32, 100, True, "torchvision:CIFAR100", 50_000, 10_000,
          places=("cifar-100-python", "cifar100/cifar-100-python"), files=("train", "test", "meta")),
    Entry("stl10", "STL-10", 3, 96, 10, True, "torchvision:STL10", 5000, 8000,
          "the labelled part only; its 100,000 unlabelled images are not read",
          places=("stl10_binary", "stl10/stl10_binary"), files=STL10_FILES),
    Entry("svhn", "SVHN", 3, 32, 10, False, "torchvision:SVHN", 73_257, 26_032,
          "without the extra part", "non-commercial use",
          ("svhn", ""), ("train_32x32.mat", "test_32x32.mat")),
    Entry("tiny-imagenet", "Tiny ImageNet", 3, 64, 200, True, "folder", 100_000, 10_000,
          "the labelled val part is the test part", IMAGENET_LICENCE,
          ("tiny-imagenet-200", "tiny-imagenet/tiny-imagenet-200", "tiny-imagenet"), ("train", "val")),
    Entry("tiny-imagenet100", "Tiny ImageNet (100 classes)", 3, 64, 100, True, "packed", 50_000, 5000,
          "every second class; the labelled val part is the test part", IMAGENET_LICENCE,
          ("tinyimagenet100",), tuple(f"shard{i}.npz" for i in range(10))),
    Entry("flowers89", "Flowers-102 (89 classes)", 3, 64, 89, True, "packed", 1434, 4109,
          "incomplete: not comparable with published Flowers-102 figures; train is the official train and val",
          "research use", ("flowers89",), ("flowers.npz",), metric="mean-per-class"),
    # Photographs of any size, made 64 px unless another size is asked for (listed.py).
    Entry("flowers102", "Flowers-102", 3, 64, 102, True, "torchvision:Flowers102", 2040, 6149,
          "train is the official train and val", "research use",
          ("flowers-102", "flowers102/flowers-102"), ("jpg", "setid.mat", "imagelabels.mat"),
          metric="mean-per-class"),
    Entry("pets", "Oxford-IIIT Pets", 3, 64, 37, True, "torchvision:OxfordIIITPet", 3680, 3669,
          licence="CC BY-SA 4.0", places=("oxford-iiit-pet", "pets/oxford-iiit-pet"),
          files=("images", "annotations/trainval.txt", "annotations/test.txt"), metric="mean-per-class"),
    Entry("dtd", "DTD (textures)", 3, 64, 47, True, "torchvision:DTD", 3760, 1880,
          "split 1 of its ten; train is its train and val", "research use",
          ("dtd",), ("dtd/images", *(f"dtd/labels/{part}1.txt" for part in ("train", "val", "test")))),
    Entry("eurosat", "EuroSAT (RGB)", 3, 64, 10, True, "torchvision:EuroSAT", 21_600, 5400,
          "every class's fifth part is held out as test", "MIT", ("eurosat",), ("2750",), holdout=0.2),
    Entry("food101", "Food-101", 3, 64, 101, True, "torchvision:Food101", 75_750, 25_250,
          places=("food-101", "food101/food-101"), files=("images", "meta/train.json", "meta/test.json")),
    Entry("cars", "Stanford Cars", 3, 64, 196, True, "torchvision:StanfordCars", 8144, 8041,
          "its makers took it offline", places=("stanford_cars", "cars/stanford_cars"), files=CARS_FILES,
          by_hand="its makers took it offline and nothing downloads it: put cars_train/, cars_test/, devkit/ and "
          "cars_test_annos_withlabels.mat of a copy into DATA/stanford_cars and set HARNESS_DATA (or --data-dir) "
          "to DATA"),
    Entry("aircraft", "FGVC-Aircraft", 3, 64, 100, True, "torchvision:FGVCAircraft", 6667, 3333,
          "its 100 variants; train is the official trainval", "non-commercial research",
          ("fgvc-aircraft-2013b", "aircraft/fgvc-aircraft-2013b"),
          ("data/images", "data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt"),
          metric="mean-per-class"),
)  # fmt: skip
ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
# Of the eval `segmentation`; images with masks and no labels, so not for --dataset.
CAMVID = Entry("camvid", "CamVid (128 x 96)", 3, 128, 11, True, "packed", 468, 233,
               "made 128 x 96: not comparable with published CamVid figures; val is what choices are made on",
               "CC BY-NC 4.0", ("camvid128",), ("camvid.npz",))  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A data set that was found: the entry it turned out to be, and its folder (None: inside a package)."""

    entry: Entry
    where: Path | None


def home() -> Path:
    return Path(os.path.expanduser("~/.cache/recognise-and-draw"))


def cache_home() -> Path:
    """$HARNESS_CACHE, or ~/.cache/recognise-and-draw: where what can be made again is kept."""
    named = os.environ.get("HARNESS_CACHE")
    return Path(named) if named else home()


def data_folders(data_dir: Path | None = None) -> list[Path]:
    """Where data are looked for: the folder given; otherwise $HARNESS_DATA, ./data and ~/.cache, in that order."""
    if data_dir is not None:
        return [Path(data_dir)]
    named = os.environ.get("HARNESS_DATA")
    return [*([Path(named)] if named else []), Path("data"), home() / "data"]


def find_entry(name: str, image_size: int | None = None) -> Entry:
    """The entry of that name; `folder:PATH?size=64&mirror=0` makes one. Raises HarnessError for an unknown name."""
    if image_size is not None and image_size < 1:
        raise HarnessError(f"image size {image_size}", "at least 1 pixel")
    if name.startswith(FOLDER):
        entry = _folder_entry(name)
    elif name in ENTRIES:
        entry = ENTRIES[name]
    else:
        raise unknown("data set", name, [*ENTRIES, "folder:PATH"], "python -m harness data lists them")
    return replace(entry, size=image_size or entry.size)


def _folder_entry(name: str) -> Entry:
    path, _, query = name.removeprefix(FOLDER).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in ("size", "mirror"):
            raise unknown("option of folder:", key, ["size", "mirror"], f"for example {FOLDER}{path}?size=64&mirror=0")
    size, mirror = options.get("size", str(FOLDER_SIZE)), options.get("mirror", "1")
    if not path or not size.isdecimal() or int(size) < 1 or mirror not in ("0", "1"):
        raise HarnessError(f"cannot read {name!r}", "folder:PATH, folder:PATH?size=64 or folder:PATH?size=64&mirror=0")
    root = Path(path).expanduser()
    classes = len(class_names(root / "train" if (root / "train").is_dir() else root))
    # The name goes into records and file names, so it holds the folder's own name and not the way to it.
    return Entry(f"folder-{root.resolve().name}", f"folder {root.resolve().name}", 3, int(size), classes,
                 mirror == "1", "folder", note="an image folder", licence="the folder's own",
                 places=(str(root.absolute()),), holdout=0.2)  # fmt: skip


def class_names(folder: Path) -> list[str]:
    """The sub-folders, sorted: one class each. None where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def lacking(entry: Entry, place: Path) -> list[str]:
    """Which of the entry's files `place` does not hold (idx files may be gzipped)."""
    return [f for f in entry.files if not (place / f).exists() and not (place / f"{f}.gz").exists()]


def places(entry: Entry, data_dir: Path | None = None) -> list[Path]:
    """Every folder that may hold the entry, in the order they are tried."""
    return list(dict.fromkeys(folder / place for folder in data_folders(data_dir) for place in entry.places))


def locate(entry: Entry, data_dir: Path | None = None) -> Found | None:
    """The entry, or else what stands in for it, where it is complete on this machine; None if nowhere."""
    if entry.source == "embedded":
        return Found(entry, None)
    for place in places(entry, data_dir):
        if place.is_dir() and not lacking(entry, place):
            return Found(entry, place)
    if entry.fallback is None:
        return None
    return locate(replace(ENTRIES[entry.fallback], size=entry.size), data_dir)


def resolve(name: str, data_dir: Path | None = None, image_size: int | None = None) -> Found:
    """Find a data set by name. Raises HarnessError that says where it was looked for and how to get it."""
    entry = find_entry(name, image_size)
    found = locate(entry, data_dir)
    if found is None:
        raise _missing(entry, data_dir)
    return found


def _missing(entry: Entry, data_dir: Path | None) -> HarnessError:
    tried = places(entry, data_dir)
    if entry.name not in ENTRIES:
        expected = "PATH/train/CLASS/*.jpg or PATH/CLASS/*.jpg"
        return HarnessError(f"there is no folder {tried[0]}", expected, how_to_get(entry))
    parts = [f"{p} lacks {', '.join(lacking(entry, p)[:3])}" for p in tried if p.is_dir() and _partly(entry, p)]
    return HarnessError(
        f"the data set {entry.name!r} was not found" + (f" ({parts[0]})" if parts else ""),
        f"one of the folders {', '.join(map(str, tried))} with {', '.join(entry.files[:3])}"
        + (f" and {len(entry.files) - 3} more" if len(entry.files) > 3 else ""),
        how_to_get(entry) + ("; or, where you have it, --data-dir FOLDER" if _fetched(entry) else ""),
    )


def _partly(entry: Entry, place: Path) -> bool:
    return len(lacking(entry, place)) < len(entry.files)


def _fetched(entry: Entry) -> bool:
    return entry.source != "packed" and not entry.by_hand


def how_to_get(entry: Entry) -> str:
    """What to type, or to do, to have the data set."""
    if entry.name not in ENTRIES:
        return "name a folder that is there: folder:PATH"
    if entry.source == "packed":
        return f"set HARNESS_DATA (or --data-dir) to the folder that holds {entry.places[0]}/{entry.files[0]}"
    if entry.by_hand:
        return entry.by_hand
    return f"python -m harness data fetch {entry.name}"
