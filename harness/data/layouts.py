"""Where segmentation data lie, and which mask belongs to which image.

    camvid       camvid128/camvid.npz in a data folder: CamVid at 128 x 96, the usual 367 / 101 / 233 frames
    voc:PATH     PATH/JPEGImages/ID.jpg, PATH/SegmentationClass/ID.png, PATH/ImageSets/Segmentation/{train,val}.txt
    ade:PATH     PATH/images/{training,validation}/ID.jpg and PATH/annotations/{training,validation}/ID.png
    masks:PATH   PATH/images/{train,val}/ID.* and PATH/masks/{train,val}/ID.png, and a test part where there is one; its
                 classes are the lines of PATH/classes.txt, or masks:PATH?classes=K; or one of the two above

Without a labelled test part, val is the test part and a tenth of train is what choices are made on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from harness.data import catalog, packed, stored
from harness.data.catalog import CAMVID
from harness.data.folder import SUFFIXES
from harness.data.stored import Encoded
from harness.errors import HarnessError, unknown

IGNORED = 255  # in masks as they are handed on, whatever a data set writes
LONGEST = 512  # px; images of a longer side are shrunk to it, their masks with them
SELECT_SHARE = 0.1

VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
ADE_CLASSES = 150

Part = tuple["Stored", np.ndarray]  # stored pairs, and the positions of those that belong to it


@dataclass(frozen=True)
class Labelling:
    """How stored masks number what they show: classes `first` to `first + classes - 1`."""

    classes: int
    first: int = 0
    ignored: tuple[int, ...] = (IGNORED,)


@dataclass(frozen=True)
class Stored:
    """Images and masks, position by position, still closed."""

    images: Encoded
    masks: Encoded | np.ndarray  # the array is uint8 [n, H, W]
    n: int
    labelling: Labelling
    digest: str  # over the stored bytes


@dataclass(frozen=True)
class Found:
    name: str
    title: str
    classes: int
    names: tuple[str, ...]
    fit: Part
    select: Part
    test: Part


def find(name: str, data_dir: Path | None = None) -> Found:
    """The data set of that name. Raises HarnessError that says what was looked for, and where."""
    if name == CAMVID.name:
        return _camvid(data_dir)
    kind, colon, rest = name.partition(":")
    if not colon or kind not in (*LAYOUTS, "masks"):
        raise unknown("segmentation data set", name, [CAMVID.name, *(f"{k}:PATH" for k in (*LAYOUTS, "masks"))])
    text, _, query = rest.partition("?")
    root = Path(text).expanduser()
    if not text or not root.is_dir():
        raise HarnessError(f"there is no folder {text!r} for {name!r}", _expected(kind), f"{kind}:PATH of a folder")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if stray := set(options) - ({"classes"} if kind == "masks" else set()):
        raise unknown(f"option of {kind}:", min(stray), ["classes"] if kind == "masks" else [])
    if kind == "masks" and not (root / "masks").is_dir():
        kinds = [k for k, layout in LAYOUTS.items() if _place(root, layout)]
        if not kinds:
            raise _strange(root, "masks")
        kind = kinds[0]
    if kind == "masks":
        return _plain(root, options)
    place = _place(root, LAYOUTS[kind])
    if place is None:
        raise _strange(root, kind)
    return LAYOUTS[kind].read(place)


# -- the packed one ---------------------------------------------------------------------------------------------------


def _camvid(data_dir: Path | None) -> Found:
    place = catalog.locate(CAMVID, data_dir)
    if place is None or place.where is None:
        tried = ", ".join(str(p / CAMVID.files[0]) for p in catalog.places(CAMVID, data_dir))
        raise HarnessError(
            "the segmentation data set 'camvid' was not found",
            f"one of {tried}",
            "set HARNESS_DATA to the folder that holds camvid128/camvid.npz; or name another: voc:PATH, ade:PATH, "
            "masks:PATH",
        )
    path = place.where / CAMVID.files[0]
    digest = packed.check(path)
    names = tuple(map(str, packed.array(path, "classes")))
    ignored = int(packed.array(path, "ignore_index"))

    def part(prefix: str) -> Part:
        masks = packed.array(path, f"{prefix}masks")
        images = packed.encoded(place.where, [(path.name, prefix)])
        labelling = Labelling(CAMVID.classes, ignored=(ignored,))
        return Stored(images, masks, len(masks), labelling, f"{digest} {prefix}"), np.arange(len(masks))

    names = names[: CAMVID.classes]
    return Found(CAMVID.name, CAMVID.title, len(names), names, part("train_"), part("val_"), part("test_"))


# -- folders ----------------------------------------------------------------------------------------------------------


def _voc(root: Path) -> Found:
    lists = {which: root / "ImageSets/Segmentation" / f"{which}.txt" for which in ("train", "val")}
    ids = {which: path.read_text().split() for which, path in lists.items()}
    if both := set(ids["train"]) & set(ids["val"]):
        raise HarnessError(f"{min(both)} is in {lists['train']} and in {lists['val']}", "an image in one list only")

    def part(which: str) -> Stored:
        pairs = [(root / f"JPEGImages/{i}.jpg", root / f"SegmentationClass/{i}.png") for i in ids[which]]
        return _stored(pairs, Labelling(len(VOC_NAMES)), str(lists[which]))

    return _found("voc", root, VOC_NAMES, part("train"), part("val"))


def _ade(root: Path) -> Found:
    labelling = Labelling(ADE_CLASSES, first=1, ignored=(0, IGNORED))

    def part(which: str) -> Stored:
        return _stored(_matched(root / "images" / which, root / "annotations" / which), labelling, str(root))

    names = tuple(map(str, range(1, ADE_CLASSES + 1)))
    return _found("ade", root, names, part("training"), part("validation"))


def _plain(root: Path, options: dict[str, str]) -> Found:
    lacking = [f"{half}/{which}" for half in ("images", "masks") for which in ("train", "val")]
    if any(not (root / folder).is_dir() for folder in lacking):
        raise _strange(root, "masks")
    names = _names(root, options)

    def part(which: str) -> Stored:
        pairs = _matched(root / "images" / which, root / "masks" / which)
        return _stored(pairs, Labelling(len(names)), str(root / "images" / which))

    tested = (root / "images/test").is_dir() and (root / "masks/test").is_dir()
    return _found("masks", root, names, *map(part, ("train", "val", "test") if tested else ("train", "val")))


def _names(root: Path, options: dict[str, str]) -> tuple[str, ...]:
    if "classes" in options:
        count = options["classes"]
        if not count.isdecimal() or not 2 <= int(count) <= IGNORED:
            raise HarnessError(f"classes={count}", f"2 to {IGNORED}", f"masks:{root}?classes=21")
        return tuple(map(str, range(int(count))))
    file = root / "classes.txt"
    names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip()) if file.is_file() else ()
    if not 2 <= len(names) <= IGNORED:
        raise HarnessError(
            f"{file} names {len(names)} classes" if file.is_file() else f"there is no {file}",
            f"2 to {IGNORED} classes, a name on each line, the class that masks call 0 first",
            f"write it, or say masks:{root}?classes=K",
        )
    return names


def _found(kind: str, root: Path, names: tuple[str, ...], *parts: Stored) -> Found:
    """With the test part last; where there are only two, select is a share of the first."""
    name = f"{kind}-{root.resolve().name}"  # it goes into records, so it does not hold the way to the folder
    first, *_, last = parts
    if len(parts) == 3:
        fit, select = (first, np.arange(first.n)), (parts[1], np.arange(parts[1].n))
    else:
        if first.n < 2:
            raise HarnessError(f"{root} has a single image to learn from", "at least 2, to hold one out")
        rest, held = stored.hold_out(np.zeros(first.n, np.int64), SELECT_SHARE, "select")
        fit, select = (first, rest), (first, held)
    return Found(name, f"{kind} {root.resolve().name}", len(names), names, fit, select, (last, np.arange(last.n)))


def _matched(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Images with the masks of the same name. Raises HarnessError where one of the two has no other."""
    by_stem = [_by_stem(images), _by_stem(masks)]
    for mine, (here, there) in enumerate(((images, masks), (masks, images))):
        if alone := sorted(by_stem[mine].keys() - by_stem[1 - mine].keys()):
            kind = ("image", "mask")
            raise HarnessError(
                f"{len(alone)} of {len(by_stem[mine])} {kind[mine]}s in {here} have no {kind[1 - mine]}, "
                f"{by_stem[mine][alone[0]].name} the first",
                f"{there / alone[0]}.*",
                "copy what is missing, or take them out of the data set",
            )
    return [(path, by_stem[1][stem]) for stem, path in by_stem[0].items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
        if path.stem in found:
            raise HarnessError(f"{found[path.stem]} and {path.name}", "one picture of each name", "rename one of them")
        found[path.stem] = path
    return found


def _stored(pairs: list[tuple[Path, Path]], labelling: Labelling, where: str) -> Stored:
    if not pairs:
        raise HarnessError(f"no images in {where}", "at least one image with its mask")
    for image, mask in pairs:
        if not image.is_file():
            raise HarnessError(f"there is no {image}", f"every image of {where}", "copy it, or take it off the list")
        if not mask.is_file():
            raise HarnessError(f"the image {image} has no mask", str(mask), "copy it, or take it off the list")
    names = stored.text_digest(image.name for image, _ in pairs)
    # The bytes themselves are read: a mask that was mended has often kept its size.
    digest = stored.text_digest([names, stored.file_digest([path for pair in pairs for path in pair])])
    images, masks = (
        Encoded(lambda i, half=half: pairs[i][half], lambda i, half=half: str(pairs[i][half])) for half in (0, 1)
    )
    return Stored(images, masks, len(pairs), labelling, digest)


# -- layouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A way of laying out folders that data sets come in."""

    needs: tuple[str, ...]
    below: tuple[str, ...]  # folders under PATH that archives unpack to
    read: Callable[[Path], Found]


LAYOUTS = {
    "voc": Layout(
        ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"),
        ("", "VOC2012", "VOCdevkit/VOC2012"),
        _voc,
    ),
    "ade": Layout(
        ("images/training", "images/validation", "annotations/training", "annotations/validation"),
        ("", "ADEChallengeData2016"),
        _ade,
    ),
}
PLAIN = ("images/train", "images/val", "masks/train", "masks/val")


def _place(root: Path, layout: Layout) -> Path | None:
    """Where under `root` the layout lies whole."""
    return next((root / b for b in layout.below if all((root / b / need).exists() for need in layout.needs)), None)


def _expected(kind: str) -> str:
    if kind != "masks":
        return "PATH with " + ", ".join(LAYOUTS[kind].needs)
    return "; or ".join(["PATH with " + ", ".join(PLAIN), *(", ".join(layout.needs) for layout in LAYOUTS.values())])


def _strange(root: Path, kind: str) -> HarnessError:
    listed = sorted(p.name for p in root.iterdir())
    shown = ", ".join(listed[:6]) + (" ..." if len(listed) > 6 else "") or "nothing"
    return HarnessError(
        f"{root} is no {kind} folder: it holds {shown}", _expected(kind), "name the folder that holds these"
    )
