"""Data sets of photographs, made small in their makers' own layouts: what is in which split, and damaged lists."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import catalog
from harness.data.command import list_rows
from harness.data.dataset import load
from harness.errors import HarnessError
from tests.harness.test_data_fetch import md5

CLASSES = 3


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)


@pytest.fixture
def small(monkeypatch):
    """A data set's entry with few classes."""

    def shrink(name, classes=CLASSES):
        monkeypatch.setitem(catalog.ENTRIES, name, replace(catalog.ENTRIES[name], classes=classes))

    return shrink


class Pictures:
    """Writes photographs, each of a grey value of its own, and remembers which it was."""

    def __init__(self):
        self.values = {}

    def write(self, path, value=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        value = self.values[path.name] = 2 * len(self.values) if value is None else value
        width, height = ((20, 12), (12, 16), (9, 9))[len(self.values) % 3]
        Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path, quality=100)

    def seen(self, part):
        """The names of the part's images, by their values, with their labels."""
        flat = part.images.flatten(1)
        assert (flat == flat[:, :1]).all()
        names = {value: name for name, value in self.values.items()}
        return {names[v]: y for v, y in zip(flat[:, 0].tolist(), part.labels.tolist(), strict=True)}


@pytest.fixture
def pictures():
    return Pictures()


def flowers(root, pictures, monkeypatch):
    """Image i + 1 of class i % 102: four rounds of all classes, of which the second is val and the last two test."""
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder, classes = root / "flowers-102", 102
    ids = np.arange(1, 4 * classes + 1)
    for i in ids:
        pictures.write(folder / f"jpg/image_{i:05}.jpg", 2 * ((i - 1) % classes))
    savemat(folder / "imagelabels.mat", {"labels": (ids - 1) % classes + 1})
    rounds = np.split(ids, 4)
    savemat(folder / "setid.mat", {"trnid": rounds[0], "valid": rounds[1], "tstid": np.concatenate(rounds[2:])})
    files = {"image": ("102flowers.tgz", ""), **{k: (f, md5(folder / f)) for k, f in
             (("label", "imagelabels.mat"), ("setid", "setid.mat"))}}  # fmt: skip
    monkeypatch.setattr(Flowers102, "_file_dict", files)
    return folder


def test_flowers_train_is_the_official_train_and_val(tmp_path, monkeypatch):
    folder = flowers(tmp_path, Pictures(), monkeypatch)
    data = load("flowers102", tmp_path, image_size=8)
    assert (len(data.train), data.test_n, data.spec.classes, data.metric) == (204, 204, 102, "mean-per-class")
    # Stored order: the official train list, then the official val list.
    assert (data.train.labels == data.train.index % 102).all()
    assert (data.train.images.flatten(1) == 2 * data.train.labels[:, None]).all()
    assert data.open_test("test").labels.tolist() == list(range(102)) * 2
    (folder / "setid.mat").write_bytes(b"")
    with pytest.raises(HarnessError, match=r"damaged file in .*flowers-102"):
        load("flowers102", tmp_path)


def pets(root, pictures):
    folder = root / "oxford-iiit-pet"
    for split, n in (("trainval", 4), ("test", 2)):
        rows = []
        for k, breed in enumerate(["Abyssinian", "Bengal", "great_pyrenees"]):
            for i in range(n):
                name = f"{breed}_{split}{i}"
                pictures.write(folder / f"images/{name}.jpg")
                rows.append(f"{name} {k + 1} 1 1\n")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / f"annotations/{split}.txt").write_text("".join(rows))
    return folder


def test_pets(tmp_path, small, pictures):
    folder = pets(tmp_path, pictures)
    small("pets")
    data = load("pets", tmp_path, image_size=8)
    train, test = pictures.seen(data.train), pictures.seen(data.open_test("test"))
    assert len(train) == 12 and len(test) == 6
    assert train["great_pyrenees_trainval3.jpg"] == 2 and test["Bengal_test1.jpg"] == 1
    assert data.metric == "mean-per-class" and data.train.images.shape[-2:] == (8, 8)
    (folder / "annotations/test.txt").write_text("Bengal_test1 two\n")
    with pytest.raises(HarnessError, match="damaged file"):
        load("pets", tmp_path)
    (folder / "annotations/test.txt").write_text("Bengal_test1 4 1 1\n")
    with pytest.raises(HarnessError, match=r"label 3 of image 0 in .* is out of range"):
        load("pets", tmp_path)
    (folder / "annotations/test.txt").write_text("Bengal_gone 2 1 1\n")
    with pytest.raises(HarnessError, match=r"cannot read .*Bengal_gone\.jpg"):
        load("pets", tmp_path)


def dtd(root, pictures):
    folder = root / "dtd"
    (folder / "dtd/labels").mkdir(parents=True)
    for split, n in (("train", 2), ("val", 3), ("test", 2)):
        names = [f"{c}/{c}_{split}{i}.jpg" for i in range(n) for c in ("banded", "dotted", "woven")]
        for name in names:
            pictures.write(folder / "dtd/images" / name)
        (folder / f"dtd/labels/{split}1.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def test_dtd_is_its_first_split(tmp_path, small, pictures):
    folder = dtd(tmp_path, pictures)
    small("dtd")
    data = load("dtd", tmp_path, image_size=8)
    train, test = pictures.seen(data.train), pictures.seen(data.open_test("test"))
    assert len(train) == 15 and len(test) == 6 and data.metric == "top1"
    assert train["woven_val2.jpg"] == 2 and test["dotted_test0.jpg"] == 1
    # torchvision numbers the classes that it meets: without the first, all others would change their number.
    (folder / "dtd/labels/val1.txt").write_text("dotted/dotted_val0.jpg\nwoven/woven_val0.jpg\n")
    with pytest.raises(HarnessError, match=r"the val split in .* has 2 classes\n  expected: 3"):
        load("dtd", tmp_path)


def test_eurosat_holds_out_a_fifth(tmp_path, small, pictures):
    for name in ("AnnualCrop", "Forest", "River"):
        for i in range(10):
            pictures.write(tmp_path / f"eurosat/2750/{name}/{name}_{i}.jpg")
    small("eurosat")
    data = load("eurosat", tmp_path, image_size=8)
    train, test = pictures.seen(data.train), pictures.seen(data.open_test("test"))
    assert torch.bincount(data.train.labels).tolist() == [8] * 3 and list(test.values()).count(2) == 2
    assert not set(train) & set(test) and len(data.fit) == 21
    assert (train | test)["River_3.jpg"] == 2


def test_food(tmp_path, small, pictures):
    for split, n in (("train", 4), ("test", 2)):
        listing = {c: [f"{c}/{split}-{c}-{i}" for i in range(n)] for c in ("waffles", "apple_pie", "ravioli")}
        for names in listing.values():
            for name in names:
                pictures.write(tmp_path / f"food-101/images/{name}.jpg")
        (tmp_path / "food-101/meta").mkdir(exist_ok=True)
        (tmp_path / f"food-101/meta/{split}.json").write_text(json.dumps(listing))
    small("food101")
    data = load("food101", tmp_path, image_size=8)
    train, test = pictures.seen(data.train), pictures.seen(data.open_test("test"))
    assert train["train-apple_pie-0.jpg"] == 0 and test["test-waffles-1.jpg"] == 2 and len(train) == 12
    (tmp_path / "food-101/meta/train.json").write_text('{"waffles": [')
    with pytest.raises(HarnessError, match=r"damaged file[\s\S]*data fetch food101"):
        load("food101", tmp_path)


def cars(root, pictures):
    from scipy.io import savemat

    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    for split, n, path in (("train", 6, "devkit/cars_train_annos.mat"), ("test", 3, "cars_test_annos_withlabels.mat")):
        rows = np.zeros(n, [("class", "O"), ("fname", "O")])
        for i in range(n):
            rows[i] = (i % 3 + 1, f"{split}{i:05}.jpg")
            pictures.write(folder / f"cars_{split}" / rows[i]["fname"])
        savemat(folder / path, {"annotations": rows})
    names = np.array(["AM General Hummer", "Acura RL", "Acura TL"], object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    return folder


def test_cars(tmp_path, small, pictures):
    folder = cars(tmp_path, pictures)
    small("cars")
    data = load("cars", tmp_path, image_size=8)
    train, test = pictures.seen(data.train), pictures.seen(data.open_test("test"))
    assert train["train00004.jpg"] == 1 and test["test00002.jpg"] == 2 and len(train) == 6
    (folder / "cars_test_annos_withlabels.mat").write_bytes(b"")
    with pytest.raises(HarnessError, match=r"damaged file[\s\S]*DATA/stanford_cars"):
        load("cars", tmp_path)


def test_aircraft_are_told_apart_by_variant(tmp_path, small, pictures):
    folder = tmp_path / "aircraft/fgvc-aircraft-2013b/data"
    variants = ["707-320", "A380", "Tu-134 B"]
    for split, n in (("trainval", 4), ("test", 2)):
        rows = []
        for k, variant in enumerate(variants):
            for i in range(n):
                name = f"{'12'[split == 'test']}{k}{i}"
                pictures.write(folder / f"images/{name}.jpg")
                rows.append(f"{name} {variant}\n")
        (folder / f"images_variant_{split}.txt").write_text("".join(rows))
    (folder / "variants.txt").write_text("".join(f"{v}\n" for v in variants))
    small("aircraft")
    data = load("aircraft", tmp_path, image_size=8)
    train, test = pictures.seen(data.train), pictures.seen(data.open_test("test"))
    assert train["113.jpg"] == 1 and test["221.jpg"] == 2 and data.metric == "mean-per-class"
    (folder / "images_variant_test.txt").write_text("220 Concorde\n")
    with pytest.raises(HarnessError, match="Concorde"):
        load("aircraft", tmp_path)


def test_their_size_is_64_unless_another_is_asked_for(tmp_path, small, pictures):
    pets(tmp_path, pictures)
    small("pets")
    default, small_ = load("pets", tmp_path), load("pets", tmp_path, image_size=16)
    assert default.spec.size == default.train.images.shape[-1] == 64 and default.title == "Oxford-IIIT Pets"
    assert small_.title == "Oxford-IIIT Pets, 16 px" and small_.revision != default.revision


def test_a_copy_elsewhere_is_the_same_data(tmp_path, small):
    small("pets")
    for place in ("one", "two/pets"):
        pets(tmp_path / place, Pictures())
    assert load("pets", tmp_path / "one").revision == load("pets", tmp_path / "two").revision


def test_they_are_listed_with_how_to_have_them(tmp_path):
    rows = {row.name: row for row in list_rows(tmp_path)}
    for name in ("flowers102", "pets", "dtd", "eurosat", "food101", "aircraft"):
        assert rows[name].where == f"missing: python -m harness data fetch {name}"
    assert "offline" in rows["cars"].where and "stanford_cars" in rows["cars"].where
    assert rows["food101"].images == "75,750 + 25,250"


def test_a_half_unpacked_data_set_says_what_it_lacks(tmp_path, pictures):
    folder = pets(tmp_path, pictures)
    (folder / "annotations/test.txt").unlink()
    with pytest.raises(HarnessError, match=r"oxford-iiit-pet lacks annotations/test\.txt"):
        load("pets", tmp_path)
