"""Distances against golden values and an independent formula; the stand-in; samples; every way it can go wrong."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from evals import _frechet, _samples, _standin, _yardstick, generation
from evals._references import REFERENCES, RawPixels, RealImages
from harness.errors import HarnessError
from harness.evaluation import Subject, can, evaluate
from harness.method import DataSpec
from harness.rng import Rng
from tests.evals.golden import A, B
from tests.evals.kit import SIZE, Toy, context, toy_data

CONFIG = generation.Config(samples=150, chunk=64, kernel_subsets=3)


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.delenv(_yardstick.ENVIRONMENT, raising=False)
    monkeypatch.setattr(_standin, "FEWEST", 20)
    monkeypatch.setattr(_standin, "EPOCHS", 1)


def run(where, config=CONFIG):
    return evaluate("generation", where, config, subject=Subject(reference="toy"))


def of(matrix: np.ndarray) -> _frechet.Statistics:
    return _frechet.statistics(torch.from_numpy(matrix))


def frechet_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """The same distance by symmetric square roots, in float64."""

    def root(m):
        values, vectors = np.linalg.eigh(m)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T

    ca, cb = np.cov(a.T), np.cov(b.T)
    half = root(ca)
    cross = np.sqrt(np.linalg.eigvalsh(half @ cb @ half).clip(0)).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross


def kernel_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    m = len(x)
    within = sum((k(z, z).sum() - np.trace(k(z, z))) / (m * (m - 1)) for z in (x, y))
    return within - 2 * k(x, y).mean()


def test_the_cards_golden_matrix():
    assert A[0, :3] == pytest.approx([0.48016965, -0.85219179, -0.16019998], abs=1e-8)


def test_frechet_golden_and_by_hand():
    assert _frechet.frechet(of(A), of(B)) == pytest.approx(0.7641210443, abs=1e-9)
    assert frechet_by_hand(A, B) == pytest.approx(_frechet.frechet(of(A), of(B)), abs=1e-6)
    assert _frechet.frechet(of(A), of(A)) == pytest.approx(0, abs=1e-9)


def test_kernel_golden_and_by_hand():
    a, b = torch.from_numpy(A), torch.from_numpy(B)
    mean, spread = _frechet.kernel_distance(a, b, subsets=1, size=1000, seed=1)
    assert mean == pytest.approx(0.2119170462, abs=1e-9) and spread == 0
    assert kernel_by_hand(A, B) == pytest.approx(mean, abs=1e-9)


def test_the_column_names_network_count_and_reference_and_never_fid(tmp_path):
    record = run(context(tmp_path), generation.Config(samples=150, references=("train", "test"), kernel_subsets=2))
    name = record.chosen["extractor"]
    titles = [number.title for number in record.numbers.values()]
    assert titles == [
        f"FD ({name} on toy, n=150, train)",
        f"KD x1000 ({name} on toy, n=150, train)",
        f"FD ({name} on toy, n=150, test)",
        f"KD x1000 ({name} on toy, n=150, test)",
    ]
    assert name == f"cnn64-{record.chosen['extractor_sha256'][:4]}"
    assert "FID" not in record.model_dump_json()
    assert len(record.test_opened) == 1
    assert {number.n for number in record.numbers.values()} == {150}


def test_the_distance_is_that_of_the_samples_to_all_of_train(tmp_path):
    where = context(tmp_path)
    record = run(where)
    net = _standin.load(next(where.cache.glob("cnn64-*.safetensors")))
    drawn = torch.cat([_samples._chunk(where, s, min(64, 150 - s), None) for s in range(0, 150, 64)])
    with torch.no_grad():
        fake, real = (net.features(x).double().numpy() for x in (drawn, where.data.train.images))
    assert record.numbers["frechet_train"].value == pytest.approx(frechet_by_hand(fake, real), abs=1e-4)
    assert record.numbers["frechet_train"].note == "reference: 390 real images of the train part"
    assert record.test_opened == []


def test_equal_input_gives_equal_bits_from_an_empty_and_from_a_full_cache(tmp_path):
    made = [run(context(tmp_path / name)) for name in ("a", "b", "a")]
    dumps = [record.model_dump(exclude={"ledger"}) for record in made]
    for dump in dumps:
        del dump["chosen"]["samples_s"]
    assert dumps[0] == dumps[1] == dumps[2]
    pictures = [(tmp_path / n / "pictures" / generation.PICTURE).read_bytes() for n in "ab"]
    assert pictures[0] == pictures[1]


def test_the_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(context(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_the_picture_shows_the_first_samples_enlarged(tmp_path):
    where = context(tmp_path)
    record = run(where, generation.Config(samples=100, chunk=10, grid=4, kernel_subsets=2))
    picture = np.asarray(Image.open(where.pictures / record.pictures[0]))
    assert picture.shape == (4 * 64, 4 * 64)
    first = torch.cat([_samples._chunk(where, s, 10, None) for s in (0, 10)])
    assert (picture[::8, ::8][:SIZE, :SIZE] == first[0, 0].numpy()).all()
    assert (picture[::8, ::8][-SIZE:, -SIZE:] == first[15, 0].numpy()).all()


def test_a_colour_picture_with_an_unfilled_row(tmp_path):
    images = torch.arange(5 * 3 * 4 * 4).reshape(5, 3, 4, 4).to(torch.uint8)
    _samples.write_picture(tmp_path / "p.png", images, side=3, least_px=4)
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert picture.shape == (8, 12, 3)
    assert (picture[4:, 4:8] == images[4].permute(1, 2, 0).numpy()).all() and not picture[4:, 8:].any()


def test_quick_contexts_are_left_out(tmp_path):
    assert run(context(tmp_path, cheap=True)) is None


def test_copies_among_the_samples_are_noted(tmp_path):
    class Collapsed(Toy):
        def sample(self, n, rng, labels=None, steps=None):
            return Rng(0).uniform("one", (1, 1, SIZE, SIZE)).expand(n, -1, -1, -1)

    record = run(context(tmp_path, Collapsed()))
    assert record.chosen["distinct"] == 1
    assert "only 1 of 150 samples are distinct images" in record.notes


def test_fewer_samples_than_asked_for_are_an_error(tmp_path):
    class Short(Toy):
        def sample(self, n, rng, labels=None, steps=None):
            return super().sample(n - 1, rng)

    with pytest.raises(HarnessError, match=r"Short.sample gave \[63, 1, 8, 8\].*\n.*\[64, 1, 8, 8\]"):
        run(context(tmp_path, Short()))


def test_samples_that_are_not_finite_are_an_error(tmp_path):
    class Diverged(Toy):
        def sample(self, n, rng, labels=None, steps=None):
            return super().sample(n, rng) / 0

    with pytest.raises(HarnessError, match="samples of Diverged are not finite"):
        run(context(tmp_path, Diverged()))


@pytest.mark.parametrize("odd", [{"samples": 99}, {"references": ("val",)}, {"chunk": 0}])
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match=r"fewer than 100|references are|must be positive"):
        generation.Config(**odd)


def test_nano_draws_fewer_samples():
    assert generation.recipe("nano").samples == 1000 and generation.recipe("b").samples == 50_000


# -- the stand-in -----------------------------------------------------------------------------------------------------


def test_the_stand_in_learns_and_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_standin, "FEWEST", 60)
    data = toy_data(noise=30)
    first = _standin.stand_in(data, tmp_path)
    assert first.accuracy > 80  # chance is 33
    monkeypatch.setattr(_standin, "train", lambda data: pytest.fail("trained again"))
    assert _standin.stand_in(data, tmp_path) == first
    assert first.checksum == hashlib.sha256(first.path.read_bytes()).hexdigest()


def test_the_network_of_a_faster_process_is_used(tmp_path, monkeypatch):
    data = toy_data()
    theirs = _standin.stand_in(data, tmp_path / "theirs")

    def slow(data):
        (tmp_path / theirs.path.name).write_bytes(theirs.path.read_bytes())
        return _standin.Classifier(1, SIZE, 3), 1.0, data

    monkeypatch.setattr(_standin, "train", slow)
    assert _standin.stand_in(data, tmp_path).checksum == theirs.checksum


def test_a_damaged_stand_in_is_named(tmp_path):
    where = context(tmp_path)
    run(where)
    path = next(where.cache.glob("cnn64-*.safetensors"))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(HarnessError, match=r"stand-in classifier .*cannot be read"):
        run(context(tmp_path))


def test_damaged_reference_statistics_are_named(tmp_path):
    where = context(tmp_path)
    run(where)
    next(where.cache.glob("reference-*.safetensors")).write_bytes(b"half")
    with pytest.raises(HarnessError, match=r"reference statistics .*cannot be read"):
        run(context(tmp_path))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 64), (3, 224)])
def test_the_stand_in_sees_images_of_any_size(channels, size):
    net = _standin.Classifier(channels, size, 5).eval()
    assert net.features(torch.zeros(2, channels, size, size, dtype=torch.uint8)).shape == (2, _standin.WIDTH)


# -- Inception --------------------------------------------------------------------------------------------------------


def with_inception(path) -> generation.Config:
    return generation.Config(samples=150, inception=str(path), kernel_subsets=2)


def test_missing_or_wrong_inception_weights_leave_nothing_behind(tmp_path):
    other, text, danger = tmp_path / "other.pth", tmp_path / "text.pth", tmp_path / "danger.pth"
    torch.save({"fc.weight": torch.zeros(2)}, other)
    text.write_text("<html>404</html>")
    torch.save(DataSpec("code", 1, 1, 1), danger)  # a pickle that would import and call something
    for path in (tmp_path / "none.pth", other, text, danger):
        where = context(tmp_path / "out")
        with pytest.raises(HarnessError, match=r"Inception weights.*\n.*expected.*\n.*next"):
            run(where, with_inception(path))
        assert not where.pictures.exists() and not where.cache.exists()


def test_the_path_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(_yardstick.ENVIRONMENT, str(tmp_path / "none.pth"))
    with pytest.raises(HarnessError, match=r"no Inception weights at .*none\.pth"):
        run(context(tmp_path))


def test_inception_weights_give_fid_and_see_grey_images_in_colour(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    path = tmp_path / "inception.pth"
    torch.save({}, path)
    with torch.random.fork_rng(devices=[]):
        weights = Blank(_frechet.INCEPTION, ["2048"], str(path)).state_dict()
    torch.save(weights, path)
    extractor = _frechet.inception(path, "cpu")
    grey = torch.arange(2 * 64).reshape(2, 1, 8, 8).to(torch.uint8)
    found = _frechet.features(extractor, grey)
    assert found.shape == (2, 2048) and found.dtype == torch.float64
    assert torch.equal(found, _frechet.features(extractor, grey.repeat(1, 3, 1, 1)))
    numbers, _ = generation._distances(with_inception(path), extractor, "train", of(A), of(B), 1)
    assert [n.title for n in numbers.values()] == [
        "FID (Inception, n=64, train)",
        "KID x1000 (Inception, n=64, train)",
    ]


# -- reference rows ---------------------------------------------------------------------------------------------------


def test_reference_rows_join_the_evals_whose_verb_they_have():
    verbs = {name: [v for v in ("features", "sample") if can(kind, v)] for name, kind in REFERENCES.items()}
    assert verbs == {"raw pixels": ["features"], "real images": ["sample"]}


def test_raw_pixels_are_the_images(tmp_path):
    where = context(tmp_path, RawPixels(toy_data()))
    tap = where.method.taps()[0]
    found = where.features([tap], "select")[tap]
    assert torch.equal(found, where.part("select").chunk(0, 90).flatten(1))
    assert where.choose_tap().trials == 1


def test_real_images_are_all_test_images_through_the_door(tmp_path):
    data = toy_data(test=150)
    where = context(tmp_path, RealImages(data), data)
    record = run(where)
    assert [entry.by for entry in record.test_opened] == ["real images, in place of samples"]
    drawn = torch.cat([_samples._chunk(where, s, 50, None) for s in (0, 50, 100)])
    assert sorted(map(bytes, drawn.numpy())) == sorted(map(bytes, data.test.images.numpy()))
    assert record.chosen["distinct"] == 150 and record.notes == []


def test_real_images_are_nearer_than_noise_and_repeat_when_too_few(tmp_path):
    data = toy_data(test=60)
    real, noise = run(context(tmp_path, RealImages(data), data)), run(context(tmp_path, Toy(), data))
    assert real.numbers["frechet_train"].value < 0.5 * noise.numbers["frechet_train"].value
    assert "only 60 of 150 samples are distinct images" in real.notes
