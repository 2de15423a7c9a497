"""Every form data are stored in, made small: image folders, packed files, torchvision's files; and their damage."""

import gzip
import hashlib
import io
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import arrays, packed
from harness.data.dataset import load
from harness.errors import HarnessError


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def picture(value: int, width: int = 20, height: int = 12) -> Image.Image:
    """Grey in the middle, red outside of the centre square."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 255
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = value
    return Image.fromarray(pixels)


def image_folder(root, classes=("ant", "bee"), n=10, below=""):
    for label, name in enumerate(classes):
        (root / name / below).mkdir(parents=True)
        for i in range(n):
            picture(100 * label + i).save(root / name / below / f"{i:02}.png")
    return root


def values(part):
    """The one grey value of each image; fails where an image is not all of it."""
    flat = part.images.flatten(1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


def test_folder_with_train_and_test(tmp_path):
    image_folder(tmp_path / "bugs/train")
    image_folder(tmp_path / "bugs/test", n=3)
    data = load(f"folder:{tmp_path}/bugs?size=8&mirror=0")
    assert (data.spec.name, data.spec.classes, data.title) == ("folder-bugs", 2, "folder bugs, 8 px")
    assert not data.mirror
    assert data.train.images.shape == (20, 3, 8, 8)
    assert (len(data.fit), len(data.select), data.test_n) == (18, 2, 6)
    assert values(data.train) == [100 * y + i % 10 for y, i in zip(data.train.labels, data.train.index, strict=True)]
    assert values(data.open_test("test")) == [0, 1, 2, 100, 101, 102]


def test_folder_without_split_is_divided_by_a_fixed_key(tmp_path):
    data, again = (load(f"folder:{image_folder(tmp_path / n)}", image_size=8) for n in ("one", "two"))
    assert data.test_n == 4 and len(data.train) == 16
    assert data.test_n == len(data.open_test("test"))
    assert data.revision == again.revision  # the same pictures in another folder are the same data


def test_a_changed_picture_changes_the_revision(tmp_path):
    root = image_folder(tmp_path / "bugs")
    before = load(f"folder:{root}?size=8").revision
    path = root / "ant/03.png"
    picture(7).save(path)
    os.utime(path, ns=(1, 1))
    assert load(f"folder:{root}?size=8").revision != before


def test_tiny_imagenet_layout(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    image_folder(root / "train", below="images")
    (root / "test/images").mkdir(parents=True)  # its test part has no labels
    (root / "val/images").mkdir(parents=True)
    rows = []
    for i, name in enumerate(["bee", "ant", "bee"]):
        picture(200 + i).save(root / f"val/images/val_{i}.png")
        rows.append(f"val_{i}.png\t{name}\t0\t0\t62\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(rows))
    test = load(f"folder:{root}").open_test("test")
    assert values(test) == [200, 201, 202] and test.labels.tolist() == [1, 0, 1]


def test_grey_and_palette_pictures_become_three_channels(tmp_path):
    root = image_folder(tmp_path / "bugs")
    picture(50).convert("L").crop((4, 0, 16, 12)).save(root / "ant/00.png")
    picture(51).convert("P").save(root / "ant/01.png")
    assert load(f"folder:{root}").train.images.shape[1] == 3


def break_image(root):
    (root / "train/bee/04.png").write_bytes((root / "train/bee/04.png").read_bytes()[:60])


def drop_test_class(root):
    for file in (root / "test/bee").iterdir():
        file.unlink()


def add_test_class(root):
    image_folder(root / "test", classes=["cow"])


def rename_test_classes(root):
    for name in ("ant", "bee"):
        (root / "test" / name).rename(root / "test" / f"x{name}")


def one_image(root):
    for file in sorted((root / "train/ant").iterdir())[1:]:
        file.unlink()


def dangling_link(root):
    (root / "train/ant/zz.png").symlink_to(root / "gone.png")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_image, ["train/bee/04.png", "cannot be decoded"]),
        (drop_test_class, ["class bee has no image", "test"]),
        (add_test_class, ["'cow'", "train part lacks"]),
        (rename_test_classes, ["holds none of the 2 classes"]),
        (one_image, ["class 0 has a single image"]),
        (dangling_link, ["cannot read", "zz.png"]),
    ],
)
def test_damaged_folders(tmp_path, damage, words):
    image_folder(tmp_path / "bugs/train")
    image_folder(tmp_path / "bugs/test", n=3)
    damage(tmp_path / "bugs")
    with pytest.raises(HarnessError) as error:
        load(f"folder:{tmp_path}/bugs")
    for word in words:
        assert word in str(error.value)


def test_folder_without_classes(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(HarnessError, match="no class folders"):
        load(f"folder:{tmp_path}/empty")


# -- packed --------------------------------------------------------------------------------------------------------


def encode(value: int) -> bytes:
    file = io.BytesIO()
    picture(value, 32, 32).save(file, "PNG")
    return file.getvalue()


def pack(path, labels, spoil=None):
    pieces = [encode(i) for i in range(len(labels))]
    if spoil is not None:
        pieces[spoil] = pieces[spoil][:50]
    offsets = np.cumsum([0, *map(len, pieces)])
    path.parent.mkdir(exist_ok=True)
    np.savez(path, blob=np.frombuffer(b"".join(pieces), np.uint8), offsets=offsets, labels=np.uint8(labels))


def packed_cifar(root, **damage):
    pack(root / "cifar10/train.npz", list(range(10)) * 3, **damage)
    pack(root / "cifar10/test.npz", range(10))
    return root


def test_packed_files(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHA256", {})
    data = load("cifar10", packed_cifar(tmp_path))
    assert values(data.train) == data.train.index.tolist()
    assert (data.train.labels == data.train.index % 10).all()
    assert values(data.open_test("test")) == list(range(10))


def test_another_file_under_a_known_name_is_refused(tmp_path):
    with pytest.raises(HarnessError, match=r"wrong checksum of .*train\.npz"):
        load("cifar10", packed_cifar(tmp_path))


def test_a_corrupt_packed_image_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHA256", {})
    with pytest.raises(HarnessError, match=r"image 17 .*train\.npz cannot be decoded"):
        load("cifar10", packed_cifar(tmp_path, spoil=17))


def test_packed_labels_out_of_range(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHA256", {})
    packed_cifar(tmp_path)
    pack(tmp_path / "cifar10/test.npz", [*range(9), 10])
    with pytest.raises(HarnessError, match=r"label 10 of image 9 in .* is out of range"):
        load("cifar10", tmp_path)


def test_packed_class_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHA256", {})
    packed_cifar(tmp_path)
    pack(tmp_path / "cifar10/test.npz", [*range(9), 0])
    with pytest.raises(HarnessError, match=r"class 9 has no image in .*test\.npz"):
        load("cifar10", tmp_path)


def test_a_truncated_packed_file(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHA256", {})
    path = packed_cifar(tmp_path) / "cifar10/train.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HarnessError, match="cannot read 'labels'"):
        load("cifar10", tmp_path)


# -- whole arrays --------------------------------------------------------------------------------------------------


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """torchvision's CIFAR-10 layout with 4 + 1 images a class; image i is all of value i."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [*range(10)] * (1 + (k < 5))
        pixels = np.repeat(np.arange(len(labels), dtype=np.uint8)[:, None] + 20 * (k % 5), 3072, 1)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    digests = {f.name: md5(f) for f in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", digests[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": digests["batches.meta"]})
    return tmp_path


def test_cifar_as_torchvision_stores_it(cifar):
    data = load("cifar10", cifar)
    assert data.title == "CIFAR-10" and data.spec.name == "cifar10"
    assert values(data.train) == data.train.index.tolist()
    assert values(data.open_test("test")) == list(range(10))


def test_cifar_with_a_wrong_checksum(cifar):
    path = cifar / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(HarnessError, match="wrong checksum"):
        load("cifar10", cifar)


def test_svhn_as_torchvision_stores_it(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    known = {}
    for which, n in (("train", 30), ("test", 10)):
        path = tmp_path / f"{which}_32x32.mat"
        labels = np.arange(n) % 10
        labels[labels == 0] = 10  # as its makers number the digit 0
        pixels = np.broadcast_to(np.arange(n, dtype=np.uint8), (32, 32, 3, n))
        savemat(path, {"X": pixels, "y": labels[:, None]})
        known[which] = ["", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", known)
    data = load("svhn", tmp_path)
    assert values(data.train) == data.train.index.tolist()
    assert (data.train.labels == data.train.index % 10).all() and not data.mirror
    (tmp_path / "test_32x32.mat").write_bytes(b"")
    with pytest.raises(HarnessError, match="wrong checksum"):
        load("svhn", tmp_path)


def test_stl10_is_stored_column_by_column(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    ramp = np.arange(96, dtype=np.uint8)[:, None].repeat(96, 1)  # brighter downwards
    for which, n in (("train", 20), ("test", 10)):
        np.stack([np.stack([ramp.T] * 3)] * n).tofile(folder / f"{which}_X.bin")
        (np.arange(n, dtype=np.uint8) % 10 + 1).tofile(folder / f"{which}_y.bin")
    data = load("stl10", tmp_path)
    assert torch.equal(data.train.images[3, 1], torch.from_numpy(ramp))
    assert (data.train.labels == data.train.index % 10).all()
    (folder / "test_X.bin").write_bytes(b"12")
    with pytest.raises(HarnessError, match="has 2 bytes"):
        load("stl10", tmp_path)


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """Small idx files, the train part gzipped; their digests stand in for the published ones."""
    folder, known = tmp_path / "FashionMNIST/raw", {}
    folder.mkdir(parents=True)
    for prefix, n, suffix in (("train", 40, ".gz"), ("t10k", 10, "")):
        pixels = np.arange(n, dtype=np.uint8).repeat(784).tobytes()
        labels = (np.arange(n, dtype=np.uint8) % 10).tobytes()
        for name, content in ((f"{prefix}-images-idx3-ubyte", bytes(16) + pixels),
                              (f"{prefix}-labels-idx1-ubyte", bytes(8) + labels)):  # fmt: skip
            known[name] = hashlib.sha256(content).hexdigest()
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    monkeypatch.setattr(arrays, "IDX_SHA256", known)
    return tmp_path


def test_idx_files_gzipped_or_not(fashion):
    data = load("fashion-mnist", fashion)
    assert values(data.train) == data.train.index.tolist()
    assert values(data.open_test("test")) == list(range(10))


def test_damaged_idx_files(fashion):
    path = fashion / "FashionMNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(HarnessError, match=r"cannot read .*train-images"):
        load("fashion-mnist", fashion)
    path.write_bytes(gzip.compress(b"other"))
    with pytest.raises(HarnessError, match=r"wrong checksum of .*train-images"):
        load("fashion-mnist", fashion)
