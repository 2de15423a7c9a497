"""Segmentation data: every layout made small, what is in each part, and what is wrong with broken ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import layouts, masks
from harness.errors import HarnessError

SHARED = Path(os.environ.get("HARNESS_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_camvid = pytest.mark.skipif(
    not (SHARED / "camvid128/camvid.npz").is_file(), reason="no CamVid under HARNESS_DATA"
)
HEIGHT, WIDTH = 6, 10


def write(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    if mode == "P":
        image = image.convert("P") if pixels.ndim == 3 else Image.fromarray(pixels.astype(np.uint8), "L")
        image.putpalette([200, 0, 0] * 256)
    image.save(path)


def pair(image: Path, mask: Path, value: int, label: int, mode: str | None = None) -> None:
    """A picture of one grey level, and a mask of `label` with an ignored corner."""
    write(image, np.full((HEIGHT, WIDTH, 3), value))
    labels = np.full((HEIGHT, WIDTH), label)
    labels[0, 0] = 255
    write(mask, labels, mode)


def voc(root: Path, train: int = 10, val: int = 3) -> Path:
    for which, first, n in (("train", 0, train), ("val", 100, val)):
        ids = [f"2007_{first + i:06}" for i in range(n)]
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{which}.txt").write_text("\n".join(ids) + "\n")
        for i, name in enumerate(ids):
            pair(root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png", first + i, i % 21, "P")
    return root


def ade(root: Path, train: int = 10, val: int = 3) -> Path:
    for which, first, n in (("training", 0, train), ("validation", 100, val)):
        for i in range(n):
            image, mask = (root / half / which / f"ADE_{first + i}.{end}" for half, end in
                           (("images", "jpg"), ("annotations", "png")))  # fmt: skip
            pair(image, mask, first + i, i)
    return root


def plain(root: Path, parts: dict[str, int], classes: int = 3) -> Path:
    for number, (which, n) in enumerate(parts.items()):
        for i in range(n):
            image, mask = (root / half / which / f"{i}.png" for half in ("images", "masks"))
            pair(image, mask, 100 * number + i, i % classes)
    (root / "classes.txt").write_text("\n".join(["road", "sky", "tree"][:classes]))
    return root


def values(part: masks.Pairs) -> list[int]:
    """The one grey level of each image, read back within what JPEG does to it."""
    return [int(found.image.float().mean().round()) for found in part]


def test_voc_has_val_as_its_test_part_and_a_tenth_of_train_to_choose_on(tmp_path):
    data = masks.load(f"voc:{voc(tmp_path / 'VOCdevkit/VOC2012').parents[1]}")
    assert (data.spec.name, data.spec.classes, data.spec.names[8]) == ("voc-VOC2012", 21, "cat")
    assert (len(data.fit), len(data.select), data.test_n) == (9, 1, 3)
    assert sorted(values(data.fit) + values(data.select)) == list(range(10))
    assert values(data.open_test("me")) == [100, 101, 102]
    found = data.fit.read(4)
    assert found.image.shape == (3, HEIGHT, WIDTH) and found.mask.dtype == torch.uint8
    assert found.mask[0, 0] == masks.IGNORED and found.mask[1, 1] == found.image[0, 1, 1]  # a palette's numbers


def test_ade_numbers_its_classes_from_one_and_ignores_zero(tmp_path):
    data = masks.load(f"ade:{ade(tmp_path / 'ADEChallengeData2016').parent}")
    assert (data.spec.classes, len(data.fit), len(data.select), data.test_n) == (150, 9, 1, 3)
    labels = [int(found.mask[1, 1]) for found in data.open_test("me")]
    assert labels == [masks.IGNORED, 0, 1] and data.spec.names[0] == "1"


def test_plain_folders_with_and_without_a_test_part(tmp_path):
    two = masks.load(f"masks:{plain(tmp_path / 'two', {'train': 10, 'val': 3})}")
    assert (len(two.fit), len(two.select), values(two.open_test("me"))) == (9, 1, [100, 101, 102])
    three = masks.load(f"masks:{plain(tmp_path / 'three', {'train': 4, 'val': 3, 'test': 2})}")
    assert (len(three.fit), values(three.select), values(three.open_test("me"))) == (4, [100, 101, 102], [200, 201])
    assert three.spec == masks.MaskSpec("masks-three", 3, ("road", "sky", "tree"))
    assert masks.load(f"masks:{tmp_path / 'three'}?classes=7").spec.classes == 7


def test_masks_finds_the_other_layouts_out(tmp_path):
    assert masks.load(f"masks:{voc(tmp_path / 'a')}").spec.name == "voc-a"
    assert masks.load(f"masks:{ade(tmp_path / 'b')}").spec.classes == 150


def test_the_door_records_who_came_through(tmp_path):
    data = masks.load(f"voc:{voc(tmp_path)}")
    assert data.opened == []
    data.open_test("segmentation of toy")
    data.open_test("another")
    assert [look.by for look in data.opened] == ["segmentation of toy", "another"]
    assert data.opened[0].at.endswith("+00:00")


def test_the_revision_is_of_pixels_masks_and_split(tmp_path):
    one, two = (plain(tmp_path / n / "set", {"train": 10, "val": 3}) for n in "ab")
    first = masks.load(f"masks:{one}").revision
    assert masks.load(f"masks:{two}").revision == first and len(first) == 16  # elsewhere, but the same data
    seen = {first}
    for change in ("images/train/2.png", "masks/train/2.png", "masks/val/1.png", "images/val/1.png"):
        pixels = np.array(Image.open(two / change))
        pixels[3, 3] ^= 1
        Image.fromarray(pixels).save(two / change)
        seen.add(masks.load(f"masks:{two}").revision)
    (two / "images/val/2.png").unlink()
    (two / "masks/val/2.png").unlink()
    assert len(seen | {masks.load(f"masks:{two}").revision, masks.load(f"masks:{two}?classes=4").revision}) == 7


def test_pictures_of_other_kinds_are_made_colour_and_large_ones_are_shrunk(tmp_path):
    root = plain(tmp_path, {"train": 4, "val": 2})
    write(root / "images/train/0.png", np.full((HEIGHT, WIDTH), 90))  # grey
    tall = np.zeros((2 * layouts.LONGEST, 40))
    write(root / "images/train/1.png", np.stack([tall + 50] * 3, -1))
    tall[: layouts.LONGEST] = 2
    write(root / "masks/train/1.png", tall)
    data = masks.load(f"masks:{root}")
    found = {int(p.image.float().mean().round()): p for p in [*data.fit, *data.select]}
    assert found[90].image.shape == (3, HEIGHT, WIDTH) and (found[90].image == 90).all()
    assert found[50].image.shape == (3, layouts.LONGEST, 20) and found[50].mask.shape == (layouts.LONGEST, 20)
    assert found[50].mask[: layouts.LONGEST // 2].unique().tolist() == [2]
    assert found[50].mask[layouts.LONGEST // 2 :].unique().tolist() == [0]


# -- what is wrong ----------------------------------------------------------------------------------------------------


def breaks(root: Path, what: str) -> None:
    mask, image = root / "masks/train/1.png", root / "images/train/1.png"
    if what == "size":
        write(mask, np.zeros((HEIGHT, WIDTH + 1)))
    elif what == "label":
        write(mask, np.full((HEIGHT, WIDTH), 3))
    elif what == "wide label":
        Image.fromarray(np.full((HEIGHT, WIDTH), 300, np.uint16)).save(mask)
    elif what == "colour":
        write(mask, np.zeros((HEIGHT, WIDTH, 3)))
    elif what == "broken image":
        image.write_bytes(image.read_bytes()[:40])
    elif what == "broken mask":
        mask.write_bytes(b"")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("size", r"the mask of .*1.png is 11 x 6 pixels\n  expected: 10 x 6, as the image"),
        ("label", r"label 3 in the mask of .*1.png is out of range\n  expected: 0 to 2, or 255"),
        ("wide label", r"label 300 in the mask of .*1.png is out of range"),
        ("colour", r"the mask .*masks/train/1.png is a picture of mode RGB\n  expected: one number a pixel"),
        ("broken image", r"images/train/1.png cannot be decoded"),
        ("broken mask", r"masks/train/1.png cannot be decoded"),
    ],
)
def test_a_pair_that_cannot_be_read_is_named(tmp_path, what, message):
    root = plain(tmp_path, {"train": 4, "val": 2, "test": 1})
    breaks(root, what)
    with pytest.raises(HarnessError, match=message):
        list(masks.load(f"masks:{root}").fit)


def test_halves_without_another_are_an_error(tmp_path):
    root = plain(tmp_path / "plain", {"train": 4, "val": 2})
    (root / "masks/train/2.png").unlink()
    with pytest.raises(HarnessError, match=r"1 of 4 images in .*images/train have no mask, 2.png the first"):
        masks.load(f"masks:{root}")
    (root / "images/train/2.png").unlink()
    (root / "images/val/1.png").unlink()
    with pytest.raises(HarnessError, match=r"1 of 2 masks in .*masks/val have no image, 1.png the first"):
        masks.load(f"masks:{root}")
    root = voc(tmp_path / "voc")
    (root / "SegmentationClass/2007_000003.png").unlink()
    with pytest.raises(HarnessError, match=r"the image .*JPEGImages/2007_000003.jpg has no mask"):
        masks.load(f"voc:{root}")
    (root / "JPEGImages/2007_000003.jpg").unlink()
    with pytest.raises(HarnessError, match=r"there is no .*2007_000003.jpg\n  expected: every image of .*train.txt"):
        masks.load(f"voc:{root}")


def test_an_image_in_both_lists_or_twice_in_a_folder_is_an_error(tmp_path):
    root = voc(tmp_path / "voc")
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000003\n")
    with pytest.raises(HarnessError, match=r"2007_000003 is in .*train.txt and in .*val.txt"):
        masks.load(f"voc:{root}")
    root = plain(tmp_path / "plain", {"train": 4, "val": 2})
    write(root / "images/train/2.jpg", np.zeros((HEIGHT, WIDTH, 3)))
    with pytest.raises(HarnessError, match="one picture of each name"):
        masks.load(f"masks:{root}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("camvidd", "did you mean 'camvid'"),
        ("voc:{}/none", "there is no folder"),
        ("voc:{}", r"is no voc folder: it holds other\n  expected: PATH with JPEGImages, SegmentationClass, ImageSets"),
        ("ade:{}", r"is no ade folder.*\n  expected: PATH with images/training, images/validation, annotations"),
        ("masks:{}", r"is no masks folder.*\n  expected: PATH with images/train, .*; or JPEGImages, .*; or images/tra"),
        ("voc:{}?size=3", "unknown option of voc:"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_was_expected(tmp_path, name, message):
    (tmp_path / "other").mkdir()
    with pytest.raises(HarnessError, match=message):
        masks.load(name.format(tmp_path))


@pytest.mark.parametrize(("lines", "query"), [(None, ""), ("one", ""), (None, "?classes=1"), (None, "?classes=many")])
def test_the_classes_must_be_known(tmp_path, lines, query):
    root = plain(tmp_path, {"train": 4, "val": 2})
    (root / "classes.txt").write_text(lines) if lines else (root / "classes.txt").unlink()
    with pytest.raises(HarnessError, match="2 to 255"):
        masks.load(f"masks:{root}{query}")


def test_too_few_images_are_an_error(tmp_path):
    with pytest.raises(HarnessError, match="a single image to learn from"):
        masks.load(f"masks:{plain(tmp_path / 'a', {'train': 1, 'val': 1})}")
    with pytest.raises(HarnessError, match=r"no images in .*val.txt"):
        masks.load(f"voc:{voc(tmp_path / 'b', val=0)}")


# -- the real one -----------------------------------------------------------------------------------------------------


def test_without_camvid_the_error_says_how_to_get_it(tmp_path):
    with pytest.raises(HarnessError, match=r"'camvid' was not found\n.*camvid128/camvid.npz\n  next: set HARNESS_DATA"):
        masks.load("camvid", tmp_path)


@needs_camvid
def test_camvid_has_its_official_parts_and_classes():
    data = masks.load("camvid", SHARED)
    assert (len(data.fit), len(data.select), data.test_n, data.spec.classes) == (367, 101, 233, 11)
    assert data.spec.names[0] == "Sky" and data.spec.names[-1] == "Bicyclist"
    assert data.revision == masks.load("camvid", SHARED).revision == "05ef02571d9d0946"
    found = data.fit.read(0)
    assert found.image.shape == (3, 96, 128) and found.mask.shape == (96, 128)
    counts = sum(torch.bincount(p.mask.flatten().long(), minlength=256) for p in data.fit)
    shares = counts / counts.sum()
    assert counts[11:255].sum() == 0 and shares[255].item() == pytest.approx(0.040, abs=1e-3)
    assert shares[3].item() == pytest.approx(0.317, abs=1e-3)  # road, as the data's own notes say


@needs_camvid
def test_another_file_under_camvids_name_is_refused(tmp_path):
    (tmp_path / "camvid128").mkdir()
    np.savez(tmp_path / "camvid128/camvid.npz", classes=np.array(["a"]))
    with pytest.raises(HarnessError, match="wrong checksum"):
        masks.load("camvid", tmp_path)
