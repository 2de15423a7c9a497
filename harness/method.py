"""The method interface: a `torch.nn.Module` with three verbs, `pretrain`, `features`, `sample`.

The harness owns everything else (data, clock, optimizer step, precision, EMA, checkpoints, logging); see design.md,
"The method interface". A plugin folder `methods/<name>/method.py` exports one subclass under the name `METHOD`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

from torch import Tensor, nn

from harness.data.spec import DataSpec as DataSpec
from harness.errors import HarnessError
from harness.rng import Rng
from harness.train.settings import INTERFACE as INTERFACE
from harness.train.settings import SIZES as SIZES

if TYPE_CHECKING:
    from backbones.heads import Measures

# Shapes: B batch, C channels, H height, W width, D feature width, N tokens.


@dataclass(frozen=True, order=True)
class Tap:
    """A place features can be read: a layer (as the method names it) and a noise level, or None for clean input."""

    layer: str
    noise: int | None = None

    def __str__(self) -> str:
        return self.layer if self.noise is None else f"{self.layer}@{self.noise}"


class Batch(NamedTuple):
    """One step's input. `latents` stands in for `images` when the method asked for a cache (`Method.cached`)."""

    images: Tensor | None  # [B, C, H, W] in [-1, 1]
    latents: Tensor | None = None  # what `Method.cached` returned for these images
    labels: Tensor | None = None  # int64 [B], of the fit part; only for an objective that sees labels


class Loss(NamedTuple):
    """The scalar to descend and its named parts, for the log."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Augment:
    """Random resized crop and mirror, done on the device in batches (harness/data/augment.py)."""

    crop: tuple[float, float] = (1.0, 1.0)  # range of the crop's area as a share of the image's
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height
    interpolation: str = "bicubic"  # or "bilinear"; neither antialiases
    mirror: bool = True  # ignored where the data set says that mirroring changes the meaning (digits)


@dataclass(frozen=True)
class Optim:
    """How the harness steps: the optimizer, its peak rate and the shape of the rate over the budget."""

    lr_peak: float
    name: str = "adamw"  # or "adan" (timm)
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05  # default for groups that do not set their own
    clip_norm: float | None = None  # global gradient norm
    warmup: float = 0.05  # share of the budget, linear from 0
    schedule: str = "cosine"  # to 0 at the end of the budget; or "constant" after the warm-up


class Objective(nn.Module):
    """Something the training loop can train: a method, or what a method must train first (a VAE).

    One whose `sees_labels` is true is given the labels of its images; its run's record and every table say so.
    """

    sees_labels: bool = False

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        """The objective of one step, in the paper's order.

        `progress` in [0, 1) is the share of this objective's part of the budget: for a method, of what its
        preparation left.
        """
        raise NotImplementedError

    def forward(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        # Wrappers (data parallel, autocast, compile) hook `forward`, so the loop calls the objective through it.
        loss = self.pretrain(batch, progress, rng)
        if not isinstance(loss, Loss) or loss.total.ndim:
            raise HarnessError(
                f"`pretrain` of {type(self).__name__} returned "
                + (f"a total of shape {list(loss.total.shape)}" if isinstance(loss, Loss) else type(loss).__name__),
                "a harness.method.Loss: a total without dimensions, and its named parts for the log",
                'for example: return Loss(loss, {"mse": loss.detach()})',
            )
        return loss

    def optim(self, batch_size: int) -> Optim:
        raise NotImplementedError

    def augment(self) -> Augment:
        return Augment()

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer; by default no weight decay on vectors and scalars (biases, norms)."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]


@dataclass(frozen=True)
class Preparation:
    """What has to be trained before the method, inside the method's own budget (account `prepare`)."""

    objective: Objective
    share: float  # of the budget, in (0, 1)
    batch_size: int | None = None  # images a step, over all devices; None is the study's own


class Reconstruction(NamedTuple):
    """Images with what was hidden of them filled in."""

    images: Tensor  # [B, C, H, W] in [-1, 1]: predicted where hidden, as they were elsewhere
    hidden: Tensor  # bool [B, H, W]
    knows: str = ""  # what the prediction knows of hidden pixels, for example each patch's own mean and deviation


class Method(Objective):
    """A plugin: objective, network, and how it gives features and samples.

    A subclass sets `Config` (a frozen dataclass with the paper's values as defaults) and is built by
    `Method(config, data)`, which it keeps as `config` and `data`; construction touches no device and no network.
    """

    config: Any
    data: DataSpec
    Config: ClassVar[type]
    sizes: ClassVar[tuple[str, ...]] = ("nano", "ti", "s", "b", "l")
    # The method whose pre-training this one reads, on the same config: it is trained once and shared. None: its own.
    pretrained_as: ClassVar[str | None] = None

    @classmethod
    def recipe(cls, size: str, data: DataSpec) -> Any:
        """The config for a size (one of `sizes`) on a data set; departures from the paper carry their reason."""
        raise NotImplementedError

    @classmethod
    def create(cls, config: Any, data: DataSpec) -> Self:
        return cls(config, data)

    # -- preparation (latent methods) ---------------------------------------------------------------------------

    def preparation(self) -> Preparation | None:
        """What must be trained first, or None. It is a submodule of the method, frozen afterwards."""
        return None

    def cached(self, images: Tensor) -> Tensor | None:
        """What `pretrain` wants to see of clean `images` [B, C, H, W], computed once for the whole fit part
        (account `prepare`) and handed over as `Batch.latents`; None when the method trains on images.

        Called with `mirror` already applied for a second cached view. Must be deterministic.
        """
        return None

    def borrowed(self) -> list[dict[str, Any]]:
        """What this config starts from that was computed elsewhere, beyond what the card says: what, parameters, cost
        (harness.records.Borrowed)."""
        return []

    # -- recognise ----------------------------------------------------------------------------------------------

    def taps(self) -> list[Tap]:
        """Where features can be read, the method's own preference first."""
        raise NotImplementedError

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        """Features of `images` [B, C, H, W] in [-1, 1] at each tap, from as few passes as possible.

        One [B, D] per tap; with `dense`, [B, D, H', W']. Deterministic given `rng`. Differentiable where gradients are
        enabled, for fine-tuning; a caller that wants none says so (`torch.no_grad`). What stays frozen whatever is
        trained, such as a VAE, the method runs without gradient itself.
        """
        raise NotImplementedError

    def maps(self) -> list[Tap]:
        """Where `features` gives maps with `dense`: by default the taps that are no class token; more are allowed."""
        return [tap for tap in self.taps() if not tap.layer.startswith("cls")]

    def fusion(self) -> list[list[Tap]]:
        """What a head that fuses layers and noise levels reads: for each level its taps, layers ascending.

        By default the first three layers at the first three levels of `maps()`.
        """
        maps = self.maps()
        levels = sorted(
            list(dict.fromkeys(tap.noise for tap in maps))[:3], key=lambda noise: -1 if noise is None else noise
        )
        layers = sorted(list(dict.fromkeys(tap.layer for tap in maps))[:3], key=_by_number)
        read = [[tap for layer in layers if (tap := Tap(layer, noise)) in maps] for noise in levels]
        return [level for level in read if level]

    def feedback_head(self, classes: int, measures: Measures) -> nn.Module | None:
        """A head, to be trained with labels, that runs the frozen network by itself (DifFeed); None offers none.

        `head(images [B, C, H, W], rng)` gives logits [B, classes]; its parameters are what is trained.
        """
        return None

    # -- draw ---------------------------------------------------------------------------------------------------

    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        """`n` images [n, C, H, W] in [-1, 1]; `steps` None means the config's number of sampling steps."""
        raise NotImplementedError

    def sampler(self, steps: int | None = None) -> str:
        """How `sample` draws with `steps`, for tables: the rule and its number of steps. "" where nothing is drawn."""
        return "the method's own sampler" + ("" if steps is None else f", {steps} steps")

    def reconstruct(self, images: Tensor, hide: float | Tensor, rng: Rng) -> Reconstruction:
        """`images` [B, C, H, W] with part of them hidden from the network and filled in; only masked methods have it.

        `hide` is the share of the patches to hide at random, or a map bool [H, W]: then every patch it touches is
        hidden.
        """
        raise NotImplementedError

    def labelled(self) -> Method:
        """This method as one that sees labels, with its weights: a generative training with labels starts from it.

        `pretrain`, `optim` and `augment` of what is returned are that training's; its `sample` takes labels, and
        `guidance`: how far to go the way from no label to the label (None the config's, 1 plain conditional). What is
        new in it is freshly initialised, from torch's global generator as at construction.
        """
        raise NotImplementedError


M = TypeVar("M", bound=Method)


def inherit(new: M, old: Method) -> M:
    """`new` with all weights of `old`, on its device; what `old` has not keeps its initial values."""
    unknown = new.load_state_dict(old.state_dict(), strict=False).unexpected_keys
    if unknown:
        raise HarnessError(f"{type(new).__name__} has no place for {', '.join(unknown)}", "every weight of the old one")
    return new.to(next(old.parameters()).device)


def _by_number(layer: str) -> tuple[int, str]:
    """Sorts layers by the number in their name."""
    return int("".join(filter(str.isdigit, layer)) or 0), layer


def by_noise(taps: Iterable[Tap]) -> Iterator[list[Tap]]:
    """The taps of each noise level, which one pass gives; clean input first."""

    def level(tap: Tap) -> int:
        return -1 if tap.noise is None else tap.noise

    for _, group in groupby(sorted(taps, key=level), key=level):
        yield list(group)


def require_taps(method: Method, taps: Iterable[Tap]) -> None:
    """Raise HarnessError when a tap is not one of the method's."""
    known = list(dict.fromkeys([*method.taps(), *method.maps()]))
    for tap in taps:
        if tap not in known:
            listing = ", ".join(map(str, known))
            raise HarnessError(f"no tap {str(tap)!r} in {type(method).__name__}", f"one of {listing}")
