"""DifFeed: a diffusion U-Net looks twice, and the second time knows what it found the first time.

Mukhopadhyay et al., "Do text-free diffusion models learn discriminative visual representations?", ECCV 2024, arXiv
2311.17921; see methods/diffeed/README.md. The network is DDAE's, pre-trained once for both and frozen: feedback layers
and head (backbones/feedback.py) are trained with labels, and that is evaluation (evals/attentive.py). Measured: the
head's top-1; linear probe and samples are DDAE's, without feedback. Borrows nothing.
"""

from __future__ import annotations

from torch import Tensor

from backbones.feedback import FeedbackHead, feedback_head
from backbones.heads import Measures
from harness.rng import Rng
from methods.ddae.method import Ddae


class DifFeed(Ddae):
    pretrained_as = "ddae"

    def feedback_head(self, classes: int, measures: Measures) -> FeedbackHead:
        """The paper's choice of its three strategies, "bottleneck"."""
        readout = self.network.middle + self.usual_block()
        return feedback_head(self.network, self._seen, readout, self.data.size, classes, measures)

    def _seen(self, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """What both passes see: `images` at the backbone's best level, one draw of noise, and the level."""
        return self.noised(images, self.usual_noise(), rng.normal("noise", images.shape))


METHOD = DifFeed
