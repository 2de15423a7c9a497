"""UMD's generative fine-tune: the pre-trained network goes on with labels, and learns to draw a class.

Card umd, section 6: noised images are whole and carry their label, which is dropped from one in ten; one image in
twenty stays clean, masked as before and never labelled. The rate is the pre-training's own (the paper's, at its sizes,
is the same in both); the average follows the harness's rule, which forgets the loaded weights as it should.
"""

from __future__ import annotations

from dataclasses import replace

from backbones.labels import dropped
from harness.errors import HarnessError
from harness.method import Batch, Loss
from harness.rng import Rng
from methods.umd.method import Umd

LABEL_DROP = 0.1
RECIPE = {
    "no_noise": 0.05,
    "mask_ratio_noisy": 0.0,
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
    "warmup": 0.04,  # 2 epochs of 50
    "crop": (0.95, 1.0),
}


class LabelledUmd(Umd):
    """A `Umd` whose noised images have labels."""

    sees_labels = True

    @classmethod
    def of(cls, old: Umd) -> LabelledUmd:
        """The network of `old` with a label table; its weights are not taken over yet."""
        classes = old.config.classes or old.data.classes
        if classes < old.data.classes:
            raise HarnessError(f"umd.classes={classes} for labels", f"at least the data set's {old.data.classes}, or 0")
        return cls(replace(old.config, classes=classes, **RECIPE), old.data)

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        draws = self.draws(batch.images, rng)
        labels = dropped(batch.labels, LABEL_DROP, self.config.classes, rng)
        return self.objective(batch.images, draws, labels[: len(draws.k)])
