"""DiT: a plain transformer that predicts the noise in an image, and how sure it is of it.

Peebles & Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, arXiv 2212.09748; see methods/dit/README.md.
Measured: the squared error of the noise plus the variational term of the variance; features are the mean token of a
middle block, for an image with little or no noise; samples are ancestral, with the learned variance. In pixels it
borrows nothing; the paper works on the latents of Stable Diffusion's VAE (`dit.vae`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from backbones.diffusion import Diffusion, T
from backbones.dit_vit import DitVit
from backbones.labels import dropped, start_fresh
from backbones.learned_variance import LearnedVariance, ancestral
from backbones.on_latents import OnLatents, build_vae
from backbones.sizes import TOKENS_ACROSS, TRUNKS, Trunk, patch_size
from backbones.vae import VaeConfig
from harness.errors import HarnessError
from harness.method import Augment, Batch, DataSpec, Loss, Optim, Tap, inherit, require_taps
from harness.rng import Rng

# Shapes: B batch, C channels and S side of what the network sees (pixels or latents), N tokens, D width.


@dataclass(frozen=True)
class Config:
    """The paper's DiT-XL/2, without labels."""

    vae: str = "CompVis/stable-diffusion-v1-4"  # hub name, folder, "taef2:FOLDER", "train" (ours), "none" (pixels)
    vae_side: int = 0  # px that images are resized to before a borrowed VAE; 0 is the nearest that fits
    vae_width: Literal["nano", "ti", "s", "b", "l", "xl"] = "s"  # of a VAE trained here
    vae_share: float = 0.2  # of the budget, for training the VAE; only with vae = "train"
    vae_training: VaeConfig = VaeConfig()  # noqa: RUF009 (frozen)
    views: Literal[0, 1, 2] = 2  # cached latents per image, 2 with the mirrored one; 0 encodes at every step
    latent_scale: float = 0.18215  # Stable Diffusion's, for a diffusers VAE: brings its latents to unit scale
    patch: int = 2  # of latent places, or px
    trunk: Trunk = TRUNKS["xl"]
    classes: int = 0  # in the label table; 0 is the data set's where pre-training sees labels, else no table
    labels: bool = False  # pre-training sees labels, as the paper's; the record and every table say so
    label_drop: float = 0.1  # share of labels that training replaces by "no label"
    learn_sigma: bool = True
    schedule: Literal["linear", "cosine"] = "linear"
    lr: float = 1e-4  # not scaled with the batch
    rate: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: float = 0.0  # share of the training
    noises: tuple[int, ...] = (10, 40, 80, 120)  # levels from 0, rising, that features can be read at; also unnoised
    sample_steps: int = 250
    sampler: Literal["ancestral", "ddim"] = "ancestral"  # "ddim" draws no noise after the first
    guidance: float = 1.0  # of samples with labels; 1 is plain conditional

    def __post_init__(self) -> None:
        if list(self.noises) != sorted(set(self.noises)) or not all(0 <= noise < T for noise in self.noises):
            raise ValueError(f"noises are different levels from 0 to {T - 1}, rising")
        if not 1 <= self.sample_steps <= T:
            raise ValueError(f"sample_steps is from 1 to {T}")
        if not 0 < self.vae_share < 1 or not 0 <= self.warmup < 1 or not 0 <= self.label_drop < 1:
            raise ValueError("vae_share, warmup and label_drop are shares")
        if self.classes < 0:
            raise ValueError("classes is 0 (no table of its own) or how many there are")
        if self.trunk.width % 4 or self.trunk.width % self.trunk.heads:
            raise ValueError(f"width {self.trunk.width} has to divide into {self.trunk.heads} heads, and by 4")


class Dit(OnLatents):
    Config = Config
    sizes = ("nano", "ti", "s", "b", "l", "xl")

    @classmethod
    def recipe(cls, size: str, data: DataSpec) -> Config:
        # In pixels, so that nothing is borrowed and no network is needed; as many tokens as every method has.
        config = Config(vae="none", patch=patch_size(data.size, TOKENS_ACROSS[size]), trunk=TRUNKS[size])
        if size in SHORT:  # the paper's constant rate is for days; a budget of minutes has to be annealed
            config = replace(config, lr=SHORT[size], rate="cosine", warmup=0.05)
        return replace(config, sample_steps=50) if size == "nano" else config

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.config, self.data = config, data
        self.vae = build_vae(config, data)
        self.channels = data.channels if self.vae is None else self.vae.channels
        self.side = data.size if self.vae is None else self.vae.latent_side
        out = self.channels * (2 if c.learn_sigma else 1)
        self.classes = c.classes or (data.classes if c.labels else 0)
        if c.labels and self.classes < data.classes:
            raise HarnessError(f"dit.classes={c.classes} with labels", f"at least the data set's {data.classes}, or 0")
        self.network = DitVit(self.side, self.channels, out, c.patch, *c.trunk, classes=self.classes)
        self.diffusion = Diffusion(c.schedule)
        self.reverse = LearnedVariance(self.diffusion.alpha_bar)

    # -- pre-training -------------------------------------------------------------------------------------------------

    @property
    def sees_labels(self) -> bool:
        return self.config.labels

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        x = self._seen(batch.images) if batch.latents is None else batch.latents.float() * self._scale
        k = rng.integers("level", T, (len(x),)).to(x.device)
        eps = rng.normal("noise", x.shape).to(x.device)
        labels = dropped(batch.labels, self.config.label_drop, self.classes, rng) if self.sees_labels else None
        return self.objective(x, k, eps, labels)

    def objective(self, x: Tensor, k: Tensor, eps: Tensor, labels: Tensor | None = None) -> Loss:
        """The loss of clean `x` [B, C, S, S] at levels `k` [B] with noise `eps`; `labels` [B], the last is "none"."""
        noised = self.diffusion.noised(x, k, eps)
        found = self.network(noised, k, labels).to(eps.dtype)
        if not self.config.learn_sigma:
            mse = (found - eps).square().mean()
            return Loss(mse, {"mse": mse.detach()})
        mse, vb = self.reverse.hybrid(self.diffusion, x, noised, found, eps, k)
        return Loss((mse + vb).mean(), {"mse": mse.detach().mean(), "vb": vb.detach().mean()})

    @property
    def _scale(self) -> float:
        """Our own VAE's and TAEF2's latents are near unit scale as they are (TAEF2's 0.91 on CIFAR-10)."""
        near_unit = self.config.vae in ("none", "train") or self.config.vae.startswith("taef2:")
        return 1.0 if near_unit else self.config.latent_scale

    @torch.no_grad()
    def _seen(self, images: Tensor) -> Tensor:
        """What the network sees of `images`: [B, C, S, S]."""
        return images if self.vae is None else self.vae.encode(images) * self._scale

    def optim(self, batch_size: int) -> Optim:
        c = self.config
        return Optim(c.lr, betas=c.betas, weight_decay=c.weight_decay, warmup=c.warmup, schedule=c.rate)

    def augment(self) -> Augment:
        """Mirrored, never cropped, as in the paper."""
        return Augment(mirror=self.vae is None or self.config.views != 1)

    # -- recognise ----------------------------------------------------------------------------------------------------

    def taps(self) -> list[Tap]:
        """Any block, for the clean image and each of `noises`; the four that come first are the usual optimum."""
        depth = self.config.trunk.depth
        middle, later = max(1, depth // 2), max(1, depth * 3 // 4)
        levels = self._levels()
        usual = [(block, noise) for block in (middle, later) for noise in levels[:2]]
        every = [(block, noise) for block in range(1, depth + 1) for noise in [None, *self.config.noises]]
        return [Tap(f"block{block}", noise) for block, noise in dict.fromkeys([*usual, *every])]

    def fusion(self) -> list[list[Tap]]:
        depth = self.config.trunk.depth
        blocks = dict.fromkeys(max(1, depth * quarters // 4) for quarters in (2, 3, 4))
        return [[Tap(f"block{block}", noise) for block in blocks] for noise in self._levels()]

    def _levels(self) -> list[int | None]:
        """The clean image, the usual light noise, and the strongest."""
        noises = self.config.noises
        return list(dict.fromkeys([None, *noises[1:2], *noises[-1:]]))

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        x = self._seen(images)
        passes = {
            noise: self._read(x, noise, {_block(t) for t in taps if t.noise == noise}, rng)
            for noise in dict.fromkeys(tap.noise for tap in taps)
        }
        found = [passes[tap.noise][_block(tap)].float() for tap in taps]  # [B, N, D]
        if dense:
            across = self.network.across
            return [tokens.mT.unflatten(2, (across, across)) for tokens in found]
        return [tokens.mean(dim=1) for tokens in found]

    def _read(self, x: Tensor, noise: int | None, blocks: set[int], rng: Rng) -> dict[int, Tensor]:
        """Tokens after each of `blocks`, in one pass without a label that goes no further than it has to."""
        level = torch.full((len(x),), noise or 0, device=x.device)
        if noise is not None:
            x = self.diffusion.noised(x, level, rng.at("tap", noise).normal("noise", x.shape))
        return self.network.blocks.read(self.network.tokens(x), self.network.condition(level), blocks)

    # -- draw ---------------------------------------------------------------------------------------------------------

    def labelled(self) -> Dit:
        """This DiT with a label table, for a training with labels by the same recipe."""
        new = inherit(type(self)(replace(self.config, labels=True), self.data), self)
        if not self.classes:
            start_fresh(new.network.label_table.weight.data)
        return new

    def sampler(self, steps: int | None = None) -> str:
        return f"ancestral, {self.config.sample_steps if steps is None else steps} steps"

    @torch.no_grad()
    def sample(
        self,
        n: int,
        rng: Rng,
        labels: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Without `labels`: of classes drawn evenly where pre-training saw labels (the paper's way), else of none."""
        if labels is not None and not self.classes:
            raise HarnessError("labels given to a DiT that was built without any", "no labels, or dit.classes above 0")
        if labels is None and self.sees_labels:
            labels = rng.integers("label", self.data.classes, (n,))
        shape = (n, self.channels, self.side, self.side)
        start = rng.normal("start", shape)
        x = self.denoised(start, lambda step: rng.at("step", step).normal("noise", shape), labels, steps, guidance)
        return (x if self.vae is None else self.vae.decode(x / self._scale)).clamp(-1, 1)

    @torch.no_grad()
    def denoised(
        self,
        x: Tensor,
        noise: Callable[[int], Tensor],
        labels: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Noise `x` [n, C, S, S] taken down to a clean image or latent; `noise(i)` is the fresh noise of step i."""
        steps = self.config.sample_steps if steps is None else steps
        scale = self.config.guidance if guidance is None else guidance
        clip = self.vae is None  # latents have no range to clip to

        def denoise(x: Tensor, k: int) -> Tensor:
            level = torch.full((len(x),), k, device=x.device)
            if labels is None or scale == 1:
                found = self.network(x, level, labels).to(x.dtype)
            else:
                found = self.network.guided(x, level, labels, scale).to(x.dtype)
            # Without a variance of its own a step has the reference's: beta, the upper bound.
            return found if self.config.learn_sigma else torch.cat([found, torch.ones_like(found)], dim=1)

        if self.config.sampler == "ancestral":
            return ancestral(self.diffusion, denoise, x, self.diffusion.respaced(steps), noise, clip)
        levels = self.diffusion.strided(steps)
        return self.diffusion.ddim(lambda x, k: denoise(x, k).chunk(2, dim=1)[0], x, levels, noise, 0.0, clip)


SHORT = {"nano": 2e-3, "ti": 1e-3}  # sizes for budgets of minutes: the peak rate (card.toml says how it was chosen)


def _block(tap: Tap) -> int:
    return int(tap.layer.removeprefix("block"))


METHOD = Dit
