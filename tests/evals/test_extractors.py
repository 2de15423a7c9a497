"""The stand-ins that are read from files, several networks at once, and copies among the samples."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from evals import _neighbours, _panels, _resnet, _standin, _yardstick, generation
from harness.data import catalog
from harness.errors import HarnessError
from harness.evaluation import Subject, evaluate
from harness.method import DataSpec, Reconstruction
from harness.rng import Rng
from tests.evals.kit import CLASSES, SIZE, Toy, ToyData, context, toy_data

CONFIG = generation.Config(samples=100, seeds=1, chunk=50, kernel_subsets=2, kernel_size=40, score_splits=2)


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.delenv(_yardstick.ENVIRONMENT, raising=False)
    monkeypatch.setattr(_standin, "FEWEST", 20)
    monkeypatch.setattr(_standin, "EPOCHS", 1)


def run(where, config=CONFIG):
    return evaluate("generation", where, config, subject=Subject(reference="toy"))


# -- a classifier in a file -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "weights" / "cifar10_resnet8.safetensors"
    path.parent.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_file(_resnet.ResNet(1, 10).state_dict(), path)
    return path


def colour_data() -> ToyData:
    grey = toy_data(fit=100, select=24, test=20)
    for part in (grey.train, grey.test):
        object.__setattr__(part, "images", F.interpolate(part.images.expand(-1, 3, -1, -1), scale_factor=4))
    return replace(grey, spec=DataSpec("toy", 3, 32, CLASSES))


class Noise(Toy):
    def sample(self, n, rng, labels=None, steps=None):
        return rng.uniform("samples", (n, 3, 32, 32)) * 2 - 1


def test_the_network_is_he_and_others(file):
    net, name = _resnet.load(file)
    assert name.startswith("resnet8-") and not net.training
    assert sum(p.numel() for p in _resnet.ResNet(3, 10).parameters()) == 269_722  # 0.27 M, table 6 of the paper
    assert sum(p.numel() for p in _resnet.ResNet(9, 10).parameters()) == 853_018  # 0.85 M


def test_shortcuts_take_every_second_pixel_and_pad_with_zeros():
    block = _resnet.Block(4, 8, 2).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 4, 6, 6)
    found = block(x)
    assert torch.equal(found[:, 2:6], x[:, :, ::2, ::2]) and not found[:, :2].any() and not found[:, 6:].any()


def test_the_shared_classifiers_reach_their_known_accuracy():
    """On the first 400 test images in JPEG form; the data's README says 81.0 and 83.2 % of all 10,000."""
    names = ("cifar10_resnet20", "cifar10_resnet56")
    found = {path.stem: path for folder in catalog.data_folders() for path in (folder / "weights").glob("*resnet*")}
    place = catalog.locate(catalog.ENTRIES["cifar10-jpeg"])
    if not found.keys() >= set(names) or place is None:
        pytest.skip("neither the classifiers nor CIFAR-10 in JPEG form lie in HARNESS_DATA")
    packed = np.load(place.where / "test.npz")
    blob, offsets, labels = packed["blob"], packed["offsets"], torch.from_numpy(packed["labels"][:400])
    files = (io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes()) for i in range(400))
    images = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])
    for name, known in zip(names, (81.0, 83.2), strict=True):
        net, _ = _resnet.load(found[name])
        with torch.no_grad():
            guess = net.logits(net.features(images.permute(0, 3, 1, 2))).argmax(dim=1)
        right = 100 * (guess == labels).double().mean().item()
        assert right == pytest.approx(known, abs=4)  # one standard error of 400 images is 1.9


def test_two_networks_see_one_set_of_samples(tmp_path, file, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(file.parent.parent))
    calls = []

    class Counted(Noise):
        def sample(self, n, rng, labels=None, steps=None):
            calls.append(n)
            return super().sample(n, rng)

    record = run(context(tmp_path, Counted(), colour_data()), replace(CONFIG, extractors=("auto", "cifar10_resnet8")))
    assert calls == [50, 50]
    _, name = _resnet.load(file)
    own, label = record.chosen["extractor"], f"{name} (CIFAR-10)"
    titles = [number.title for number in record.numbers.values() if number.title.startswith("FD")]
    assert titles == [f"FD ({own} on toy, n=100, train)", f"FD ({label}, n=100, train)"]
    assert record.chosen[name]["extractor"] == name and f"{name}_recall_train" in record.numbers
    assert [said.split(":")[0] for said in record.chosen["remarks"]] == ["canary", "canary"]
    alone = run(context(tmp_path, Noise(), colour_data()), replace(CONFIG, extractors=(str(file),)))
    assert alone.numbers["frechet_train"].value == record.numbers[f"{name}_frechet_train"].value


def test_files_that_hold_no_such_network_are_named(tmp_path, file):
    state = load_file(file)
    wrong = {
        "missing": None,
        "text": b"<html>404</html>",
        "other": {"fc.weight": torch.zeros(2, 2)},
        "headless": {key: value for key, value in state.items() if not key.startswith("linear")},
        "half": {key: value for key, value in state.items() if not key.startswith("layer3")},
        "wide": state | {"conv1.weight": torch.zeros(20, 3, 3, 3)},
    }
    for name, content in wrong.items():
        path = tmp_path / f"{name}.safetensors"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            save_file(content, path)
        where = context(tmp_path / "out", Noise(), colour_data())
        with pytest.raises(HarnessError, match=rf"{name}\.safetensors[\s\S]*expected.*CIFAR ResNet"):
            run(where, replace(CONFIG, extractors=(str(path),)))
        assert not where.pictures.exists() and not where.cache.exists()


def test_a_classifier_for_other_images_is_refused(tmp_path, file):
    with pytest.raises(HarnessError, match=r"resnet8-.* for toy, images of 1 channel\(s\) and 8 px"):
        run(context(tmp_path), replace(CONFIG, extractors=(str(file),)))


def test_a_name_that_is_nowhere_lists_what_there_is(tmp_path, file, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(file.parent.parent))
    with pytest.raises(HarnessError, match=r"unknown extractor 'cifar10_resnet9'[\s\S]*mean 'cifar10_resnet8'"):
        run(context(tmp_path, Noise(), colour_data()), replace(CONFIG, extractors=("cifar10_resnet9",)))
    with pytest.raises(HarnessError, match="'inception' without weights"):
        run(context(tmp_path), replace(CONFIG, extractors=("inception",)))


def test_a_cached_stand_in_of_other_images_is_refused(tmp_path):
    """Two data sets of one name and revision do not happen; a file copied by hand does."""
    _standin.stand_in(toy_data(), tmp_path)
    with pytest.raises(HarnessError, match="for images of 1 channel"):
        _standin.stand_in(colour_data(), tmp_path)


# -- copies -----------------------------------------------------------------------------------------------------------


def test_nearest_is_the_nearest_over_all_blocks(monkeypatch):
    monkeypatch.setattr(_neighbours, "ROWS", 7)
    of, among = (Rng(0).normal(name, (n, 5)) for name, n in (("of", 11), ("among", 40)))
    near, which = _neighbours.nearest(of, among, 3)
    every = (of[:, None] - among[None]).square().sum(-1).sqrt()
    torch.testing.assert_close(near, every.sort(dim=1).values[:, :3], atol=1e-5, rtol=0)
    assert torch.equal(which, every.argsort(dim=1)[:, :3])


class Copying(Toy):
    """Draws images of the fit part, or of the held-out part."""

    def __init__(self, images) -> None:
        super().__init__()
        self.images = images

    def sample(self, n, rng, labels=None, steps=None):
        return self.images[rng.integers("which", len(self.images), (n,))].float() / 127.5 - 1


def test_copies_of_training_images_are_counted_and_shown(tmp_path):
    data = toy_data(fit=300, select=200)
    copied = run(context(tmp_path / "a", Copying(data.fit.images), data))
    unseen = run(context(tmp_path / "b", Copying(data.select.images), data))
    assert copied.numbers["copies"].value == 100 and unseen.numbers["copies"].value < 5
    assert max(copied.chosen["copies_median_ratio"]) < 0.01
    assert unseen.chosen["copies_median_ratio"][0] == pytest.approx(1, abs=0.1)
    assert copied.numbers["frechet_train"].value < 2 * unseen.numbers["frechet_train"].value  # which does not see it
    assert copied.test_opened == []
    picture = np.asarray(Image.open(tmp_path / "a" / "pictures" / generation.NEIGHBOURS))
    tiles = picture[::4, ::4].reshape(16, SIZE + 2, 11, SIZE + 2)[:, 1:-1, :, 1:-1]
    for row in tiles.swapaxes(1, 2):  # sample, gap, four by features, gap, four by pixels
        assert (row[0] == row[2]).all() and (row[0] == row[7]).all() and (row[[1, 6]] == 255).all()
        assert not (row[3] == row[0]).all()


# -- what is filled in ------------------------------------------------------------------------------------------------


class Filling(Toy):
    """Fills in with black."""

    def reconstruct(self, images, hide, rng):
        if isinstance(hide, float):
            hidden = rng.uniform("mask", images[:, 0].shape) < hide
        else:
            hidden = hide.expand(len(images), -1, -1)
        return Reconstruction(images.masked_fill(hidden[:, None], -1.0), hidden)


def test_panels_show_the_image_what_is_hidden_and_what_is_filled_in(tmp_path):
    where = context(tmp_path, Filling())
    record = run(where, replace(CONFIG, grid=5))
    assert generation.PANELS in record.pictures
    picture = np.asarray(Image.open(where.pictures / generation.PANELS))[::8, ::8]
    tiles = picture.reshape(6, SIZE + 2, 5, SIZE + 2)[:, 1:-1, :, 1:-1].swapaxes(1, 2)  # [6 rows, 5, H, W]
    images = where.part("select").pixels(0, 5)[:, 0].numpy()
    assert (tiles[0] == images).all() and (tiles[3] == images).all()
    middle = _panels.middle(SIZE).numpy()
    assert middle.sum() == SIZE**2 / 4 and (tiles[4][:, middle] == _panels.GREY).all() and not tiles[5][:, middle].any()
    assert (tiles[4:][:, :, ~middle] == images[:, ~middle]).all()
    hidden = tiles[1] != images
    assert 0.6 < hidden.mean() < 0.9 and not tiles[2][hidden].any()
    about = record.chosen["reconstruction"]
    error = (2.0 * images[:, middle] / 255) ** 2  # of -1 for what is there, in values from -1 to 1
    assert about["middle"] == {"hidden": 0.25, "psnr": pytest.approx(10 * np.log10(4 / error.mean()), abs=0.01)}


def test_methods_that_fill_nothing_in_have_no_panels(tmp_path):
    where = context(tmp_path)
    record = run(where)
    assert record.pictures == [generation.PICTURE, generation.NEIGHBOURS] and "reconstruction" not in record.chosen
    assert not (where.pictures / generation.PANELS).exists()


def test_a_reconstruction_that_is_not_finite_is_an_error(tmp_path):
    class Broken(Filling):
        def reconstruct(self, images, hide, rng):
            found = super().reconstruct(images, hide, rng)
            return found._replace(images=found.images / 0)

    with pytest.raises(HarnessError, match="reconstructions of Broken are not finite"):
        run(context(tmp_path, Broken()))
