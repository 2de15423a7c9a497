"""DifFeed: a second pass of a frozen U-Net, into whose encoder what its own decoder found is fed back.

Mukhopadhyay et al. 2024; card difformer_diffeed, section 3.6, and 7.5 for nets other than ADM's. Shapes: B batch, C
channels, S side, K classes. Blocks are numbered as in backbones/unet.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.heads import PAPER, FusionHead, MapShape, Measures, attention_head
from backbones.unet import Unet
from harness.errors import unknown
from harness.rng import Rng

STRATEGIES = ("bottleneck", "all", "windowed")


def fed_back(strategy: str, middle: int, per_level: int, readout: int) -> list[int]:
    """The decoder blocks that feed back, ascending.

    "bottleneck" takes, of each level, the block whose mirror is the first residual block of that level's encoder;
    "windowed" all up to `readout`. ADM (middle 19, 2 a level): 21, 24, ..., 36; 20 to 37; 20 to 24.
    """
    every = range(middle + 1, 2 * middle)
    if strategy == "bottleneck":
        return list(every[per_level - 1 :: per_level + 1])
    if strategy == "windowed":
        return [b for b in every if b <= readout]
    if strategy == "all":
        return list(every)
    raise unknown("feedback strategy", strategy, STRATEGIES)


class Feedback(nn.Module):
    """From decoder blocks' outputs to maps for their mirrors: a 1x1 convolution, a batch norm and a ReLU for each.

    Not zero at first: the second pass differs from the first from the start on.
    """

    def __init__(self, network: Unet, blocks: Sequence[int]) -> None:
        super().__init__()
        self.sources = {b: network.mirror(b) for b in sorted(blocks)}
        self.look = {*self.sources, *self.sources.values()}
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(network.places[b].channels, network.places[mirror].channels, 1, bias=False),
                nn.BatchNorm2d(network.places[mirror].channels),
                nn.ReLU(),
            )
            for b, mirror in self.sources.items()
        )

    def forward(self, seen: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Maps by encoder block, from the outputs of the blocks in `look`; resized where the mirror's side differs."""
        maps = {}
        for (b, mirror), layer in zip(self.sources.items(), self.layers, strict=True):
            made, side = layer(seen[b]), seen[mirror].shape[-2:]
            maps[mirror] = made if made.shape[-2:] == side else F.interpolate(made, side, mode="bilinear")
        return maps


class FeedbackHead(nn.Module):
    """Logits [B, K] of images through two passes of a frozen network; feedback and attention head are what is trained.

    `noised(images, rng)` is what the network sees and the level [B]; both passes see the same. The network is no
    submodule, so that neither `parameters()` nor `train()` reaches it.
    """

    def __init__(
        self,
        network: Unet,
        noised: Callable[[Tensor, Rng], tuple[Tensor, Tensor]],
        feedback: Feedback,
        readout: int,
        side: int,
        classes: int,
        measures: Measures = PAPER,
    ) -> None:
        super().__init__()
        self._network, self._noised, self.readout = (network,), noised, readout
        place = network.places[readout]
        self.feedback = feedback
        self.head: FusionHead = attention_head(MapShape(place.channels, side // place.factor), classes, measures)

    def forward(self, images: Tensor, rng: Rng) -> Tensor:
        (network,) = self._network
        x, level = self._noised(images, rng)
        with torch.no_grad():
            first = network.read(x, level, self.feedback.look)
        second = network.read(x, level, [self.readout], add=self.feedback(first))
        return self.head([{"map": second[self.readout]}])


def feedback_head(
    network: Unet,
    noised: Callable[[Tensor, Rng], tuple[Tensor, Tensor]],
    readout: int,
    side: int,
    classes: int,
    measures: Measures = PAPER,
    strategy: str = "bottleneck",
) -> FeedbackHead:
    """The head for a network of images of `side` px, read at block `readout`; the paper took "bottleneck"."""
    blocks = fed_back(strategy, network.middle, network.config.blocks, readout)
    return FeedbackHead(network, noised, Feedback(network, blocks), readout, side, classes, measures)
