"""Segmentation: tiles in their places, heads that find what is there, mIoU as the field has it, choices made blind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evals import _overlays, _segments, _tiles, segmentation
from evals._references import RawPixels
from harness.data import masks
from harness.data.layouts import IGNORED
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.evaluation import Subject, evaluate, verbs
from harness.fitted import Fitted
from harness.lacking import applies
from harness.method import DataSpec, Method, Tap
from harness.rng import Rng
from tests.evals.kit import Toy, context, toy_data
from tests.toys import CLOCK

WHO = Subject(reference="toy")
SIDE = 8  # of the network's images, as of the toy data
SMALL = segmentation.Config(
    tap_images=8, images=12, select_images=4, epochs=1, batch=4, hidden=8, seeds=2, memory_gb=1.0
)
LEARNING = dataclasses.replace(SMALL, epochs=16)
COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]])


class Itself(Method):
    """A map that is the image, one that says nothing, and one under noise; counts its passes."""

    data = DataSpec("toy", 3, SIDE, 3)

    def __init__(self) -> None:
        super().__init__()
        self.config, self.passes = None, []

    def taps(self) -> list[Tap]:
        return [Tap("cls"), Tap("blind"), Tap("image"), Tap("image", 3)]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        assert dense and images.shape[1:] == (3, SIDE, SIDE)
        self.passes.append(len(images))
        return [self._of(tap, images, rng) for tap in taps]

    def _of(self, tap: Tap, images: Tensor, rng: Rng) -> Tensor:
        if tap.layer == "blind":
            return torch.zeros_like(images)
        return images if tap.noise is None else images + 0.5 * rng.normal("noise", images.shape)


class Noisy(Itself):
    def taps(self) -> list[Tap]:
        return [Tap("image", 3)]


def folder(root: Path, poison: bool = False, classes: int = 3, sizes=((16, 24),), parts=(12, 4, 6)) -> str:
    """Pictures of blocks of three colours, whose class is their colour; an ignored frame. The name of the data set."""
    for which, n in zip(("train", "val", "test"), parts, strict=True):
        rng = np.random.default_rng(len(which))
        for i in range(n):
            height, width = sizes[i % len(sizes)]
            label = np.kron(rng.integers(0, min(classes, 3), (height // 4, width // 4)), np.ones((4, 4), int))
            pixels = np.clip(COLOURS[label] + rng.normal(0, 20, (height, width, 3)), 0, 255)
            if poison and which == "test":
                label = (label + 1) % 3
            label[0] = label[:, -1] = IGNORED
            for half, what in (("images", pixels), ("masks", label)):
                (root / half / which).mkdir(parents=True, exist_ok=True)
                Image.fromarray(what.astype(np.uint8)).save(root / half / which / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(["red", "green", "blue", "unseen"][:classes]))
    return f"masks:{root}"


def record(where: Path, method: Method | None = None, config=SMALL, **data):
    config = dataclasses.replace(config, data=(folder(where / "blocks", **data),))
    return evaluate("segmentation", context(where, method or Itself()), config, subject=WHO)


def blind_to_test(chosen: dict) -> dict:
    """What was chosen, without what was found on the test part."""
    return {k: blind_to_test(v) if isinstance(v, dict) else v for k, v in chosen.items() if k != "test"}


# -- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [((8, 8), (1, 1)), ((96, 128), (12, 16)), ((11, 12), (1, 2)), ((3, 20), (1, 3)), ((12, 4), (2, 1))],
)
def test_the_nearest_whole_number_of_tiles(size, expected):
    assert _tiles.grid(*size, SIDE) == expected


def test_tiles_are_put_back_in_their_places_exactly(tmp_path):
    """The map of a method whose map is the image is the image, bit for bit, with several images in one pass."""
    data = masks.load(folder(tmp_path / "blocks", sizes=((16, 24), (8, 8), (24, 40))))
    method = Itself()
    found = list(_tiles.seen(context(tmp_path, method), [Tap("image")], "x", data.fit, 0))
    assert len(found) == 12 and sum(method.passes) == 4 * (2 * 3 + 1 + 3 * 5) and len(method.passes) == 1
    for one, pair in zip(found, data.fit, strict=True):
        assert torch.equal(one.maps[Tap("image")], to_float(pair.image).half())


def test_passes_are_of_whole_images_until_they_fill_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(_tiles, "CHUNK", 10)
    method = Itself()
    data = masks.load(folder(tmp_path / "blocks", parts=(5, 1, 1)))
    list(_tiles.seen(context(tmp_path, method), [Tap("image")], "x", data.fit, 0))
    assert method.passes == [12, 12, 6]


def test_other_sizes_are_resized_to_whole_tiles_and_maps_averaged_down(tmp_path):
    image = torch.linspace(-1, 1, 3 * 12 * 21).view(3, 12, 21)
    tiles = _tiles.cut(image, SIDE)
    assert tiles.shape == (2 * 3, 3, SIDE, SIDE) and tiles.abs().max() <= 1
    torch.testing.assert_close(_tiles.joined(tiles, 2, 3).mean(dim=(1, 2)), image.mean(dim=(1, 2)), atol=0.01, rtol=0)
    data = masks.load(folder(tmp_path / "blocks"))
    small, whole = (
        [one.maps[Tap("image")] for one in _tiles.seen(context(tmp_path, Itself()), [Tap("image")], "x", data.fit, cap)]
        for cap in (2, 0)
    )
    assert small[0].shape == (3, 4, 6)
    expected = torch.nn.functional.avg_pool2d(whole[0].float(), 4)
    torch.testing.assert_close(small[0].float(), expected, atol=1e-3, rtol=0)


def test_a_network_inside_another_size_is_shown_tiles_of_its_own_side(tmp_path):
    inner = Itself()
    wrapped = Fitted(inner, DataSpec("toy", 3, 2 * SIDE, 3))
    data = masks.load(folder(tmp_path / "blocks"))
    (one, *_) = _tiles.seen(context(tmp_path, wrapped), [Tap("image")], "x", data.fit, 0)
    assert torch.equal(one.maps[Tap("image")], to_float(data.fit.read(0).image).half())


def test_a_network_of_one_channel_sees_grey(tmp_path):
    data = masks.load(folder(tmp_path / "blocks"))
    (one, *_) = _tiles.seen(context(tmp_path, RawPixels(toy_data())), [Tap("pixels")], "x", data.fit, 0)
    grey = to_float(data.fit.read(0).image).mean(dim=0, keepdim=True)
    assert torch.equal(one.maps[Tap("pixels")], grey.half())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m * 1e6, "half precision"),
        (lambda m: m / 0, "not finite"),
        (lambda m: m[..., :3], r"expected: \[\d+, D, S, S\]"),
        (lambda m: m.mean(dim=3), r"expected: \[\d+, D, S, S\]"),
    ],
)
def test_maps_that_cannot_be_kept_are_an_error(tmp_path, change, message):
    class Broken(Itself):
        def features(self, *args, **settings):
            return [change(maps) for maps in super().features(*args, **settings)]

    with pytest.raises(HarnessError, match=message):
        record(tmp_path, Broken())


# -- heads ------------------------------------------------------------------------------------------------------------


def test_heads_find_the_classes_that_maps_tell_apart(tmp_path):
    found = record(tmp_path, config=LEARNING)
    assert set(found.numbers) == {"linear_miou_masks-blocks", "decoder_miou_masks-blocks"}
    for head in ("linear", "decoder"):
        number = found.numbers[f"{head}_miou_masks-blocks"]
        assert number.value > 85 and number.n == 6 and number.table == "dense" and len(number.values) == 2
        assert number.title == f"{head} mIoU % on masks-blocks" and "mean over the classes" in number.note
    about = found.chosen["masks-blocks"]
    assert found.chosen["tap"] == about["tap"] == "image"
    assert list(about["tap_scores"]) == ["blind", "image", "image@3"]
    assert about["tap_scores"]["blind"] < 60 < about["tap_scores"]["image"]
    assert found.trials == 3 + 2 * 3 and list(about["linear"]["rate_scores"]) == ["0.003", "0.01", "0.03"]
    assert set(about["linear"]["test"]["iou"]) == {"red", "green", "blue"}
    assert about["linear"]["test"]["pixel_accuracy"] > 90
    # Norm and convolution; two convolutions of 3 x 3 with their norms, and one of 1 x 1.
    assert about["linear"]["parameters"] == 2 * 3 + 3 * 3 + 3
    assert about["decoder"]["parameters"] == 9 * (3 * 8 + 8 * 8) + 2 * 2 * 8 + 8 * 3 + 3


def test_a_decoder_sees_a_places_neighbours_and_a_linear_head_does_not():
    maps = torch.zeros(1, 2, 5, 5)
    beside = maps.clone()
    beside[0, 0, 2, 2] = 9.0
    for head, reach in ((_segments.Linear(2, 3), 0), (_segments.Decoder(2, 3, 4), 2)):
        head.eval()
        changed = (head([maps])[0] != head([beside])[0]).any(dim=1)[0].nonzero()
        assert (changed - 2).abs().max() == reach


def test_norms_see_all_sizes_of_a_batch_as_one():
    norm, again = (torch.nn.BatchNorm2d(4) for _ in range(2))
    whole = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    parts = [whole[:2, :, :4], whole[:2, :, 4:], whole[2:]]
    found = _segments._normed(norm, parts)
    expected = again(whole)
    for mine, theirs in zip(found, (expected[:2, :, :4], expected[:2, :, 4:], expected[2:]), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(norm.running_var, again.running_var)


def test_the_loss_is_the_mean_over_pixels_that_are_not_ignored():
    head = _segments.Linear(2, 3).eval()
    maps = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(2 * 6 * 8).view(2, 6, 8) % 3
    truth[0, :3] = IGNORED
    large = _segments.upsampled(head([maps])[0], (6, 8)).permute(0, 2, 3, 1)
    kept = truth != IGNORED
    expected = -large.log_softmax(-1)[kept].gather(1, truth[kept][:, None]).mean()
    torch.testing.assert_close(_segments.loss(head, [(maps, truth)]), expected)
    torch.testing.assert_close(_segments.loss(head, [(maps[:1], truth[:1]), (maps[1:], truth[1:])]), expected)
    nothing = torch.full_like(truth, IGNORED)
    assert _segments.loss(head, [(maps, nothing)]) == 0


def test_images_of_different_sizes_are_learned_from_together(tmp_path):
    found = record(tmp_path, config=LEARNING, sizes=((16, 24), (24, 16), (8, 12)))
    assert min(number.value for number in found.numbers.values()) > 75


# -- the score --------------------------------------------------------------------------------------------------------


def made_guesses() -> tuple[Tensor, Tensor]:
    rng = Rng(5)
    truth, guess = rng.integers("truth", 5, (4, 20, 30)), rng.integers("guess", 5, (4, 20, 30))
    guess = torch.where(rng.uniform("right", truth.shape) < 0.6, truth, guess)
    truth[rng.uniform("ignored", truth.shape) < 0.1] = IGNORED
    return truth, guess


def test_the_score_is_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    truth, guess = made_guesses()
    matrix = _segments.confused(truth, guess, 5)
    each = classification.MulticlassJaccardIndex(5, average="none", ignore_index=IGNORED)(guess, truth)
    torch.testing.assert_close(_segments.ious(matrix), each.double(), atol=1e-6, rtol=0)
    mean = classification.MulticlassJaccardIndex(5, average="macro", ignore_index=IGNORED)(guess, truth)
    every = torch.ones(5, dtype=torch.bool)
    assert _segments.mean_iou(matrix, every) == pytest.approx(100 * mean.item(), abs=1e-4)  # theirs is float32
    right = classification.MulticlassAccuracy(5, average="micro", ignore_index=IGNORED)(guess, truth)
    assert _segments.pixel_accuracy(matrix) == pytest.approx(100 * right.item(), abs=1e-4)


def test_only_classes_in_the_masks_and_in_what_was_learned_count():
    truth = torch.tensor([[0, 0, 1, IGNORED]])
    guess = torch.tensor([[0, 2, 1, 2]])
    matrix = _segments.confused(truth, guess, 4)
    assert matrix.dtype == torch.int64 and matrix.sum() == 3
    assert _segments.ious(matrix)[:3].tolist() == [0.5, 1.0, 0.0] and _segments.ious(matrix)[3].isnan()
    assert _segments.mean_iou(matrix, torch.ones(4, dtype=torch.bool)) == 75.0
    assert _segments.mean_iou(matrix, torch.tensor([True, False, True, True])) == 50.0


def test_a_places_label_is_that_of_most_of_its_pixels():
    mask = torch.tensor([[0, 0, 1, IGNORED], [0, 2, IGNORED, IGNORED]], dtype=torch.uint8)
    assert _segments.majority(mask, (1, 2), 3).tolist() == [[0, IGNORED]]
    assert torch.equal(_segments.majority(mask, (2, 4), 3), mask.long())
    assert _segments.majority(mask, (4, 8), 3)[0].tolist() == [0, 0, 0, 0, 1, 1, IGNORED, IGNORED]


def test_a_class_that_no_mask_shows_is_said_and_left_out(tmp_path):
    found = record(tmp_path, config=LEARNING, classes=4)
    assert found.notes == ["masks-blocks: no mask of the images learned from shows unseen; left out of the mean"]
    assert found.chosen["masks-blocks"]["classes"] == "3 of 4"
    assert min(number.value for number in found.numbers.values()) > 85


# -- honesty ----------------------------------------------------------------------------------------------------------


def test_poisoned_test_masks_change_no_choice(tmp_path):
    one, two = (record(tmp_path / n, config=LEARNING, poison=n == "b") for n in "ab")
    assert blind_to_test(one.chosen) == blind_to_test(two.chosen) and one.trials == two.trials
    assert all(one.numbers[key].value > two.numbers[key].value + 50 for key in one.numbers)


def test_the_test_part_is_opened_once_by_name_after_every_choice(tmp_path, monkeypatch):
    order = []
    best_of, open_test = _segments.best_of, masks.MaskData.open_test
    monkeypatch.setattr(_segments, "best_of", lambda *args: order.append("choice") or best_of(*args))
    monkeypatch.setattr(masks.MaskData, "open_test", lambda self, by: order.append("test") or open_test(self, by))
    two = (folder(tmp_path / "one"), folder(tmp_path / "two"))
    config = dataclasses.replace(SMALL, data=two)
    where = context(tmp_path, Noisy())
    found = evaluate("segmentation", where, config, subject=WHO)
    assert order == ["choice"] * 4 + ["test"] * 2
    assert [look.by for look in found.test_opened] == ["segmentation of toy"] * 2
    assert found.others == {f"masks-{name}": masks.load(f"masks:{tmp_path / name}").revision for name in ("one", "two")}
    assert len(found.numbers) == 4 and found.trials == 2 * (1 + 2 * 3) and where.data.opened == []
    assert found.pictures == ["segmentation-masks-one.png", "segmentation-masks-two.png"]


def test_equal_input_gives_equal_bits_and_leaves_the_global_random_state(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (
        record(tmp_path / name, Noisy()).model_dump(exclude={"ledger", "test_opened", "config"}) for name in "ab"
    )
    assert one == two and torch.equal(torch.get_rng_state(), before)


def test_seeds_differ_in_a_heads_start_and_in_the_noise(tmp_path):
    clean, noisy = Itself(), Noisy()
    once, thrice = (dataclasses.replace(SMALL, seeds=seeds) for seeds in (1, 3))
    passes = []
    for method, config in ((clean, once), (clean, thrice), (noisy, once), (noisy, thrice)):
        method.passes.clear()
        found = record(tmp_path / f"{type(method).__name__}{config.seeds}", method, config)
        values = found.numbers["decoder_miou_masks-blocks"].values
        assert len(set(values)) == config.seeds == len(values)
        passes.append(len(method.passes))
    assert passes[1] == passes[0]  # clean maps are read once
    assert passes[3] == passes[2] + 2 * 2  # noisy ones again for each seed, of fit and of test


def test_the_heads_own_training_is_evaluation_and_the_rest_is_choosing(tmp_path, monkeypatch):
    import harness.ledger

    train = _segments.train

    def takes_a_second(*args):
        CLOCK.now += 1.0
        return train(*args)

    for module in (_segments, harness.ledger):
        monkeypatch.setattr(module, "time", CLOCK)
    monkeypatch.setattr(_segments, "train", takes_a_second)
    assert record(tmp_path).ledger == {"select": 4.0, "evaluate": 4.0, "sample": 0.0}


def test_it_is_asked_of_whole_evaluations_only(tmp_path):
    asked = {
        (share, cheap): applies("segmentation", verbs(Itself), share, cheap) for share in (0, 1) for cheap in (0, 1)
    }
    assert [place for place, yes in asked.items() if yes] == [(0, 0), (1, 0)]
    assert evaluate("segmentation", context(tmp_path, Itself(), cheap=True), SMALL, subject=WHO) is None

    class Vectors(Toy):
        def maps(self) -> list[Tap]:
            return []

    assert evaluate("segmentation", context(tmp_path, Vectors()), SMALL, subject=WHO) is None


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_the_picture_shows_image_truth_and_guesses_in_fixed_colours(tmp_path):
    record(tmp_path, sizes=((16, 24), (24, 16)))
    picture = np.asarray(Image.open(tmp_path / "pictures/segmentation-masks-blocks.png"))
    colours = _overlays.palette(3)
    assert colours[IGNORED].tolist() == [0, 0, 0] and len({tuple(c) for c in colours[:3]}) == 3
    tall = 6 * _overlays.GAP + _overlays.LINE * 2 + 3 * 16 * 8 + 3 * 24 * 12
    assert picture.shape == (tall, 4 * (192 + _overlays.GAP), 3)
    truth = picture[_overlays.LINE + 8 :, 198 : 198 + 192 - 12][: 8 * 8]  # within the first, below its ignored row
    assert {tuple(c) for c in truth.reshape(-1, 3)} <= {tuple(c) for c in colours}


def test_colours_of_many_classes_differ():
    colours = _overlays.palette(21)[:21].astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(21, dtype=int)
    assert apart.min() > 20


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_maps_beyond_the_memory_are_refused(tmp_path):
    with pytest.raises(HarnessError, match=r"the maps of 12 images of masks-blocks take about 3.23e-05 GB"):
        record(tmp_path, config=dataclasses.replace(SMALL, memory_gb=1e-5))


def test_data_that_are_missing_are_named_before_any_work(tmp_path, monkeypatch):
    for variable in ("HARNESS_DATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    method = Itself()
    with pytest.raises(HarnessError, match=r"'camvid' was not found\n.*\n  next: set HARNESS_DATA"):
        evaluate("segmentation", context(tmp_path, method), dataclasses.replace(SMALL, data=("camvid",)), subject=WHO)
    assert method.passes == []


def test_a_broken_test_mask_leaves_no_number(tmp_path):
    root = tmp_path / "blocks"
    name = folder(root)
    Image.fromarray(np.full((16, 24), 9, np.uint8)).save(root / "masks/test/3.png")
    with pytest.raises(HarnessError, match=r"label 9 in the mask of .*test/3.png is out of range"):
        evaluate("segmentation", context(tmp_path, Itself()), dataclasses.replace(SMALL, data=(name,)), subject=WHO)
    assert not (tmp_path / "pictures").exists()


def test_masks_that_ignore_everything_are_an_error(tmp_path):
    root = tmp_path / "blocks"
    name = folder(root)
    for path in root.glob("masks/train/*.png"):
        Image.fromarray(np.full((16, 24), IGNORED, np.uint8)).save(path)
    with pytest.raises(HarnessError, match="the masks of masks-blocks ignore every pixel"):
        evaluate("segmentation", context(tmp_path, Itself()), dataclasses.replace(SMALL, data=(name,)), subject=WHO)


@pytest.mark.parametrize(
    "odd", [{"epochs": 0}, {"data": ()}, {"data": ("camvid", "camvid")}, {"side": -1}, {"memory_gb": 0}, {"seeds": 0}]
)
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match="must be"):
        segmentation.Config(**odd)


def test_sizes_have_settings():
    assert [segmentation.recipe(size).hidden for size in ("nano", "ti", "xl")] == [32, 256, 256]
