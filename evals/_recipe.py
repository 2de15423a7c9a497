"""How a whole network is trained on labels: one recipe for every method, and its values for a size.

From `s` on it is MAE's (He et al. 2022, table 9; card mae, section 6): AdamW, warm-up, half a cosine, layer decay, drop
path, mixup or cutmix, label smoothing, RandAugment, random erasing. `nano` and `ti` have to end on a laptop: a short
training with crop and mirror alone. Plain data, read without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.budget import parse_budget

LENGTHS = ("epoch", "img", "step")


@dataclass(frozen=True)
class Recipe:
    """MAE's for ViT-B, 100 epochs."""

    length: str = "100epoch"  # of one training: epochs, images (img) or steps
    batch: int = 1024  # images a step, at most all there are
    base_rates: tuple[float, ...] = (1.5e-4, 5e-4, 1.5e-3)  # to try, per 256 images of a batch; MAE's in the middle
    trial: float = 1.0  # length of the training that tries a rate, as a share of the last one's
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05  # not of vectors
    warmup: float = 0.05  # share of the training, linear from 0; then half a cosine to 0
    layer_decay: float = 0.65  # of the rate from one depth to the one before (evals/_depths.py)
    drop_path: float = 0.1  # of the deepest residual block, falling linearly to 0 at the first (evals/_droppath.py)
    crop: tuple[float, float] = (0.08, 1.0)  # area of the random crop
    ops: int = 2  # of RandAugment; 0 leaves it out
    magnitude: int = 9  # of RandAugment, out of 10
    erase: float = 0.25  # share of images in which a box is erased
    mixup: float = 0.8  # alpha; each batch is mixed in one of the two ways, where both are above 0 by a fair draw
    cutmix: float = 1.0
    smoothing: float = 0.1  # of labels

    def __post_init__(self) -> None:
        # One spelling, so that "100 epoch" and "100epoch" are one setting.
        length = parse_budget(self.length)
        if length.unit not in LENGTHS:
            raise ValueError(f"length is in {', '.join(LENGTHS)}, so that equal settings give equal trainings")
        object.__setattr__(self, "length", str(length))
        rates = list(self.base_rates)
        if not rates or rates != sorted(set(rates)) or rates[0] <= 0:
            raise ValueError("base_rates are different rates above 0, rising")
        if self.batch < 2 or min(self.ops, self.mixup, self.cutmix, self.weight_decay) < 0:
            raise ValueError("batch is at least 2; ops, mixup, cutmix and weight_decay are not negative")
        if not 0 < self.trial <= 1 or not 0 < self.layer_decay <= 1:
            raise ValueError("trial and layer_decay are above 0 and at most 1")
        if not all(0 <= share < 1 for share in (self.warmup, self.drop_path, self.smoothing)):
            raise ValueError("warmup, drop_path and smoothing are shares below 1")
        if not 0 <= self.erase <= 1 or not 0 <= self.magnitude <= 10:
            raise ValueError("erase is a share, magnitude from 0 to 10")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError("crop is a range of shares, the smaller first")

    def steps(self, images: int) -> int:
        """Steps of a training on so many `images`."""
        length, batch = parse_budget(self.length), min(self.batch, images)
        count = {"step": length.amount, "img": length.amount / batch, "epoch": length.amount * images / batch}
        return max(1, round(count[length.unit]))


PLAIN = {"drop_path": 0.0, "ops": 0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0}


def for_size(size: str) -> Recipe:
    """Depth and rate of MAE's for L and H from `l` on; short and plain for the sizes of laptops."""
    if size == "nano":  # 21,000 images with the trials; most are seen once, so that crops would teach nothing more
        return Recipe("12000img", 32, (5e-3, 1.5e-2, 5e-2), trial=0.25, crop=(1.0, 1.0), **PLAIN)
    if size == "ti":
        return Recipe("5epoch", 128, (1e-3, 3e-3, 1e-2), trial=0.25, crop=(0.5, 1.0), **PLAIN)
    if size in ("l", "xl"):
        rate = {"l": 0.2, "xl": 0.3}[size]
        return Recipe("50epoch", base_rates=(3e-4, 1e-3, 3e-3), layer_decay=0.75, drop_path=rate)
    return Recipe()
