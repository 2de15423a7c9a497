"""DDAE: a diffusion U-Net recognises, too, from the middle of its decoder, for an image with a little noise.

Xiang et al., "Denoising Diffusion Autoencoders are Unified Self-supervised Learners", ICCV 2023, arXiv 2303.09769; see
methods/ddae/README.md. Measured: the error of the noise (DDPM) or of the clean image (EDM); features are a decoder
block's mean; samples are DDIM's or Heun's. In pixels; borrows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from backbones.adm_unet import adm_like, start_as_adm
from backbones.diffusion import Diffusion, T
from backbones.edm import Edm, Network
from backbones.edm_augment import LABEL, Warp
from backbones.labels import dropped, start_fresh
from backbones.learned_variance import LearnedVariance, ancestral
from backbones.unet import NETS, Unet, UnetConfig
from harness.errors import HarnessError
from harness.method import Augment, Batch, DataSpec, Loss, Method, Optim, Tap, inherit, require_taps
from harness.rng import Rng
from methods.ddae.sizes import SHORT, halvings, net

# Shapes: B batch, C channels, H = W image side, D width of a decoder block.


@dataclass(frozen=True)
class Config:
    """The paper's DDPM on CIFAR-10, its 35.7M network, without labels."""

    net: UnetConfig = NETS["ddpm"]
    objective: Literal["ddpm", "edm"] = "ddpm"
    layout: Literal["ddae", "adm"] = "ddae"  # "adm": `net` built and told of levels as ADM is, with its objective
    edm: Edm = Edm()  # noqa: RUF009 (frozen)
    warp: float = 0.12  # share of images for each of EDM's augmentations; of a network that is told (net.label)
    labels: bool = False  # pre-training sees labels, as no network of the paper did; the record and every table say so
    label_drop: float = 0.1  # share of labels that training replaces by "no label"
    lr: float = 4e-4  # not scaled with the batch
    rate: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup: float = 13 / 2000  # share of the training
    noises: tuple[int, ...] = ()  # levels that features can be read at; none: the paper's
    sample_steps: int = 0  # of DDIM, or of ADM's sampler; 0 is the paper's 100, or ADM's 250
    heun_steps: int = 18  # of EDM's sampler, two evaluations each
    guidance: float = 1.0  # of samples with labels; 1 is plain conditional
    ddim_schedule: Literal["training", "reference"] = "training"  # the reference samples along another one

    def __post_init__(self) -> None:
        if self.layout == "adm" and self.objective != "ddpm":
            raise ValueError("ADM's layout has its own objective; leave objective at ddpm")
        if self.layout == "adm":
            object.__setattr__(self, "net", adm_like(self.net))  # so that the record says what was built
        top = self.edm.levels if self.objective == "edm" else T - (self.layout == "adm")
        if not all(1 <= noise <= top for noise in self.noises):
            raise ValueError(f"noises are from 1 to {top}; 0, the clean image, is a level that no network has seen")
        if self.heun_steps < 1:
            raise ValueError("heun_steps is at least 1")
        if not 0 <= self.sample_steps <= T or not 0 <= self.warmup < 1 or not 0 <= self.label_drop < 1:
            raise ValueError(f"sample_steps is at most {T}, warmup and label_drop are shares")
        if self.net.label not in (0, LABEL) or not 0 <= self.warp <= 1:
            raise ValueError(
                f"net.label is {LABEL}, the numbers that tell of EDM's augmentation, or 0; warp is a share"
            )


class Ddae(Method):
    Config = Config
    sizes = ("nano", "ti", "s", "b", "l", "xl")

    @classmethod
    def recipe(cls, size: str, data: DataSpec) -> Config:
        config = Config(net=net(size, data.size))
        if size in SHORT:  # the paper's constant rate is for days; a budget of minutes has to be annealed
            config = replace(config, lr=SHORT[size], rate="cosine", warmup=0.05)
        return replace(config, sample_steps=50) if size == "nano" else config

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        self.config, self.data = config, data
        deep = len(config.net.mults) - 1
        if data.size % 2**deep:
            raise HarnessError(
                f"an image side of {data.size} px, which {deep} halvings do not divide",
                f"at most {halvings(data.size)} for {data.name}",
                "fewer ddae.net.mults",
            )
        self.classes = config.net.classes or (data.classes if config.labels else 0)
        if config.labels and self.classes < data.classes:
            raise HarnessError(
                f"ddae.net.classes={self.classes} with labels", f"at least the data set's {data.classes}, or 0"
            )
        shape = replace(config.net, classes=self.classes)
        self.diffusion = Diffusion("linear")
        if config.layout == "adm":
            self.network = start_as_adm(Unet(shape, data.channels, 2 * data.channels))
            self.reverse = LearnedVariance(self.diffusion.alpha_bar)
        else:
            self.network = Unet(shape, data.channels)

    # -- pre-training --------------------------------------------------------------------------------------------------

    @property
    def sees_labels(self) -> bool:
        return self.config.labels

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        x, warped = batch.images, None
        if self.config.net.label:
            warp = Warp.drawn(len(x), self.config.warp, rng.at("augment"))
            x, warped = warp.applied(x), warp.label().to(x.device)
        eps = rng.normal("noise", x.shape).to(x.device)
        if self.config.objective == "ddpm":
            first = 0 if self.config.layout == "adm" else 1
            level = (first + rng.integers("level", T, (len(x),))).to(x.device)
        else:
            level = self.config.edm.drawn(rng.normal("level", (len(x),)).to(x.device))
        labels = dropped(batch.labels, self.config.label_drop, self.classes, rng) if self.sees_labels else None
        dropout = self.training and self.config.net.dropout > 0
        with rng.lent("dropout") if dropout else nullcontext():
            return self.loss(x, level, eps, labels, warped)

    def loss(
        self, x: Tensor, level: Tensor, eps: Tensor, labels: Tensor | None = None, warped: Tensor | None = None
    ) -> Loss:
        """The loss of clean `x` with noise `eps`; `level` [B] is t from 1 (DDPM) or 0 (ADM), or sigma (EDM).

        `labels` [B] are of a network that has a table of them, the last one "none"; `warped` [B, 9] tells one
        that wants to know what was done to `x`.
        """
        network = self.led(labels)
        if warped is not None:
            network = partial(network, label=warped)
        if self.config.layout == "adm":
            noised = self.diffusion.noised(x, level, eps)
            mse, vb = self.reverse.hybrid(self.diffusion, x, noised, network(noised, level), eps, level)
            return Loss((mse + vb).mean(), {"mse": mse.detach().mean(), "vb": vb.detach().mean()})
        if self.config.objective == "edm":
            total = self.config.edm.loss(network, x, level, eps)
        else:
            found = network(self.diffusion.noised(x, level - 1, eps), level / T)
            total = (found.to(eps.dtype) - eps).square().mean()
        return Loss(total, {"mse": total.detach()})

    def optim(self, batch_size: int) -> Optim:
        c = self.config
        return Optim(
            c.lr,
            betas=c.betas,
            weight_decay=c.weight_decay,
            clip_norm=c.clip_norm,
            warmup=c.warmup,
            schedule=c.rate,
        )

    def augment(self) -> Augment:
        """Mirrored, never cropped, as in the paper; also where EDM's augmentation mirrors once more."""
        return Augment()

    # -- recognise -----------------------------------------------------------------------------------------------------

    def taps(self) -> list[Tap]:
        """Every decoder block at every level of light noise; four about the paper's own come first."""
        noises, usual = self.noises(), self.usual_noise()
        count, block = self.network.encoder_blocks, self.usual_block()
        beside = [(k, usual) for k in (block, block + 1, block - 1) if 1 <= k <= count]
        every = [(k, noise) for k in range(1, count + 1) for noise in noises]
        return [Tap(f"out_{k}", noise) for k, noise in dict.fromkeys([*beside, (block, noises[-1]), *every])]

    def noises(self) -> tuple[int, ...]:
        c = self.config
        return c.noises or NOISES["adm" if c.layout == "adm" else c.objective]

    def usual_noise(self) -> int:
        return self.noises()[len(self.noises()) // 2]

    def usual_block(self) -> int:
        """The paper's out_k: about the first decoder block with attention, counted from the bottleneck."""
        c = self.config
        if c.layout == "adm":
            return min(c.net.blocks + 3, self.network.encoder_blocks)  # ADM's b 24, the second of its level
        home = (len(c.net.mults) - 1 - max(c.net.attention, default=0)) * (c.net.blocks + 1) + 1
        later = (c.objective == "edm") + (c.net.resample == "residual") - 1
        return min(max(home + later, 1), self.network.encoder_blocks)

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        wanted: dict[int, set[int]] = {}
        for tap in taps:
            wanted.setdefault(tap.noise, set()).add(_block(tap))
        seen: dict[Tap, Tensor] = {}
        for last in {max(blocks) for blocks in wanted.values()}:
            # Levels that end at the same block share a pass, and none goes further than it has to.
            noises = [noise for noise, blocks in wanted.items() if max(blocks) == last]
            blocks = set().union(*(wanted[noise] for noise in noises))
            for block, maps in self.read(images, noises, {self.network.middle + k for k in blocks}, rng).items():
                taken = maps.float().chunk(len(noises))
                seen |= {Tap(f"out_{block - self.network.middle}", n): m for n, m in zip(noises, taken, strict=True)}
        return [seen[tap] if dense else seen[tap].mean(dim=(2, 3)) for tap in taps]

    def read(
        self, images: Tensor, noises: Sequence[int], blocks: set[int], rng: Rng, add: dict[int, Tensor] | None = None
    ) -> dict[int, Tensor]:
        """Maps [noises x B, D, H', W'] of `blocks`, numbered as in backbones/unet.py; the levels are stacked.

        `add`: see `Unet.read`. With a gradient, where one is wanted.
        """
        stacked = [self.noised(images, noise, rng.at("tap", noise).normal("noise", images.shape)) for noise in noises]
        x, told = (torch.cat(parts) for parts in zip(*stacked, strict=True))
        return self.network.read(x, told, blocks, add)

    def noised(self, images: Tensor, noise: int, eps: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees of `images` at level `noise` with noise `eps`, and what it is told of the level [B].

        DDPM counts t from 1 to 1000, ADM from 0 to 999, EDM its grid from 1, the least noise.
        """
        eps, edm = eps.to(images.device), self.config.edm
        if self.config.objective == "ddpm":
            t = torch.full((len(images),), noise, device=images.device)
            if self.config.layout == "adm":
                return self.diffusion.noised(images, t, eps), t
            return self.diffusion.noised(images, t - 1, eps), t / T
        sigma = torch.full((len(images),), edm.level(noise), device=images.device)
        return edm.scaled(images + edm.level(noise) * eps, sigma), edm.told(sigma)

    # -- draw ----------------------------------------------------------------------------------------------------------

    def labelled(self) -> Ddae:
        """This network with a table of labels, for a training with labels by the same recipe.

        A label's row is added to the code of the level, as in ADM.
        """
        new = inherit(type(self)(replace(self.config, labels=True), self.data), self)
        if not self.classes:
            start_fresh(new.network.unet.class_embedding.weight.data)
        return new

    def sampler(self, steps: int | None = None) -> str:
        if self.config.objective == "edm":
            return f"Heun, {self._steps(steps)} steps of two evaluations"
        return f"{'ancestral' if self.config.layout == 'adm' else 'DDIM'}, {self._steps(steps)} steps"

    def _steps(self, steps: int | None) -> int:
        """`steps`, or for None the config's."""
        if steps is not None:
            return steps
        if self.config.objective == "edm":
            return self.config.heun_steps
        return self.config.sample_steps or (250 if self.config.layout == "adm" else 100)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        rng: Rng,
        labels: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Without `labels`: of classes drawn evenly where pre-training saw labels, else of none."""
        if labels is not None and not self.classes:
            raise HarnessError("labels given to a DDAE without a table of them", "no labels, or ddae.labels=true")
        if labels is None and self.sees_labels:
            labels = rng.integers("label", self.data.classes, (n,))
        start = rng.normal("start", (n, self.data.channels, self.data.size, self.data.size))
        edm, adm = self.config.objective == "edm", self.config.layout == "adm"
        steps = self._steps(steps)
        network = self.led(labels, self.config.guidance if guidance is None else guidance)
        if adm:
            return self.ancestral(start, steps, rng, network).clamp(-1, 1)
        drawn = self.config.edm.heun(network, start, steps) if edm else self.ddim(start, steps, network)
        return drawn.clamp(-1, 1)

    def led(self, labels: Tensor | None, guidance: float = 1.0) -> Network:
        """The network as a function of images and what it is told of the level, led to `labels` [B] if there are."""
        if labels is None:
            return self.network
        if guidance == 1:
            return partial(self.network, classes=labels)
        return partial(self.network.guided, classes=labels, scale=guidance)

    def ancestral(self, start: Tensor, steps: int, rng: Rng, network: Network) -> Tensor:
        """ADM's sampler: `steps` respaced steps with the predicted variance, the clean image clipped."""

        def denoise(x: Tensor, k: int) -> Tensor:
            return network(x, torch.full((len(x),), k, device=x.device)).to(x.dtype)

        def noise(step: int) -> Tensor:
            return rng.at("step", step).normal("noise", start.shape)

        return ancestral(self.diffusion, denoise, start, self.diffusion.respaced(steps), noise, clip=True)

    def ddim(self, start: Tensor, steps: int, network: Network | None = None) -> Tensor:
        """Images of standard normal `start` in `steps` evaluations without fresh noise.

        The reference's schedule for sampling is the training's rule over 1001 levels instead of 1000, where the last,
        0, still has a little noise.
        """
        network = network or self.network
        if not 1 <= steps <= T:
            raise HarnessError(f"{steps} sampling steps", f"a number from 1 to {T}")
        times = [1 + i * T // steps for i in reversed(range(steps))]  # 991, 981 ... 1 for 100

        def denoise(x: Tensor, t: int) -> Tensor:
            return network(x, torch.full((len(x),), t / T, device=x.device)).to(x.dtype)

        if self.config.ddim_schedule == "training":
            return self.diffusion.ddim(lambda x, k: denoise(x, k + 1), start, [t - 1 for t in times], None, eta=0.0)
        other, x = Diffusion("linear", T + 1), start
        for t, after in pairwise([*times, 0]):
            x = other.ddim_step(x, denoise(x, t), t, after, None, eta=0.0, clip=True)
        return x


def _block(tap: Tap) -> int:
    return int(tap.layer.removeprefix("out_"))


NOISES = {"ddpm": (1, 11, 21), "edm": (3, 4, 5), "adm": (90, 150, 300)}  # the papers', as each counts


METHOD = Ddae
