"""Detection: where boxes lie after all resizing, what the evaluator says, what the eval finds and may see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals import _detecting, _detectors, _squares, detection
from evals._average_precision import Detections, average_precision
from evals._references import RawPixels
from evals._tiles import tiled_maps
from harness.data import boxes
from harness.data.coco import Objects
from harness.data.dataset import Part
from harness.errors import HarnessError
from harness.evaluation import Subject, evaluate, verbs
from harness.fitted import Fitted
from harness.lacking import applies
from harness.method import DataSpec, Method, Tap
from harness.rng import Rng
from tests.evals.boxes import edit, make
from tests.evals.kit import ToyData, context
from tests.toys import CLOCK

WHO = Subject(reference="toy")
TILE = 32
SPEC = DataSpec("toy", 3, TILE, 3)
SMALL = {"square_px": 64, "strides": (4, 8, 16), "width": 32, "convs": 1, "batch": 8, "seeds": 1}


class Sees(Method):
    """Maps of pooled pixels, of those with noise, or of nothing; `gain` is the only weight."""

    def __init__(self, layer: str = "pooled", noise: int | None = None, frozen: bool = False) -> None:
        super().__init__()
        self.config, self.data, self.tap, self.frozen = None, SPEC, Tap(layer, noise), frozen
        self.gain = nn.Parameter(torch.ones(3, 1, 1))

    def taps(self) -> list[Tap]:
        return [self.tap]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        assert images.shape[1:] == (3, TILE, TILE)
        maps = F.avg_pool2d(images, 4) * (self.gain.detach() if self.frozen else self.gain)
        if self.tap.noise is not None:
            maps = maps + 0.05 * self.tap.noise * rng.normal("noise", maps.shape)
        if self.tap.layer == "blind":
            maps = torch.zeros_like(maps)
        return [maps if dense else maps.flatten(1) for _ in taps]


def toy_data(size: int = TILE, channels: int = 3) -> ToyData:
    """What the tap is chosen on: noise, since there is one tap."""

    def part(n: int) -> Part:
        images = Rng(1).at(n).integers("images", 256, (n, channels, size, size)).to(torch.uint8)
        return Part(images, torch.arange(n) % 3, torch.arange(n))

    return ToyData(DataSpec("toy", channels, size, 3), part(30), 20, part(10))


def run(root, folder, method: Method | None = None, data: ToyData | None = None, **settings):
    config = detection.Config(**({"data": (f"coco:{root}",)} | SMALL | {"epochs": 1, "rates": (1e-2,)} | settings))
    return evaluate("detection", context(folder, method or Sees(), data or toy_data()), config, subject=WHO)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return make(tmp_path_factory.mktemp("coco") / "toys", train=40, val=20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("coco") / "tiny", train=12, val=6, seed=1)


# -- what is found ----------------------------------------------------------------------------------------------------


def test_objects_that_the_maps_show_are_found(learned, tmp_path):
    from PIL import Image

    record = run(learned, tmp_path, epochs=12)
    whole, half = record.numbers["coco-toys_map"], record.numbers["coco-toys_map50"]
    assert half.value > 50 and 15 < whole.value < half.value
    assert (half.title, half.table, half.n) == ("detection mAP50 % on toys", "dense", 20)
    assert "FCOS on a pyramid of the map at pooled, the network frozen; 36 images" in half.note
    assert record.pictures == ["detection-coco-toys.png"]
    with Image.open(tmp_path / "pictures" / record.pictures[0]) as picture:
        assert picture.size == (3 * 256 + 4 * 4, 2 * 256 + 3 * 4)
        colours = {colour for _, colour in picture.getcolors(1 << 20)}
        assert {(0, 255, 0), (255, 0, 0)} <= colours  # true and found boxes


def test_a_blind_network_finds_next_to_nothing(learned, tmp_path):
    assert run(learned, tmp_path, Sees("blind"), epochs=12).numbers["coco-toys_map50"].value < 15


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "faster-rcnn"])
def test_every_detector_learns(tiny, kind):
    data = boxes.load(f"coco:{tiny}")
    shape = _detectors.Shape(kind, 3, 64, (8, 16), 32, 1)
    squares = _squares.Squares(Sees(), Tap("pooled"), data.train, TILE, 64, Rng(0), within())
    with Rng(0).lent("init"):
        detector = _detectors.Detector(shape, 3, 16, *_squares.moments(squares)[:2])
    index, losses = torch.arange(4), []

    def loss(_: Tensor, step: int) -> Tensor:
        with Rng(0).at(step).lent("draws"):
            losses.append(detector.losses(squares.maps(index), squares.targets(index)))
        return losses[-1]

    groups = [{"params": list(detector.parameters()), "lr": 3e-3}]
    assert _detectors.train(groups, loss, 4, 8, 4, lambda epoch: index)
    assert losses[-1] < 0.8 * losses[0]
    found = detector.detections(squares.maps(index))
    assert len(found) == 4 and all((f.labels >= 1).all() and (f.labels <= 3).all() for f in found)
    assert all((f.boxes >= 0).all() and (f.boxes <= 64).all() for f in found)


def test_raw_pixels_have_a_row(tiny, tmp_path):
    data = toy_data()
    record = run(tiny, tmp_path, RawPixels(data), data, train_backbone=True)
    assert record.numbers["coco-tiny_map"].n == 6 and record.chosen["tap"] == "pixels"


def test_a_resized_network_sees_tiles_of_its_own_side(tiny, tmp_path):
    data = toy_data(size=8)
    record = run(tiny, tmp_path, Fitted(Sees(), data.spec), data)
    assert record.chosen["coco-tiny"]["tile_px"] == TILE


# -- what may be seen -------------------------------------------------------------------------------------------------


def test_poisoned_test_annotations_change_no_choice_and_no_weight(tmp_path, monkeypatch):
    weights = []
    test = _detecting.Work.test

    def watched(work):
        weights.append([value.clone() for value in work.first.detector.state_dict().values()])
        return test(work)

    monkeypatch.setattr(_detecting.Work, "test", watched)
    root = make(tmp_path / "tiny", train=20, val=6)
    one = run(root, tmp_path / "a", epochs=3, rates=(1e-3, 1e-2))

    def poison(content):
        for entry in content["annotations"]:
            entry["bbox"], entry["category_id"] = [1, 1, 3, 3], 3

    edit(root, "val", poison)
    two = run(root, tmp_path / "b", epochs=3, rates=(1e-3, 1e-2))
    assert one.chosen == two.chosen and one.trials == two.trials == 1 + 2
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert one.others != two.others


def test_the_test_part_is_opened_once_after_all_training(tiny, tmp_path, monkeypatch):
    order = []
    train, open_test = _detectors.train, boxes.BoxData.open_test
    monkeypatch.setattr(_detectors, "train", lambda *args: order.append("train") or train(*args))
    monkeypatch.setattr(boxes.BoxData, "open_test", lambda data, by: order.append("test") or open_test(data, by))
    record = run(tiny, tmp_path, rates=(1e-3, 3e-3), seeds=2)
    assert order == ["train"] * 3 + ["test"]
    assert [look.by for look in record.test_opened] == ["detection of toy"]
    assert record.others == {"coco-tiny": boxes.load(f"coco:{tiny}").revision}


def test_equal_input_gives_equal_bits_whether_maps_are_kept_or_read_again(tiny, tmp_path):
    one, two, read = (
        run(tiny, tmp_path / name, Sees(noise=2), seeds=2, memory_gb=gb).model_dump(exclude={"ledger", "config"})
        for name, gb in (("a", 1.0), ("b", 1.0), ("c", 0.0))
    )
    look = one.pop("test_opened"), two.pop("test_opened"), read.pop("test_opened")
    assert one == two == read and len(look[0]) == 1
    pictures = [(tmp_path / name / "pictures/detection-coco-tiny.png").read_bytes() for name in "abc"]
    assert pictures[0] == pictures[1] == pictures[2]


def test_what_is_random_is_repeated_over_the_seeds(learned, tmp_path):
    number = run(learned, tmp_path, epochs=4, rates=(1e-2,), seeds=2).numbers["coco-toys_map50"]
    assert len(set(number.values)) == 2 and number.half > 0


def test_the_noise_at_a_tap_is_an_images_own_and_a_seeds(tiny):
    data, tap = boxes.load(f"coco:{tiny}"), Tap("pooled", 2)

    def maps(rng, index, kept=None):
        squares = _squares.Squares(Sees(noise=2), tap, data.train, TILE, 64, rng, kept or within())
        return squares.maps(torch.tensor(index))

    together, shared = maps(Rng(0), [0, 1, 2]), within(1e9)
    assert torch.equal(maps(Rng(0), [1])[0], together[1])
    assert not torch.equal(maps(Rng(0), [1], shared), maps(Rng(1), [1], shared))
    clean = _squares.Squares(Sees(), Tap("pooled"), data.train, TILE, 64, Rng(0), within()).maps(torch.arange(3))
    assert not torch.allclose(together[0] - clean[0], together[1] - clean[1], atol=0.01)


def test_the_last_training_is_evaluation_and_the_rest_is_choosing(tiny, tmp_path, monkeypatch):
    import harness.ledger

    train = _detectors.train

    def takes_a_second(*args) -> bool:
        CLOCK.now += 1.0
        return train(*args)

    for module in (_detecting, harness.ledger):
        monkeypatch.setattr(module, "time", CLOCK)
    monkeypatch.setattr(_detectors, "train", takes_a_second)
    assert run(tiny, tmp_path, rates=(1e-3, 2e-3, 3e-3)).ledger == {"select": 2.0, "evaluate": 1.0, "sample": 0.0}


# -- the network that learns too --------------------------------------------------------------------------------------


def test_the_network_learns_where_it_is_asked_to_and_its_weights_stay(tiny, tmp_path, monkeypatch):
    seen = []
    test = _detecting.Work.test
    monkeypatch.setattr(_detecting.Work, "test", lambda work: seen.append(work.first.network) or test(work))
    method = Sees()
    record = run(tiny, tmp_path, method, train_backbone=True, rates=(1e-2,))
    assert (seen[0].gain != 1).all() and (method.gain == 1).all()
    assert "the network trained with it" in record.numbers["coco-tiny_map"].note


def test_a_network_without_gradient_is_refused(tiny, tmp_path):
    with pytest.raises(HarnessError, match=r"no gradient comes through Sees\.features at tap pooled"):
        run(tiny, tmp_path, Sees(frozen=True), train_backbone=True)


# -- where boxes and maps lie -----------------------------------------------------------------------------------------


def within(limit_bytes: float = 0.0) -> _squares.Within:
    from contextlib import nullcontext

    return _squares.Within(_squares.Kept(limit_bytes), nullcontext)


@pytest.mark.parametrize("size", [(64, 64), (50, 31), (31, 50), (640, 427), (7, 300)])
def test_a_detection_at_the_true_box_is_perfect_after_all_resizing(size):
    width, height = size
    true = torch.tensor([[0.0, 0.0, width / 2, height / 3], [width / 3, height / 4, width, height]])
    truth = [Objects(true, torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool), (true[:, 2:] - true[:, :2]).prod(1))]
    inside = _squares.into_square(true, size, 96)
    assert inside.min() >= 0 and inside.max() <= 96
    found = _squares.from_square(Detections(inside, torch.tensor([0.9, 0.8]), torch.tensor([1, 2])), size, 96)
    assert torch.allclose(found.boxes, true, atol=1e-3 * max(size) / 96)
    assert average_precision([found], truth, 2) == (pytest.approx(100.0), pytest.approx(100.0))


@pytest.mark.parametrize("size", [(96, 96), (48, 32), (30, 60), (300, 200)])
def test_a_box_lies_in_the_square_where_its_pixels_do(size):
    width, height = size
    box = torch.tensor([[width // 5, height // 2, width // 2, height - height // 5]])
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    left, top, right, bottom = box[0].tolist()
    image[:, top:bottom, left:right] = 255
    bright = _squares.square(image, 96)[0] > 0.0
    rows, columns = bright.any(dim=1).nonzero(), bright.any(dim=0).nonzero()
    seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert (_squares.into_square(box.float(), size, 96)[0] - seen).abs().max() <= 1.0


def test_what_is_found_beside_the_image_is_left_out():
    raw = Detections(
        torch.tensor([[10.0, 60, 30, 64], [40, 10, 60, 90]]), torch.tensor([0.9, 0.8]), torch.tensor([1, 2])
    )
    found = _squares.from_square(raw, (100, 50), 100)  # the image is the square's upper half
    assert found.labels.tolist() == [2] and found.boxes.tolist() == [[40, 10, 60, 50]]


def test_a_map_is_that_of_its_tile():
    images = Rng(0).uniform("images", (2, 3, 64, 96)) * 2 - 1
    maps = tiled_maps(Sees(), images, Tap("pooled"), TILE, Rng(0))
    assert maps.shape == (2, 3, 16, 24)
    assert torch.allclose(maps, F.avg_pool2d(images, 4), atol=1e-6)  # pooling knows no tiles
    with pytest.raises(ValueError, match="no whole number of tiles"):
        tiled_maps(Sees(), images[..., :95], Tap("pooled"), TILE, Rng(0))


class Odd(Sees):
    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        flat = images.flatten(1)
        return [flat if self.tap.layer == "flat" else images * math.nan]


@pytest.mark.parametrize(("layer", "said"), [("flat", r"Odd\.features gave \[4, 3072\]"), ("nan", "are not finite")])
def test_odd_maps_are_refused(layer, said):
    with pytest.raises(HarnessError, match=said):
        tiled_maps(Odd(layer), torch.zeros(1, 3, 64, 64), Tap(layer), TILE, Rng(0))


def test_crowds_are_no_examples(tmp_path):
    root = make(tmp_path / "toys", train=12, val=4)
    one = 100 + int(boxes.load(f"coco:{root}").fit.index[0])

    def crowd(content):
        next(entry for entry in content["annotations"] if entry["image_id"] == one)["iscrowd"] = 1

    edit(root, "train", crowd)
    part = boxes.load(f"coco:{root}").fit
    squares = _squares.Squares(Sees(), Tap("pooled"), part, TILE, 64, Rng(0), within())
    (target,) = squares.targets(torch.tensor([0]))
    assert len(target["boxes"]) == len(target["labels"]) == len(part.objects(0).boxes) - 1


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "faster-rcnn"])
def test_the_detector_resizes_and_normalises_nothing(kind):
    shape = _detectors.Shape(kind, 3, 96, (8, 16, 32), 32, 1)
    detector = _detectors.Detector(shape, 3, 24, torch.zeros(3), torch.ones(3))
    images = Rng(0).uniform("images", (2, 3, 96, 96)) * 2 - 1
    box = torch.tensor([[3.0, 5.0, 61.0, 37.0]])
    for mode in (True, False):
        transform = detector.detector.transform.train(mode)
        seen, targets = transform(list(images), [{"boxes": box, "labels": torch.tensor([1])}] * 2)
        assert torch.equal(seen.tensors, images) and torch.equal(targets[0]["boxes"], box)
    assert torch.equal(transform.postprocess([{"boxes": box}], [(96, 96)], [(96, 96)])[0]["boxes"], box)


@pytest.mark.parametrize("grid", [96, 48, 24, 13, 6, 2])
def test_the_levels_are_the_same_whatever_the_map(grid):
    shape = _detectors.Shape("fcos", 3, 96, (4, 8, 16, 32), 32, 1)
    pyramid = _detectors.Pyramid(shape, 5, grid, torch.zeros(5), torch.ones(5))
    levels = pyramid(Rng(0).normal("maps", (2, 5, grid, grid)))
    assert [level.shape for level in levels.values()] == [(2, 32, side, side) for side in (24, 12, 6, 3)]


def test_anchors_stand_in_the_middle_of_their_places():
    from torchvision.models.detection.image_list import ImageList

    levels = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    images = ImageList(torch.zeros(1, 3, 32, 32), [(32, 32)])
    (anchors,) = _detectors._anchors((8, 16), (1.0,), (1.0,))(images, levels)
    assert anchors[0].tolist() == [0, 0, 8, 8] and anchors[15].tolist() == [24, 24, 32, 32]
    assert anchors[16].tolist() == [0, 0, 16, 16]


# -- the evaluator ----------------------------------------------------------------------------------------------------


def jittered(images: int = 30) -> tuple[list[Detections], list[Objects]]:
    """True boxes of all of COCO's sizes, some of them crowds, and detections that are more or less off."""
    rng, found, truth = Rng(4), [], []
    for i in range(images):
        at, n = rng.at(i), 1 + i % 4
        corner, extent = at.uniform("corner", (n, 2)) * 200, 8 + at.uniform("extent", (n, 2)) ** 2 * 200
        true, labels = torch.cat([corner, corner + extent], 1), at.integers("labels", 3, (n,)) + 1
        crowd = torch.arange(n) == 3
        truth.append(Objects(true, labels, crowd, extent.prod(1) * 0.8))
        off = true.repeat(2, 1) + torch.cat([extent, extent], 1).repeat(2, 1) * 0.12 * at.normal("off", (2 * n, 4))
        guessed = torch.where(at.uniform("wrong", (2 * n,)) < 0.2, labels.repeat(2) % 3 + 1, labels.repeat(2))
        found.append(Detections(off, at.uniform("scores", (2 * n,)), guessed))
    return found, truth


def test_it_agrees_with_torchmetrics():
    from torchmetrics.detection import MeanAveragePrecision

    found, truth = jittered()
    theirs = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    theirs.update(
        [found_in._asdict() for found_in in found],
        [{"boxes": t.boxes, "labels": t.labels, "iscrowd": t.crowd.int(), "area": t.area} for t in truth],
    )
    expected, ours = theirs.compute(), average_precision(found, truth, 3)
    assert 10 < ours.map < ours.map50 < 90
    assert ours.map == pytest.approx(100 * expected["map"].item(), abs=1e-4)
    assert ours.map50 == pytest.approx(100 * expected["map_50"].item(), abs=1e-4)


def test_one_box_of_two_found_is_half_by_hand():
    true = torch.tensor([[10.0, 10, 30, 30], [40, 40, 60, 60]])
    truth = [Objects(true, torch.tensor([1, 1]), torch.zeros(2, dtype=torch.bool), torch.tensor([400.0, 400.0]))]
    found = [Detections(true[:1], torch.tensor([0.9]), torch.tensor([1]))]
    # Precision is 1 up to a recall of one half: at 51 of the 101 recalls it is read at.
    assert average_precision(found, truth, 1) == (pytest.approx(100 * 51 / 101), pytest.approx(100 * 51 / 101))


def test_it_prints_nothing_and_nothing_found_is_nought(capsys):
    _, truth = jittered()
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert average_precision([nothing] * len(truth), truth, 3) == (0.0, 0.0)
    assert capsys.readouterr() == ("", "")


def test_crowds_alone_are_nothing_to_measure():
    found, truth = jittered(4)
    crowds = [t._replace(crowd=torch.ones_like(t.crowd)) for t in truth]
    with pytest.raises(HarnessError, match="no box to find in 4 images"):
        average_precision(found, crowds, 3)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_without_data_it_says_how_to_name_them(tmp_path):
    where = context(tmp_path, Sees(), toy_data())
    with pytest.raises(HarnessError, match=r"no data set\n.*\n  next: detection\.data=coco:PATH"):
        evaluate("detection", where, detection.Config(), subject=WHO)


def test_two_data_sets_of_one_name_are_refused(tiny, tmp_path):
    with pytest.raises(HarnessError, match="names coco-tiny, coco-tiny"):
        evaluate(
            "detection",
            context(tmp_path, Sees(), toy_data()),
            detection.Config(data=(f"coco:{tiny}", f"coco:{tiny}")),
            subject=WHO,
        )


def test_a_network_of_grey_images_is_refused(tiny, tmp_path):
    with pytest.raises(HarnessError, match=r"images of 1 channel\(s\)"):
        run(tiny, tmp_path, Sees(), toy_data(channels=1))


def test_a_rate_that_diverges_is_noted_and_not_chosen(tiny, tmp_path):
    record = run(tiny, tmp_path, epochs=6, rates=(1e-3, 1e30))
    about = record.chosen["coco-tiny"]
    assert about["rate"] == 1e-3 and about["rate_scores"]["1e+30"] == -1.0
    assert record.notes == ["tiny: rate 1e+30 diverged"]
    with pytest.raises(HarnessError, match="no detector could be trained on tiny"):
        run(tiny, tmp_path / "b", epochs=6, rates=(1e30,))


def test_it_does_not_run_on_snapshots_nor_without_maps(tiny, tmp_path):
    assert not applies("detection", verbs(Sees), 1.0, cheap=True) and applies(
        "detection", verbs(Sees), 1.0, cheap=False
    )
    config = detection.Config(data=(f"coco:{tiny}",))
    assert detection.evaluate(context(tmp_path, Sees(), toy_data(), cheap=True), config) is None
    assert run(tiny, tmp_path / "b", Sees("cls")) is None


def test_the_square_is_whole_tiles_and_whole_places():
    sides = {tile: _detecting.square_side(detection.Config(), tile) for tile in (28, 32, 64, 224)}
    assert sides == {28: 896, 32: 512, 64: 512, 224: 896}


@pytest.mark.parametrize(
    "odd",
    [{"seeds": 0}, {"width": 40}, {"strides": (4, 12)}, {"strides": (8, 4)}, {"strides": ()}, {"rates": ()},
     {"rates": (1e-3, 1e-3)}, {"rates": (0.0,)}, {"memory_gb": -1.0}, {"backbone_rate": 0.0}],
)  # fmt: skip
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match="must be"):
        detection.Config(**odd)
