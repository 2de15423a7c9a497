"""UMD: one ViT learns from clean, heavily masked images and noised, lightly masked ones in one step.

Hansen-Estruch et al. 2024, "Unified Auto-Encoding with Masked Diffusion", arXiv 2406.17688. Each batch is
split: one part keeps its pixels clean and loses 75 % of its patches, as in MAE (model time 0); the other is
noised as in DDPM and loses 37.5 % (model times 1..1000). Features are the class tokens of a clean, whole
image; samples come from the noise head. Borrows nothing. The specification is the project's card; what
departs from it is in card.toml.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.diffusion import Diffusion, T
from backbones.sizes import TOKENS_ACROSS, TRUNKS, patch_size
from backbones.tokens import Drop, drop_under, dropped_pixels, kept_tokens, patchify, random_drop, unpatchify
from backbones.umd_vit import Encoded, UmdVit
from harness.errors import HarnessError
from harness.method import Augment, Batch, DataSpec, Loss, Method, Optim, Reconstruction, Tap, inherit, require_taps
from harness.rng import Rng

# Shapes: B batch, n its noisy part, C channels, H = W image side, L patches, p patch side, D width.


@dataclass(frozen=True)
class Config:
    """The paper's pixel UMD-B/4 (64 px) as the official code sets it."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_depth: int = 4  # same width and heads as the encoder
    patch: int = 4  # px
    class_tokens: int = 4
    class_token_std: float = 0.0  # 0: the tokens stay identical for ever (README, pitfall 2); 0.02 sets them apart
    classes: int = 0  # above 0 adds the label table of the generation fine-tune; pre-training sees no label
    no_noise: float = 0.5  # r: share of the batch at model time 0
    mask_ratio: float = 0.75  # of the clean part
    mask_ratio_noisy: float = 0.375
    schedule: Literal["cosine", "linear"] = "cosine"  # linear is for latents
    base_lr: float = 1.5e-4  # peak rate per 256 images of batch
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    warmup: float = 0.05  # share of the budget
    crop: tuple[float, float] = (0.8, 1.0)  # area of the random crop
    sample_steps: int = 125
    sample_eta: float = 1.0  # 1 is ancestral
    guidance: float = 1.0  # only with labels; 1 is plain conditional
    tap_noise: int = 50  # noise level k of the noised tap, the one the code gives its DiT baselines

    def __post_init__(self) -> None:
        if not 0 <= self.no_noise <= 1:
            raise ValueError("no_noise is a share of the batch, from 0 to 1")
        if not 0 < self.mask_ratio < 1 or not 0 <= self.mask_ratio_noisy < 1:
            raise ValueError("mask ratios lie between 0 and 1; only mask_ratio_noisy may be 0")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} has to be even and divide into {self.heads} heads")
        if not 1 <= self.sample_steps <= T or not 0 <= self.tap_noise < T:
            raise ValueError(f"sample_steps is from 1 to {T}, tap_noise from 0 to {T - 1}")


class Draws(NamedTuple):
    """Everything random in a step; the first n images of the batch, as many as there are k, are noised."""

    k: Tensor  # [n] noise levels
    eps: Tensor  # [n, C, H, W]
    order_noisy: Tensor  # [n, L]; the patches of smallest order stay visible
    order_clean: Tensor  # [B - n, L]


class Umd(Method):
    Config = Config

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.config, self.data = config, data
        self.network = UmdVit(
            data.size, data.channels, c.patch, c.width, c.depth, c.decoder_depth, c.heads,
            c.class_tokens, c.class_token_std, c.classes,
        )  # fmt: skip
        self.diffusion = Diffusion(c.schedule)
        if c.no_noise == c.mask_ratio_noisy == 0:
            self.network.mask_token.requires_grad_(False)  # nothing is dropped; data parallel wants no idle weight

    @classmethod
    def recipe(cls, size: str, data: DataSpec) -> Config:
        trunk = TRUNKS[size]._asdict()
        patch = patch_size(data.size, TOKENS_ACROSS[size])
        # The paper's rate is for 800 epochs at batch 1024; budgets of minutes at batch 128 need a larger one.
        base_lr = {"nano": 4e-3, "ti": 2e-3}.get(size, Config.base_lr)
        if size == "nano":
            # 125 sampling steps would cost more than they add: 50 are enough to judge so short a training.
            return Config(**trunk, patch=patch, decoder_depth=2, base_lr=base_lr, sample_steps=50)
        return Config(**trunk, patch=patch, decoder_depth=8 if size == "l" else 4, base_lr=base_lr)

    # -- pre-training --------------------------------------------------------------------------------------

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        return self.objective(batch.images, self.draws(batch.images, rng))

    def draws(self, images: Tensor, rng: Rng) -> Draws:
        """What is random in a step on `images` [B, C, H, W], of a shared batch those that this process has."""
        tokens, whole = self.network.tokens, rng.whole(len(images))
        split = whole - int(whole * self.config.no_noise)
        noisy, clean = rng.part(0, split), rng.part(split, whole)
        n = noisy.share.count
        return Draws(
            k=noisy.integers("time", T, (n,)),
            eps=noisy.normal("noise", (n, *images.shape[1:])),
            order_noisy=noisy.uniform("mask-noisy", (n, tokens)),
            order_clean=clean.uniform("mask-clean", (len(images) - n, tokens)),
        )

    def objective(self, images: Tensor, draws: Draws, labels: Tensor | None = None) -> Loss:
        """The loss of `images` [B, C, H, W], everything random given; `labels` [n] are for the noisy part."""
        net, n, clean = self.network, len(draws.k), len(images) - len(draws.k)
        noised = self.diffusion.noised(images[:n], draws.k, draws.eps)
        if labels is not None:
            labels = F.pad(labels, (0, clean), value=self.config.classes)  # clean images never have a label
        cond = net.condition(F.pad(draws.k + 1, (0, clean)), labels)  # [B, D]; clean images have model time 0
        drop_noisy = self._drop(draws.order_noisy, self.config.mask_ratio_noisy)
        drop_clean = self._drop(draws.order_clean, self.config.mask_ratio)

        # The parts keep different numbers of patches, so each passes the encoder alone; the decoder sees all
        # patches of both and takes them together.
        parts = [(noised, cond[:n], drop_noisy), (images[n:], cond[n:], drop_clean)]
        filled = [net.fill(net.encode(x, c, drop), drop) for x, c, drop in parts if len(x)]
        x0_hat, eps_hat = net.decode(torch.cat(filled), cond)  # [B, L, p*p*C] each
        miss_x0 = (x0_hat - patchify(images, net.patch)).square().mean(dim=2)  # [B, L]
        miss_eps = (eps_hat[:n] - patchify(draws.eps, net.patch)).square().mean(dim=2)  # [n, L]

        terms, shares = {}, []
        if clean:
            terms["loss_rep"] = masked_mean(miss_x0[n:], drop_clean.dropped)
            shares.append(clean / len(images) * terms["loss_rep"])
        if n:
            dropped = None if drop_noisy is None else drop_noisy.dropped
            terms["loss_eps"] = masked_mean(miss_eps, None if dropped is None else 1 - dropped)
            terms["loss_x0"] = masked_mean(miss_x0[:n], dropped)
            shares.append(n / len(images) * (terms["loss_eps"] + terms["loss_x0"]) / 2)
        return Loss(sum(shares), {name: term.detach() for name, term in terms.items()})

    def _drop(self, order: Tensor, ratio: float) -> Drop | None:
        return random_drop(order, kept_tokens(self.network.tokens, ratio)) if ratio else None

    def optim(self, batch_size: int) -> Optim:
        c = self.config
        return Optim(
            c.base_lr * batch_size / 256,
            betas=c.betas,
            weight_decay=c.weight_decay,
            clip_norm=c.clip_norm,
            warmup=c.warmup,
        )

    def param_groups(self) -> list[dict[str, Any]]:
        """No decay on class tokens, mask token, biases; norm scales and position tables decay (card, 5)."""
        free = {self.network.cls, self.network.mask_token}
        free |= {p for name, p in self.named_parameters() if name.endswith("bias")}
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p not in free]},
            {"params": [p for p in trained if p in free], "weight_decay": 0.0},
        ]

    def augment(self) -> Augment:
        return Augment(crop=self.config.crop, aspect=(0.75, 1.33), interpolation="bilinear")

    # -- recognise -----------------------------------------------------------------------------------------

    def taps(self) -> list[Tap]:
        """The paper's feature, patch tokens at two depths of its pass, and the feature of a noised image."""
        return [Tap("cls"), Tap("patches"), Tap(f"block{self._middle}"), Tap("cls", self.config.tap_noise)]

    @property
    def _middle(self) -> int:
        return max(1, self.config.depth * 3 // 4)

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        if dense and any(tap.layer == "cls" for tap in taps):
            maps = ", ".join(str(tap) for tap in self.taps() if tap.layer != "cls")
            raise HarnessError("the class tokens are one vector for the whole image", f"for maps, one of {maps}")
        levels = dict.fromkeys(tap.noise for tap in taps)
        passes = {level: self._read(images, level, rng) for level in levels}
        return [self._pool(passes[tap.noise], tap.layer, dense) for tap in taps]

    def _read(self, images: Tensor, noise: int | None, rng: Rng) -> Encoded:
        """One pass of the encoder over whole images, clean or at noise level `noise`."""
        time = torch.zeros(len(images), dtype=torch.long, device=images.device)
        if noise is not None:
            eps = rng.at("tap", noise).normal("noise", images.shape)
            images, time = self.diffusion.noised(images, time + noise, eps), time + noise + 1
        return self.network.encode(images, self.network.condition(time), look=(self._middle,))

    def _pool(self, encoded: Encoded, layer: str, dense: bool) -> Tensor:
        if layer == "cls":
            return encoded.rep
        tokens = encoded.tokens if layer == "patches" else encoded.blocks[self._middle]  # [B, L, D]
        side = self.data.size // self.config.patch
        return tokens.mT.unflatten(2, (side, side)) if dense else tokens.mean(dim=1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, hide: float | Tensor, rng: Rng) -> Reconstruction:
        """The clean half of the objective: model time 0, dropped patches from the head of clean pixels."""
        net, patches = self.network, patchify(images, self.config.patch)
        if isinstance(hide, Tensor):
            drop = drop_under(hide, patches)
        else:
            drop = self._drop(rng.uniform("mask", patches.shape[:2]), hide)
        cond = net.condition(torch.zeros(len(images), dtype=torch.long, device=images.device))
        predicted, _ = net.decode(net.fill(net.encode(images, cond, drop), drop), cond)
        filled = torch.where(drop.dropped[..., None].bool(), predicted.to(patches.dtype), patches)
        filled = unpatchify(filled, self.config.patch).clamp(-1, 1)
        return Reconstruction(filled, dropped_pixels(drop, self.data.size))

    # -- draw ----------------------------------------------------------------------------------------------

    def labelled(self) -> Umd:
        """This UMD in the paper's generative fine-tune."""
        from methods.umd.labelled import LabelledUmd

        return inherit(LabelledUmd.of(self), self)

    def sampler(self, steps: int | None = None) -> str:
        rule = "ancestral" if self.config.sample_eta == 1 else f"DDIM, eta {self.config.sample_eta:g}"
        return f"{rule}, {self.config.sample_steps if steps is None else steps} steps"

    @torch.no_grad()
    def sample(
        self,
        n: int,
        rng: Rng,
        labels: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """The paper's sampler on the pre-trained weights; the paper fine-tunes with labels first."""
        if labels is not None and not self.config.classes:
            raise HarnessError("labels given to a UMD that was built without any", "no labels, or umd.classes above 0")
        shape = (n, self.data.channels, self.data.size, self.data.size)
        start = rng.normal("start", shape)
        return self.denoised(start, lambda step: rng.at("step", step).normal("noise", shape), labels, steps, guidance)

    @torch.no_grad()
    def denoised(
        self,
        x: Tensor,
        noise: Callable[[int], Tensor],
        labels: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Noise `x` [n, C, H, W] taken down to a clean image; `noise(i)` is the fresh noise of step i."""
        scale = self.config.guidance if guidance is None else guidance

        def denoise(x: Tensor, k: int) -> Tensor:
            time = torch.full((len(x),), k + 1, device=x.device)
            if labels is None or scale == 1:
                return self.network(x, time, labels).eps
            return self.network.guided(x, time, labels, scale).eps

        levels = self.diffusion.grid(self.config.sample_steps if steps is None else steps)
        return self.diffusion.ddim(denoise, x, levels, noise, self.config.sample_eta)


def masked_mean(x: Tensor, where: Tensor | None) -> Tensor:
    """The mean of `x` where `where` is 1; of all without it."""
    return x.mean() if where is None else (x * where).sum() / where.sum()


METHOD = Umd
