"""Bad input: broken, empty, grey and 16-bit images, odd labels, parts that are empty or lack a class.

Each is an error that names the image or the class, and leaves nothing in the cache. Further damage is in
test_data_forms.py and test_data_listed.py, form by form.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import cache
from harness.data.dataset import load
from harness.errors import HarnessError


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MIN_BYTES", 0)  # small sets, too, go through the cache


def photograph(path, value=90, mode="RGB", **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 40, (24, 32, 3)).astype(np.uint8)
    Image.fromarray(noise + np.uint8(value)).convert(mode).save(path, **how)


@pytest.fixture
def bugs(tmp_path):
    """A folder of JPEG photographs: 6 of each of 3 classes to train on, 2 to test."""
    for part, n in (("train", 6), ("test", 2)):
        for k, name in enumerate(("ant", "bee", "cow")):
            for i in range(n):
                photograph(tmp_path / f"bugs/{part}/{name}/{i}.jpg", 60 * k + i)
    return tmp_path / "bugs"


def name(root):
    return f"folder:{root}?size=8"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 8])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("<html>404 Not Found</html>")


def deep(path):
    """As medical and satellite images often come: Pillow reads it, and would make it white."""
    Image.fromarray(np.full((24, 32), 40_000, np.uint16)).save(path, "PNG")


DAMAGE = [
    (truncate, "truncated"),
    (empty, "cannot identify"),
    (text, "cannot identify"),
    (deep, "mode I;16, not of 8 bits"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_a_broken_image_to_train_on(bugs, tmp_path, damage, words):
    damage(bugs / "train/bee/3.jpg")
    with pytest.raises(HarnessError) as error:
        load(name(bugs))
    said = str(error.value)
    assert "train/bee/3.jpg cannot be decoded" in said and words in said and "take it out" in said
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_a_broken_image_to_test_on(bugs, tmp_path, damage, words):
    damage(bugs / "test/cow/1.jpg")
    data = load(name(bugs))
    held = sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file())
    with pytest.raises(HarnessError, match=r"test/cow/1\.jpg cannot be decoded") as error:
        data.open_test("linear")
    assert words in str(error.value)
    assert data.opened == []  # nobody saw it
    assert sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file()) == held


def test_a_grey_image_becomes_three_equal_channels(bugs):
    photograph(bugs / "train/ant/0.jpg", 70, "L")
    photograph(bugs / "train/ant/1.jpg", 71, "CMYK")
    data = load(name(bugs))
    grey = data.train.images[data.train.index == 0][0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    cmyk = data.train.images[data.train.index == 1][0].float().mean()
    assert abs(cmyk - 71 - 19.5) < 6  # and is not its own negative


def test_an_empty_test_part(bugs):
    for file in (bugs / "test").rglob("*.jpg"):
        file.unlink()
    with pytest.raises(HarnessError, match=r"no images in .*bugs/test"):
        load(name(bugs))


def test_a_train_part_without_images(bugs):
    for file in (bugs / "train").rglob("*.jpg"):
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(HarnessError, match=r"no images in .*bugs/train"):
        load(name(bugs))


def test_a_class_that_train_lacks(bugs):
    for file in (bugs / "train/cow").iterdir():
        file.unlink()
    with pytest.raises(HarnessError, match=r"class cow has no image in .*train \(1 of 3 classes are missing\)"):
        load(name(bugs))
    (bugs / "train/cow").rmdir()
    with pytest.raises(HarnessError, match=r"has the class 'cow', which the train part lacks"):
        load(name(bugs))


def test_a_class_that_is_in_every_part_or_refused(bugs):
    for i in range(2, 6):
        (bugs / f"train/bee/{i}.jpg").unlink()
    data = load(name(bugs))  # two images: one to fit, one to choose on
    for part in (data.fit, data.select, data.open_test("test")):
        assert set(part.labels.tolist()) == {0, 1, 2}
    (bugs / "train/bee/1.jpg").unlink()
    with pytest.raises(HarnessError, match=r"class 1 has a single image left of .*train[\s\S]*hold one out for select"):
        load(name(bugs))


@pytest.mark.parametrize(("left", "purpose"), [(1, "test"), (2, "select")])
def test_a_class_with_fewer_images_than_parts(bugs, left, purpose):
    """A folder without a test part gives up a fifth of every class, and then a tenth."""
    for i in range(left, 6):
        (bugs / f"train/ant/{i}.jpg").unlink()
    with pytest.raises(HarnessError, match=rf"class 0 has a single image left[\s\S]*hold one out for {purpose}"):
        load(name(bugs / "train"))


@pytest.mark.parametrize(("label", "shown"), [(0, -1), (11, 10)])
def test_labels_out_of_range(tmp_path, label, shown):
    """STL-10 numbers its classes 1 to 10."""
    for part, n in (("train", 20), ("test", 10)):
        labels = np.arange(n, dtype=np.uint8) % 10 + 1
        labels[3] = label if part == "train" else labels[3]
        (tmp_path / "stl10_binary").mkdir(exist_ok=True)
        labels.tofile(tmp_path / f"stl10_binary/{part}_y.bin")
        np.zeros((n, 3, 96, 96), np.uint8).tofile(tmp_path / f"stl10_binary/{part}_X.bin")
    with pytest.raises(HarnessError, match=rf"label {shown} of image 3 in .*train_X\.bin is out of range"):
        load("stl10", tmp_path)
