"""Fetching, with file:// addresses in place of the network."""

import hashlib
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from rich.progress import Progress
from torchvision.datasets import CIFAR10, FashionMNIST, FGVCAircraft, Flowers102, OxfordIIITPet

from harness.data import catalog, fetch
from harness.data.dataset import load
from harness.data.fetch import fetch as fetch_data
from harness.errors import HarnessError

REFUSED = "http://127.0.0.1:9/"  # nothing listens there


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small CIFAR-10 archive, with torchvision told its address and checksums."""
    source = tmp_path / "published/cifar-10-batches-py"
    source.mkdir(parents=True)
    digests = {}
    for name in catalog.CIFAR10_FILES:
        labels = [*range(10)] * 2
        content = {"data": np.zeros((20, 3072), np.uint8), "labels": labels, "label_names": list("abcdefghij")}
        (source / name).write_bytes(pickle.dumps(content))
        digests[name] = md5(source / name)
    path = tmp_path / "published/cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(source, source.name)
    monkeypatch.setattr(CIFAR10, "url", path.as_uri())
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(path))
    monkeypatch.setattr(CIFAR10, "train_list", [[n, digests[n]] for n in catalog.CIFAR10_FILES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": digests["batches.meta"]})
    return path


def test_fetched_unpacked_loaded_and_verified(archive, tmp_path):
    with Progress(disable=True) as progress:
        where = fetch_data("cifar10", tmp_path / "data", progress)
    (task,) = progress.tasks
    assert task.completed == task.total == archive.stat().st_size
    assert where == tmp_path / "data/cifar10/cifar-10-batches-py"
    assert len(load("cifar10", tmp_path / "data").train) == 100
    assert len(fetch.verify("cifar10", tmp_path / "data")) == 6
    archive.unlink()
    assert fetch_data("cifar10", tmp_path / "data") == where  # there already: nothing is downloaded
    (where / "data_batch_2").write_bytes(b"other")
    with pytest.raises(HarnessError, match=r"wrong checksum of .*data_batch_2"):
        fetch.verify("cifar10", tmp_path / "data")


def test_a_wrong_file_is_not_kept(archive, tmp_path):
    archive.write_bytes(b"something else")
    with pytest.raises(HarnessError, match="wrong checksum"):
        fetch_data("cifar10", tmp_path / "data")
    assert [p for p in (tmp_path / "data").rglob("*") if p.is_file()] == []


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", REFUSED + "cifar.tar.gz")
    with pytest.raises(HarnessError) as error:
        fetch_data("cifar10", tmp_path / "data")
    for word in ("cannot fetch cifar10", "refused", "copy its folder to", str(tmp_path / "data/cifar10")):
        assert word in str(error.value)
    assert [p for p in (tmp_path / "data").rglob("*") if p.is_file()] == []


def test_the_next_mirror_is_tried(tmp_path, monkeypatch):
    good = tmp_path / "mirror"
    good.mkdir()
    resources = []
    for name in catalog.IDX:
        (good / f"{name}.gz").write_bytes(name.encode())
        resources.append((f"{name}.gz", md5(good / f"{name}.gz")))
    monkeypatch.setattr(FashionMNIST, "mirrors", [REFUSED, good.as_uri() + "/"])
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    here = catalog.ENTRIES["fashion-mnist"]
    places = tuple(p for p in here.places if not p.startswith("/"))
    monkeypatch.setitem(catalog.ENTRIES, "fashion-mnist", catalog.replace(here, places=places))
    assert fetch_data("fashion-mnist", tmp_path / "data") == tmp_path / "data/fashion-mnist/FashionMNIST/raw"


def test_tiny_imagenet_zip(tmp_path, monkeypatch):
    path = tmp_path / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny-imagenet-200/train/a/images/0.png", "x")
        file.writestr("tiny-imagenet-200/val/val_annotations.txt", "")
    monkeypatch.setattr(fetch, "TINY_IMAGENET", (path.as_uri(), md5(path)))
    where = fetch_data("tiny-imagenet", tmp_path / "data")
    assert where == tmp_path / "data/tiny-imagenet/tiny-imagenet-200"
    assert fetch.verify("tiny-imagenet", tmp_path / "data") == []


def archived(path, *files):
    """An archive of empty files."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in files:
                archive.writestr(name, "")
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name in files:
            archive.addfile(tarfile.TarInfo(name))
    return path


def test_flowers_are_put_where_torchvision_looks(tmp_path, monkeypatch):
    published = archived(tmp_path / "published/102flowers.tgz", "jpg/image_00001.jpg").parent
    for name in ("imagelabels.mat", "setid.mat"):
        (published / name).write_bytes(name.encode())
    files = {name: (name, md5(published / name)) for name in ("102flowers.tgz", "imagelabels.mat", "setid.mat")}
    monkeypatch.setattr(Flowers102, "_download_url_prefix", published.as_uri() + "/")
    monkeypatch.setattr(Flowers102, "_file_dict", files)
    where = fetch_data("flowers102", tmp_path / "data")
    assert where == tmp_path / "data/flowers102/flowers-102" and (where / "jpg/image_00001.jpg").is_file()
    assert len(fetch.verify("flowers102", tmp_path / "data")) == 3
    (where / "setid.mat").write_bytes(b"other")
    with pytest.raises(HarnessError, match=r"wrong checksum of .*setid\.mat"):
        fetch.verify("flowers102", tmp_path / "data")


def test_pets_come_in_two_archives(tmp_path, monkeypatch):
    images = archived(tmp_path / "published/images.tar.gz", "images/Bengal_1.jpg")
    lists = archived(tmp_path / "published/annotations.tar.gz", "annotations/trainval.txt", "annotations/test.txt")
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", [(p.as_uri(), md5(p)) for p in (images, lists)])
    assert fetch_data("pets", tmp_path / "data") == tmp_path / "data/pets/oxford-iiit-pet"


def test_eurosat_and_aircraft(tmp_path, monkeypatch):
    zipped = archived(tmp_path / "published/EuroSAT.zip", "2750/River/River_1.jpg")
    monkeypatch.setattr(fetch, "EUROSAT", (zipped.as_uri(), md5(zipped)))
    assert fetch_data("eurosat", tmp_path / "data") == tmp_path / "data/eurosat"
    names = ("images/1.jpg", "variants.txt", "images_variant_trainval.txt", "images_variant_test.txt")
    packed = archived(tmp_path / "published/a.tar.gz", *(f"fgvc-aircraft-2013b/data/{name}" for name in names))
    monkeypatch.setattr(FGVCAircraft, "_URL", packed.as_uri())
    with pytest.raises(HarnessError, match="wrong checksum"):
        fetch_data("aircraft", tmp_path / "data")
    monkeypatch.setattr(fetch, "AIRCRAFT_MD5", md5(packed))
    assert fetch_data("aircraft", tmp_path / "data") == tmp_path / "data/aircraft/fgvc-aircraft-2013b"
    assert {row.size_bytes for row in fetch.available(tmp_path / "data") if row.entry.name == "aircraft"} == {None}


@pytest.mark.parametrize("name", ["flowers102", "pets", "dtd", "eurosat", "food101", "aircraft"])
def test_every_file_of_photographs_has_an_address_and_a_checksum(name):
    remotes = fetch._remotes(catalog.ENTRIES[name])
    assert remotes and all(url.startswith("http") for remote in remotes for url in remote.urls)
    assert all(len(remote.md5) == 32 for remote in remotes)


def test_cars_are_offline_and_that_is_said(tmp_path):
    with pytest.raises(HarnessError) as error:
        fetch_data("cars", tmp_path)
    for word in ("'cars' cannot be downloaded", "its makers took it offline", "DATA/stanford_cars"):
        assert word in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_downloaded(tmp_path):
    assert fetch_data("digits") is None
    with pytest.raises(HarnessError, match="'flowers89' cannot be downloaded"):
        fetch_data("flowers89", tmp_path)
    with pytest.raises(HarnessError, match="did you mean 'cifar10'"):
        fetch_data("cifar", tmp_path)


def test_a_folder_that_cannot_be_written(archive, tmp_path):
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(HarnessError, match="cannot write"):
        fetch_data("cifar10", tmp_path / "data")


def test_where_fetched_data_go(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fetch.fetch_folder() == tmp_path / "home/.cache/recognise-and-draw/data"
    (tmp_path / "data").mkdir()
    assert str(fetch.fetch_folder()) == "data"
    monkeypatch.setenv("HARNESS_DATA", "named")
    assert str(fetch.fetch_folder()) == "named"
    assert fetch.fetch_folder(tmp_path) == tmp_path
