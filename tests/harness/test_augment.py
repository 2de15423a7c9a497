import pytest
import torch
import torchvision.transforms.v2.functional as functional
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from harness.data.augment import Boxes, augment, draw, resample
from harness.data.pixels import to_float, to_uint8
from harness.errors import HarnessError
from harness.method import Augment
from harness.rng import Rng

CROP = Augment(crop=(0.2, 1.0))


def noise(n: int, channels: int, side: int) -> torch.Tensor:
    return Rng(0).integers("noise", 256, (n, channels, side, side)).to(torch.uint8)


# Crops are enlarged, where torchvision's antialias changes nothing but bicubic's kernel: Pillow's a = -0.5 instead of
# -0.75. Bilinear has one kernel, so there antialias=False is the reference.
@pytest.mark.parametrize(("interpolation", "antialias"), [("bicubic", True), ("bilinear", False)])
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_equals_torchvision_for_given_boxes(interpolation, antialias, channels, side):
    images = to_float(noise(24, channels, side))
    boxes = draw(24, side, CROP, True, Rng(1))
    ours = resample(images, boxes, interpolation)
    assert boxes.mirror.any() and not boxes.mirror.all()
    for k in range(24):
        box = [int(x[k]) for x in (boxes.top, boxes.left, boxes.height, boxes.width)]
        mode = InterpolationMode(interpolation)
        theirs = functional.resized_crop(images[k], *box, [side, side], mode, antialias=antialias)
        theirs = theirs.flip(-1) if boxes.mirror[k] else theirs
        torch.testing.assert_close(ours[k], theirs, atol=1e-4, rtol=0)


def test_whole_box_gives_exact_pixels():
    images = noise(4, 3, 33)
    whole = torch.full((4,), 33.0)
    boxes = Boxes(torch.zeros(4), torch.zeros(4), whole, whole, torch.tensor([False, True, False, True]))
    for interpolation in ("bicubic", "bilinear"):
        out = to_uint8(resample(to_float(images), boxes, interpolation))
        assert torch.equal(out[::2], images[::2])
        assert torch.equal(out[1::2], images[1::2].flip(-1))


def test_outside_of_the_box_is_not_looked_at():
    images = noise(1, 1, 16)
    box = Boxes(*(torch.tensor([float(x)]) for x in (3, 4, 9, 8)), torch.tensor([False]))
    other = torch.full_like(images, 255)
    other[..., 3:12, 4:12] = images[..., 3:12, 4:12]
    for interpolation in ("bicubic", "bilinear"):
        assert torch.equal(*(resample(to_float(x), box, interpolation) for x in (images, other)))


def test_boxes_are_distributed_as_torchvision_draws_them():
    n, side, spec = 3000, 32, Augment(crop=(0.08, 1.0))
    boxes = draw(n, side, spec, False, Rng(0))
    ours = torch.stack(boxes[:4])
    image = torch.empty(1, side, side)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [RandomResizedCrop.get_params(image, list(spec.crop), list(spec.aspect)) for _ in range(n)]
    theirs = torch.tensor(params, dtype=torch.float32).T
    assert (ours[0] + ours[2] <= side).all() and (ours[1] + ours[3] <= side).all() and (ours[2:] >= 1).all()
    for a, b in zip(ours, theirs, strict=True):  # two-sample Kolmogorov-Smirnov, critical value at 0.1 %
        steps = torch.arange(side + 1)[:, None]
        gap = ((a <= steps).float().mean(1) - (b <= steps).float().mean(1)).abs().max()
        assert gap < 1.95 * (2 / n) ** 0.5


def test_where_no_candidate_fits_the_centre_is_taken():
    wide = draw(5, 32, Augment(crop=(0.9, 1.0), aspect=(4.0, 4.0)), False, Rng(0))
    assert [x.tolist() for x in wide[:4]] == [[12.0] * 5, [0.0] * 5, [8.0] * 5, [32.0] * 5]
    tall = draw(5, 32, Augment(crop=(0.9, 1.0), aspect=(0.25, 0.25)), False, Rng(0))
    assert [x.tolist() for x in tall[:4]] == [[0.0] * 5, [12.0] * 5, [32.0] * 5, [8.0] * 5]


def test_mirror_only_where_the_data_set_and_the_spec_allow():
    images = noise(64, 1, 8)
    plain = to_float(images)
    assert torch.equal(augment(images, Augment(), False, Rng(0)), plain)
    assert torch.equal(augment(images, Augment(mirror=False), True, Rng(0)), plain)
    out = augment(images, Augment(), True, Rng(0))
    kept = (out == plain).flatten(1).all(1)
    assert torch.equal(out[~kept], plain.flip(-1)[~kept])
    assert 16 < kept.sum() < 48


def test_draws_depend_on_the_key_alone():
    images, state = noise(8, 3, 16), torch.get_rng_state()
    one, again = (augment(images, CROP, True, Rng(0).at(7)) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, augment(images, CROP, True, Rng(0).at(8)))
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_does_not_coarsen_images():
    images = noise(8, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(images, CROP, True, Rng(0))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, augment(images, CROP, True, Rng(0)))


@pytest.mark.parametrize("spec", [Augment(crop=(0.0, 1.0)), Augment(crop=(0.5, 1.5)), Augment(aspect=(2.0, 1.0))])
def test_impossible_ranges_are_refused(spec):
    with pytest.raises(HarnessError, match="crop="):
        draw(2, 8, spec, True, Rng(0))


def test_unknown_interpolation_is_refused():
    with pytest.raises(HarnessError, match="lanczos"):
        augment(noise(2, 1, 8), Augment(crop=(0.5, 1.0), interpolation="lanczos"), True, Rng(0))


def test_pixels_go_there_and_back():
    every = torch.arange(256, dtype=torch.uint8)
    floats = to_float(every)
    assert floats.min() == -1 and floats.max() == 1
    assert torch.equal(to_uint8(floats), every)
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.4999 / 127.5 - 1, 0.5001 / 127.5 - 1])).tolist() == [0, 255, 0, 1]
