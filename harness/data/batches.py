"""The fit part as an endless row of batches; batch number `step` is a pure function of (seed, step).

Epoch e is the permutation keyed by ("order", e), and batches run on across the border of epochs, so that every image
is seen once an epoch whatever the batch size. With no state there is nothing to save: resuming is asking for the next
step (design.md, "Randomness and resume").
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.data.augment import Boxes, draw, resample
from harness.data.dataset import Part
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Augment, Batch
from harness.rng import Rng

BLOCK = 16  # steps whose crop boxes are drawn together: forty small operations cost about as much for all as for one
DEVICE_SHARE = 0.4  # of a device's free memory that images may fill; beyond it they stay in host memory


class Batches:
    """Batches of `part`, augmented on `device`; of cached `latents` [V, n, ...] (V views), where they are given.

    With `labels` each batch holds its images' labels too; nothing else about it changes.
    `share` = (rank, ranks) gives this process every `ranks`-th image of each batch, from image `rank` on, so that a
    method that treats the first images of a batch differently finds them first everywhere. Draws are made for the whole
    batch, so what an image looks like does not depend on how many processes there are.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        rng: Rng,
        augment: Augment,
        mirror: bool,
        latents: Tensor | None = None,
        device: torch.device | str = "cpu",
        share: tuple[int, int] = (0, 1),
        labels: bool = False,
    ) -> None:
        if batch_size < 1 or batch_size % share[1]:
            raise HarnessError(f"batch size {batch_size}", f"at least 1, and a multiple of {share[1]} processes")
        if latents is not None and latents.shape[1] != len(part):
            raise HarnessError(f"latents of {latents.shape[1]} images", f"{len(part)}, as many as the part has")
        self.part, self.batch_size, self.augment, self.mirror = part, batch_size, augment, mirror
        self.device = torch.device(device)
        self.rng = rng.to("cpu")  # one order on every device
        self.latents = latents
        self.labels = part.labels.to(self.device) if labels else None
        self.images = part.images if latents is not None else _resident(part.images, self.device)
        self._mine = slice(share[0], None, share[1])
        self._orders: dict[int, Tensor] = {}
        self._drawn: tuple[int, Boxes | None] = (-1, None)  # a block of steps and its boxes

    def positions(self, step: int) -> Tensor:
        """Which images of the part make up the whole batch, int64 [B] on the CPU."""
        n, place, left, pieces = len(self.part), step * self.batch_size, self.batch_size, []
        while left:
            epoch, first = divmod(place, n)
            pieces.append(self._order(epoch)[first : first + left])
            place, left = place + len(pieces[-1]), left - len(pieces[-1])
        return torch.cat(pieces)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = self.rng.at("order").permutation(epoch, len(self.part))
        return self._orders[epoch]

    def at(self, step: int) -> Batch:
        """This process's part of batch `step`."""
        positions = self.positions(step)[self._mine]
        labels = None if self.labels is None else self.labels[positions.to(self.device)]
        if self.latents is not None:
            views = self.rng.at("view").integers(step, len(self.latents), (self.batch_size,))
            where = (views[self._mine].to(self.latents.device), positions.to(self.latents.device))
            return Batch(None, self.latents[where].to(self.device, non_blocking=True), labels)
        images = to_float(_gather(self.images, positions, self.device))
        boxes = self._boxes(step)
        return Batch(images if boxes is None else resample(images, boxes, self.augment.interpolation), labels=labels)

    def _boxes(self, step: int) -> Boxes | None:
        """This process's crop boxes of batch `step`."""
        block, place = divmod(step, BLOCK)
        if self._drawn[0] != block:
            rng = self.rng.at("augment", block).to(self.device)
            n, side = BLOCK * self.batch_size, self.images.shape[-1]
            self._drawn = block, draw(n, side, self.augment, self.mirror, rng)
        boxes = self._drawn[1]
        if boxes is None:
            return None
        whole = slice(place * self.batch_size, (place + 1) * self.batch_size)
        return Boxes(*(x[whole][self._mine] for x in boxes))


def _resident(images: Tensor, device: torch.device) -> Tensor:
    """The images on the device where they fit beside the network, else where they are."""
    if device.type != "cuda" or images.nbytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images
    return images.to(device)


def _gather(images: Tensor, positions: Tensor, device: torch.device) -> Tensor:
    if images.device.type == device.type:
        return images[positions.to(images.device)]
    chosen = images[positions]
    return (chosen.pin_memory() if device.type == "cuda" else chosen).to(device, non_blocking=True)
