"""Distances against golden values and an independent formula; the stand-in; samples; every way it can go wrong."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from evals import _canary, _extractors, _samples, _standin, _yardstick, generation
from evals._references import REFERENCES, MeanImage, RawPixels, RealImages
from harness import protocol
from harness.data.dataset import load
from harness.errors import HarnessError
from harness.evaluation import Subject, can, evaluate
from harness.ledger import Ledger
from harness.method import DataSpec
from harness.rng import Rng
from harness.stats import mean_interval
from tests.evals.by_hand import frechet_by_hand, reach_by_hand
from tests.evals.kit import SIZE, Toy, context, toy_data

INCEPTION_PATH = os.environ.get(_yardstick.ENVIRONMENT)  # taken away from the tests, but for one
CONFIG = generation.Config(samples=150, seeds=1, chunk=64, kernel_subsets=3, kernel_size=100, score_splits=5)


@pytest.fixture
def inception_path():
    return INCEPTION_PATH


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.delenv(_yardstick.ENVIRONMENT, raising=False)
    monkeypatch.setattr(_standin, "FEWEST", 20)
    monkeypatch.setattr(_standin, "EPOCHS", 1)


def run(where, config=CONFIG):
    return evaluate("generation", where, config, subject=Subject(reference="toy"))


def test_the_column_names_network_count_and_reference_and_never_fid(tmp_path):
    record = run(context(tmp_path), replace(CONFIG, references=("train", "test")))
    name = record.chosen["extractor"]
    kinds = [("FD", 150), ("KD x1000", 150), ("precision %", 150), ("recall %", 150)]
    against = [f"{word} ({name} on toy, n={n}, train)" for word, n in kinds]
    # 120 test images: precision and recall take as many samples as there are real images.
    against += [f"{word} ({name} on toy, n={min(n, 120) if '%' in word else n}, test)" for word, n in kinds]
    own = [f"class score ({name} on toy, n=150)", f"copies % ({name} on toy, n=150, fit)"]
    assert [number.title for number in record.numbers.values()] == [*against, *own]
    assert name == f"cnn64-{record.chosen['extractor_sha256'][:4]}"
    assert "FID" not in record.model_dump_json() and "IS (" not in record.model_dump_json()
    assert len(record.test_opened) == 1
    assert {number.table for number in record.numbers.values()} == {"generation"}


def test_every_number_is_a_mean_over_sets_of_one_model(tmp_path):
    where = context(tmp_path)
    record = run(where, replace(CONFIG, seeds=3))
    alone = [run(context_of(tmp_path, where, i)).numbers for i in range(3)]
    for key, number in record.numbers.items():
        assert number.values == [one[key].value for one in alone], key
        assert (number.value, number.half) == mean_interval(number.values)
    assert len(set(record.numbers["frechet_train"].values)) == 3 and record.chosen["distinct"] == [150] * 3


def shuffled(n):
    """Which images of toy_data's train are the reference's first `n`."""
    return Rng(0).permutation("real images of train", 390)[:n]


def context_of(folder, where, number):
    """A context whose first set of samples is the set `number` of `where`, compared over the same subsets."""
    other = context(folder)
    repeat = where.repeat(number).rng

    class Other(type(repeat)):
        def number(self, *keys):
            return where.rng.number(*keys) if keys == ("kernel",) else super().number(*keys)

    other.rng = Other(repeat.seed, repeat.path, repeat.device)
    return other


def test_cells_say_the_sampler_and_its_steps(tmp_path):
    class Stepped(Toy):
        def sampler(self, steps=None):
            return f"walk, {steps or 9} steps"

    assert "drawn by: walk, 9 steps" in run(context(tmp_path, Stepped())).notes
    record = run(context(tmp_path, Stepped()), replace(CONFIG, steps=4))
    assert "drawn by: walk, 4 steps" in record.notes and record.chosen["sampler"] == "walk, 4 steps"


def test_throughput_is_that_of_the_account_sample(tmp_path):
    ledger = Ledger()
    record = run(context(tmp_path, ledger=ledger), replace(CONFIG, seeds=2))
    assert record.chosen["samples_s"] == pytest.approx(300 / ledger.seconds["sample"], rel=0.01)
    real = run(context(tmp_path, RealImages(toy_data())))
    assert real.chosen["samples_s"] is None, "a reference row draws nothing"


def test_what_all_cells_share_is_booked_to_none(tmp_path):
    first, again = Ledger(), Ledger()
    made = run(context(tmp_path, ledger=first)).chosen["shared_s"]
    kept = run(context(tmp_path, ledger=again)).chosen["shared_s"]
    assert made > 10 * kept  # the second found the stand-in and the statistics
    assert first.seconds["evaluate"] < made


def test_the_distance_is_that_of_the_samples_to_all_of_train(tmp_path):
    where = context(tmp_path)
    record = run(where)
    net = _standin.load(next(where.cache.glob("cnn64-*.safetensors")))
    drawn = torch.cat([_samples._chunk(where, s, min(64, 150 - s), None) for s in range(0, 150, 64)])
    with torch.no_grad():
        fake, real = (net.features(x).double().numpy() for x in (drawn, where.data.train.images))
    assert record.numbers["frechet_train"].value == pytest.approx(frechet_by_hand(fake, real), abs=1e-4)
    assert record.numbers["precision_train"].value == pytest.approx(100 * reach_by_hand(fake, real[shuffled(150)]))
    assert record.numbers["recall_train"].value == pytest.approx(100 * reach_by_hand(real[shuffled(150)], fake))
    assert record.numbers["frechet_train"].note == "reference: 390 real images of the train part"
    assert record.test_opened == []


def test_equal_input_gives_equal_bits_from_an_empty_and_from_a_full_cache(tmp_path):
    made = [run(context(tmp_path / name)) for name in ("a", "b", "a")]
    dumps = [record.model_dump(exclude={"ledger"}) for record in made]
    for dump in dumps:
        del dump["chosen"]["samples_s"], dump["chosen"]["shared_s"]
    assert dumps[0] == dumps[1] == dumps[2]
    for name in (generation.PICTURE, generation.NEIGHBOURS):
        pictures = [(tmp_path / n / "pictures" / name).read_bytes() for n in "ab"]
        assert pictures[0] == pictures[1]


def test_the_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(context(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_the_picture_shows_the_first_samples_enlarged(tmp_path):
    where = context(tmp_path)
    record = run(where, replace(CONFIG, samples=100, chunk=10, grid=4))
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
    assert record.chosen["distinct"] == [1]
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


@pytest.mark.parametrize(
    "odd",
    [
        {"samples": 99},
        {"references": ("val",)},
        {"chunk": 0},
        {"seeds": 0},
        {"kernel_size": 60_000},
        {"samples": 1000, "score_splits": 101},
        {"extractors": ()},
        {"extractors": ("auto", "auto")},
    ],
)
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match=r"fewer than 100|references are|must be|extractors is"):
        generation.Config(**odd)


def test_nano_draws_fewer_samples():
    assert generation.recipe("nano").samples * generation.recipe("nano").seeds < 1000
    assert generation.recipe("b").samples == 50_000 and generation.recipe("b").seeds == 3


def test_a_part_smaller_than_a_metric_needs_is_an_error(tmp_path):
    with pytest.raises(HarnessError, match=r"kernel_size is 130, and there are 120 real images"):
        run(context(tmp_path), replace(CONFIG, kernel_size=130, references=("train", "test")))
    assert not (tmp_path / "pictures").exists()


# -- what says that the yardstick is right ----------------------------------------------------------------------------


def test_the_canary_stands_under_the_table(tmp_path):
    record = run(context(tmp_path))
    found = record.chosen["canary"]
    assert (found["n"], found["others"]) == (150, 240) and 0 < found["frechet"] < 3 * found["expected"]
    assert record.chosen["remarks"] == [
        f"canary: 150 images of train against its other 240: FD ({record.chosen['extractor']} on toy) "
        f"{found['frechet']:.3f}; Gaussian features of this covariance would give about {found['expected']:.3f}; "
        "3 times that is an alarm"
    ]
    assert not any("DO NOT TRUST" in note for note in record.notes)


def test_a_reference_that_is_not_one_distribution_raises_the_alarm(tmp_path):
    where = context(tmp_path)
    [extractor] = _yardstick.extractors(where, ["cnn64"], None)
    real = _yardstick.reference(where, extractor, "train")
    real.features[:150] += 2 * real.features.std(dim=0)
    check = _canary.canary(extractor, real, 150, "train")
    assert check.alarm.startswith(f"DO NOT TRUST FD ({extractor.label})") and check.facts["frechet"] > 1


def test_half_of_a_part_is_the_most_a_canary_takes(tmp_path):
    assert run(context(tmp_path), replace(CONFIG, samples=1000, kernel_size=200)).chosen["canary"]["n"] == 195


def test_the_known_value_is_looked_at_where_it_is_known(tmp_path):
    """CIFAR-10 itself and Inception only; with the weights here, it is checked (HARNESS_INCEPTION)."""
    where = context(tmp_path)
    [extractor] = _yardstick.extractors(where, ["cnn64"], None)
    assert _canary.known(where, extractor, _yardstick.reference(where, extractor, "train")) is None
    assert where.data.opened == []


def test_cifar10s_test_images_are_at_the_known_distance(tmp_path, inception_path):
    if not inception_path:
        pytest.skip("no Inception weights here (HARNESS_INCEPTION)")
    data = load("cifar10")
    if data.spec.name != "cifar10":
        pytest.skip("CIFAR-10 itself is not here, only a lossy copy")
    where = context(tmp_path, RealImages(data), data)
    [extractor] = _yardstick.extractors(where, ["inception"], inception_path)
    check = _canary.known(where, extractor, _yardstick.reference(where, extractor, "train"))
    assert check.alarm is None, check.said


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
    next(where.cache.glob("real-*.safetensors")).write_bytes(b"half")
    with pytest.raises(HarnessError, match=r"reference statistics .*cannot be read"):
        run(context(tmp_path))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 64), (3, 224)])
def test_the_stand_in_sees_images_of_any_size(channels, size):
    net = _standin.Classifier(channels, size, 5).eval()
    assert net.features(torch.zeros(2, channels, size, size, dtype=torch.uint8)).shape == (2, _standin.WIDTH)


# -- Inception --------------------------------------------------------------------------------------------------------


def with_inception(path) -> generation.Config:
    return replace(CONFIG, inception=str(path))


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


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """A file of the right form with weights that were never trained."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({}, path)
    with torch.random.fork_rng(devices=[]):
        weights = Blank(_extractors.INCEPTION, ["2048"], str(path)).state_dict()
    torch.save(weights, path)
    return path


def test_inception_sees_grey_images_in_colour_and_gives_what_every_metric_reads(blank):
    extractor = _extractors.inception(blank, "cpu")
    grey = torch.arange(2 * 64).reshape(2, 1, 8, 8).to(torch.uint8)
    seen = extractor.look(grey)
    assert [list(found.shape) for found in seen] == [[2, 2048], [2, 1008], [2, 7 * 17 * 17]]
    for one, other in zip(seen, extractor.look(grey.repeat(1, 3, 1, 1)), strict=True):
        assert torch.equal(one, other)


def test_sfid_reads_the_first_channels_of_mixed_6_conv(blank):
    """After its ReLU, as TensorFlow's node of that name (card evaluation, section 7.1)."""
    extractor, kept = _extractors.inception(blank, "cpu"), []
    hook = extractor.net.Mixed_6d.register_forward_hook(lambda _, __, found: kept.append(found[:, :7]))
    found = extractor.look(torch.arange(192).reshape(1, 3, 8, 8).to(torch.uint8)).spatial
    hook.remove()
    assert (
        torch.equal(found, kept[0].flatten(1)) and (found >= 0).all()
    )  # its branch comes first in the module's output


def test_inception_has_the_usual_names(blank, tmp_path, monkeypatch):
    """The network's 30 seconds for these images left out."""

    def quick(self, images):
        flat = images.flatten(1).float()
        return _extractors.Seen(flat[:, :8], flat[:, :10] / 50, flat[:, :12])

    monkeypatch.setattr(_extractors.Extractor, "look", quick)
    data = toy_data(fit=100, select=24, test=10)
    config = replace(with_inception(blank), samples=100, kernel_size=50, score_splits=2)
    record = run(context(tmp_path, RealImages(data), data), config)
    assert [n.title for n in record.numbers.values()] == [
        "FID (Inception, n=100, train)",
        "KID x1000 (Inception, n=100, train)",
        "precision % (Inception, n=100, train)",
        "recall % (Inception, n=100, train)",
        "sFID (Inception, n=100, train)",
        "IS (Inception, n=100)",
        "copies % (Inception, n=100, fit)",
    ]


# -- reference rows ---------------------------------------------------------------------------------------------------


def test_reference_rows_join_the_evals_whose_verb_they_have():
    verbs = {name: [v for v in ("features", "sample") if can(kind, v)] for name, kind in REFERENCES.items()}
    assert verbs == {"raw pixels": ["features"], "real images": ["sample"], "mean image": ["sample"]}
    assert {name: tuple(has) for name, has in verbs.items()} == protocol.REFERENCES  # which a plan reads, without torch


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
    assert record.chosen["distinct"] == [150] and record.notes == []


def test_real_images_are_nearer_than_noise_and_repeat_when_too_few(tmp_path):
    data = toy_data(test=60)
    rows = [run(context(tmp_path, method, data)) for method in (RealImages(data), Toy(), MeanImage(data))]
    real, noise, mean = rows
    assert real.numbers["frechet_train"].value < 0.5 * noise.numbers["frechet_train"].value
    assert real.numbers["precision_train"].value > noise.numbers["precision_train"].value
    assert mean.numbers["score"].value == pytest.approx(1) and mean.numbers["recall_train"].value < 1
    assert "only 60 of 150 samples are distinct images" in real.notes


def test_the_mean_image_is_that_of_train(tmp_path):
    where = context(tmp_path, MeanImage(toy_data()))
    drawn = _samples._chunk(where, 0, 3, None)
    assert drawn.shape == (3, 1, SIZE, SIZE)
    assert torch.equal(drawn[2], toy_data().train.images.double().mean(dim=0).round().to(torch.uint8))


def test_every_set_of_real_images_is_another(tmp_path):
    where = context(tmp_path, RealImages(toy_data()))
    one, two = (_samples._chunk(where.repeat(i), 0, 120, None) for i in (0, 1))
    assert not torch.equal(one, two) and sorted(map(bytes, one.numpy())) == sorted(map(bytes, two.numpy()))
