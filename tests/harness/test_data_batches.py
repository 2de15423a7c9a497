import pytest
import torch

from harness.data.batches import Batches
from harness.data.dataset import Part
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Augment
from harness.rng import Rng

N = 10
PLAIN = Augment(mirror=False)
CROP = Augment(crop=(0.5, 1.0))


def part(n: int = N) -> Part:
    images = Rng(3).integers("images", 256, (n, 1, 8, 8)).to(torch.uint8)
    return Part(images, torch.arange(n), torch.arange(n))


def test_every_image_once_an_epoch_across_batch_borders():
    batches = Batches(part(), 4, Rng(0), PLAIN, mirror=False)
    seen = torch.cat([batches.positions(step) for step in range(10)])  # 40 images: 4 epochs
    epochs = seen.view(4, N)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(N))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_a_batch_larger_than_the_part_holds_whole_epochs():
    positions = Batches(part(3), 8, Rng(0), PLAIN, mirror=False).positions(1)  # images 8..15 of 3 + 3 + 3 + ...
    assert len(positions) == 8
    for epoch in (positions[1:4], positions[4:7]):
        assert sorted(epoch.tolist()) == [0, 1, 2]


def test_a_batch_is_a_function_of_its_step_alone():
    forward, backward = (Batches(part(), 4, Rng(0), CROP, mirror=True) for _ in range(2))
    state = torch.get_rng_state()
    there = [forward.at(step).images for step in range(12)]
    back = [backward.at(step).images for step in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(there, back, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    other = Batches(part(), 4, Rng(1), CROP, mirror=True)
    assert not torch.equal(other.at(0).images, there[0])


def test_images_come_unchanged_without_augmentation():
    data = part()
    batches = Batches(data, 4, Rng(0), PLAIN, mirror=True)
    assert torch.equal(batches.at(2).images, to_float(data.images[batches.positions(2)]))


def test_slices_of_processes_make_up_the_same_batch():
    whole = Batches(part(), 6, Rng(0), CROP, mirror=True).at(3).images
    slices = [Batches(part(), 6, Rng(0), CROP, mirror=True, share=(rank, 3)).at(3).images for rank in range(3)]
    torch.testing.assert_close(torch.stack(slices, dim=1).flatten(0, 1), whole, atol=1e-6, rtol=0)


def test_latents_come_from_keyed_views():
    latents = torch.arange(2 * N).view(2, N, 1).float()  # value = view * N + image
    batches = Batches(part(), 8, Rng(0), CROP, mirror=True, latents=latents)
    seen = [batches.at(step) for step in range(10)]
    assert all(batch.images is None for batch in seen)
    for step, batch in enumerate(seen):
        assert torch.equal(batch.latents[:, 0].long() % N, batches.positions(step))
    views = torch.cat([batch.latents[:, 0] // N for batch in seen])
    assert 20 < views.sum() < 60
    assert torch.equal(batches.at(4).latents, seen[4].latents)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": 5, "share": (0, 2)}, "batch size 5"),
        ({"batch_size": 4, "latents": torch.zeros(1, N + 1, 2)}, f"latents of {N + 1} images"),
    ],
)
def test_what_cannot_be_batched_is_refused(arguments, found):
    with pytest.raises(HarnessError, match=found):
        Batches(part(), rng=Rng(0), augment=PLAIN, mirror=False, **arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_order_is_the_same_and_images_lie_there():
    batches = Batches(part(), 4, Rng(0), PLAIN, mirror=False, device="cuda")
    assert batches.images.device.type == "cuda"
    here = Batches(part(), 4, Rng(0), PLAIN, mirror=False).at(1).images
    torch.testing.assert_close(batches.at(1).images.cpu(), here, atol=1e-6, rtol=0)
    assert Batches(part(), 4, Rng(0), CROP, mirror=True, device="cuda").at(0).images.device.type == "cuda"
