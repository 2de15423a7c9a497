"""Names, places, parts and the door to the test images: on digits, and on the packed data where they are present."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.data import catalog
from harness.data import packed as form
from harness.data.command import list_rows, run_action
from harness.data.dataset import load
from harness.data.decode import chunks
from harness.data.fetch import verify
from harness.errors import HarnessError

SHARED = Path(os.environ.get("HARNESS_DATA") or Path(__file__).parents[3] / "shared" / "data")
packed = pytest.mark.skipif(not (SHARED / "cifar10/train.npz").is_file(), reason=f"no packed data in {SHARED}")

SELECTED = [15, 47, 51, 58, 106, 111]  # the first of digits' select part


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, session_cache, tmp_path):
    """No test reads or writes the user's own data and caches."""
    monkeypatch.setenv("HARNESS_CACHE", str(session_cache))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def test_listing_imports_neither_torch_nor_numpy():
    code = "import sys, harness.data.command as c; c.list_rows(); print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "set()", done.stderr


def test_digits_are_divided_by_a_fixed_key():
    data, again = load("digits"), load("digits")
    entry = catalog.ENTRIES["digits"]
    assert (len(data.train), data.test_n) == (entry.train_n, entry.test_n)
    assert (len(data.fit), len(data.select)) == (1295, 143)
    assert data.fit.images.shape == (1295, 1, 8, 8) and data.fit.images.dtype == torch.uint8
    assert not data.mirror and data.spec.classes == 10 and data.spec.size == 8
    assert data.revision == again.revision and len(data.revision) == 16
    assert torch.equal(data.select.index, again.select.index)
    # Golden: a changed split would quietly change what every stored number means.
    assert data.select.index[:6].tolist() == SELECTED
    assert data.fit.images.max() == 255 and data.fit.images.min() == 0


def test_parts_do_not_overlap_and_keep_every_image():
    data = load("digits")
    test = data.open_test("test")
    index = torch.cat([data.fit.index, data.select.index, test.index])
    assert sorted(index.tolist()) == list(range(1797))
    assert torch.equal(data.train.index, torch.cat([data.fit.index, data.select.index]))


def test_images_keep_their_labels():
    from sklearn.datasets import load_digits

    bunch, data = load_digits(), load("digits")
    for part in (data.fit, data.select, data.open_test("test")):
        index = part.index.numpy()
        assert (part.labels.numpy() == bunch.target[index]).all()
        assert abs(part.images[:, 0].numpy() / 255 - bunch.images[index] / 16).max() < 0.01


def test_digits_that_are_not_where_scikit_learn_has_them_are_told(monkeypatch, tmp_path):
    elsewhere = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("harness.data.arrays.find_spec", lambda _: elsewhere)
    with pytest.raises(HarnessError, match=r"cannot read .*digits\.csv\.gz"):
        load("digits")


def test_select_has_a_tenth_of_every_class():
    data = load("digits")
    train, select = (torch.bincount(part.labels, minlength=10) for part in (data.train, data.select))
    assert ((select - train / 10).abs() <= 0.5).all()


def test_the_test_part_opens_through_one_door_that_keeps_count():
    data = load("digits")
    assert data.opened == []
    first, second = data.open_test("linear"), data.open_test("knn")
    assert first is second
    assert [o.by for o in data.opened] == ["linear", "knn"]
    assert all(o.at.endswith("+00:00") for o in data.opened)


def test_loading_does_not_decode_test_images(monkeypatch, tmp_path):
    from harness.data import decode

    asked, real = [], decode.chunks

    def spy(images, index, channels, size):
        asked.append(index)
        return real(images, index, channels, size)

    monkeypatch.setattr(decode, "chunks", spy)
    data = load("digits")
    assert len(asked) == 1 and set(asked[0]) == set(data.train.index.tolist())
    data.open_test("test")
    assert len(asked) == 2


def test_subset_takes_positions():
    fit = load("digits").fit
    some = fit.subset(torch.tensor([5, 2]))
    assert len(some) == 2
    assert torch.equal(some.images[1], fit.images[2]) and some.index.tolist() == fit.index[[5, 2]].tolist()


def test_another_size_is_another_data_set():
    data, large = load("digits"), load("digits", image_size=16)
    assert large.train.images.shape[-2:] == (16, 16) and large.spec.size == 16
    assert large.title == "Digits (scikit-learn), 16 px"
    assert large.revision != data.revision
    assert torch.equal(large.train.labels, data.train.labels)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("cifar1O", None, ["unknown data set", "did you mean 'cifar10'"]),
        ("folder:x?siz=3", None, ["unknown option", "did you mean 'size'"]),
        ("folder:x?size=0", None, ["cannot read", "size=64"]),
        ("folder:nowhere", None, ["there is no folder", "nowhere"]),
        ("digits", 0, ["image size 0"]),
        ("cifar100", None, ["not found", ".cache/recognise-and-draw/data/cifar-100-python", "data fetch cifar100"]),
        ("flowers89", None, ["not found", "HARNESS_DATA"]),
    ],
)
def test_a_data_set_that_is_not_there(name, size, words):
    with pytest.raises(HarnessError) as error:
        load(name, image_size=size)
    for word in words:
        assert word in str(error.value)


def test_folders_are_searched_in_order(monkeypatch, tmp_path):
    assert [str(f) for f in catalog.data_folders()] == ["data", str(tmp_path / ".cache/recognise-and-draw/data")]
    monkeypatch.setenv("HARNESS_DATA", "/named")
    assert [str(f) for f in catalog.data_folders()][:2] == ["/named", "data"]
    assert catalog.data_folders(Path("given")) == [Path("given")]


def test_an_incomplete_folder_is_reported_as_such(tmp_path):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/train.npz").touch()
    with pytest.raises(HarnessError, match=r"cifar10 lacks test\.npz"):
        load("cifar10-jpeg", tmp_path)


def test_the_original_cifar10_wins_over_the_jpeg_copy(tmp_path):
    jpeg, real = tmp_path / "cifar10", tmp_path / "cifar-10-batches-py"
    for folder, entry in ((jpeg, "cifar10-jpeg"), (real, "cifar10")):
        folder.mkdir()
        for file in catalog.ENTRIES[entry].files:
            (folder / file).touch()
        assert catalog.resolve("cifar10", tmp_path).entry.name == entry
    assert catalog.resolve("cifar10-jpeg", tmp_path).where == jpeg


def test_rows_say_where_data_lie_or_how_to_have_them(capsys):
    rows = {row.name: row for row in list_rows()}
    assert list(rows) == [*catalog.ENTRIES, "folder:PATH", "camvid"]
    assert rows["digits"].where == "inside scikit-learn" and rows["digits"].images == "1,438 + 359"
    assert rows["cifar100"].where == "missing: python -m harness data fetch cifar100"
    run_action("list", None)
    assert "tiny-imagenet100" in capsys.readouterr().out
    run_action("verify", "digits")
    assert "nobody publishes" in capsys.readouterr().out


def test_actions_are_checked():
    with pytest.raises(HarnessError, match="did you mean 'fetch'"):
        run_action("fetsch", None)
    with pytest.raises(HarnessError, match="verify what"):
        run_action("verify", None)


@packed
def test_cifar10_is_the_jpeg_copy_where_there_is_no_other():
    found = catalog.resolve("cifar10", SHARED)
    assert (found.entry.name, found.entry.title) == ("cifar10-jpeg", "CIFAR-10 (JPEG q75)")
    splits = form.read(found)
    assert {which: len(split.labels) for which, split in splits.items()} == {"train": 50_000, "test": 10_000}
    # The published digest of the decoded pixels, in file order and as [n, H, W, C].
    test, total = splits["test"], hashlib.sha256()
    for chunk in chunks(test.open(), test.index, 3, 32):
        total.update(chunk.transpose(0, 2, 3, 1).tobytes())
    assert total.hexdigest().startswith("5fce8f6a84d7de12")


@packed
@pytest.mark.parametrize("name", ["cifar10-lossless4k", "flowers89"])
def test_packed_sets_have_the_counts_of_the_catalogue(name):
    data, entry = load(name, SHARED), catalog.ENTRIES[name]
    assert (len(data.train), data.test_n) == (entry.train_n, entry.test_n)
    test = data.open_test("test")
    assert test.images.shape == (entry.test_n, 3, entry.size, entry.size)
    assert len(test.labels.unique()) == entry.classes == len(data.select.labels.unique())


@packed
def test_tiny_imagenet_labels_are_renumbered():
    splits = form.read(catalog.resolve("tiny-imagenet100", SHARED))
    for which, n in ((form.TRAIN, 500), (form.TEST, 50)):
        labels = torch.from_numpy(splits[which].labels)
        assert torch.bincount(labels).tolist() == [n] * 100
    images = splits[form.TEST].open()
    assert images.name(501) == f"image 1 (val_blob) of {SHARED / 'tinyimagenet100/shard1.npz'}"


@packed
def test_checksums_of_the_packed_files_are_right():
    assert [c.file.name for c in verify("cifar10", SHARED)] == ["train.npz", "test.npz"]


@pytest.mark.skipif(
    catalog.locate(catalog.ENTRIES["fashion-mnist"], SHARED) is None, reason="Fashion-MNIST is not on this machine"
)
def test_fashion_mnist_from_its_idx_files():
    data = load("fashion-mnist", SHARED)
    assert torch.bincount(data.train.labels).tolist() == [6000] * 10
    assert torch.bincount(data.open_test("test").labels).tolist() == [1000] * 10
    assert data.train.images.shape == (60_000, 1, 28, 28) and data.mirror
    assert len(verify("fashion-mnist", SHARED)) == 4
