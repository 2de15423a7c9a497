"""The reference MAE's own pre-training loop, run from a checkout that the user names; nothing of it is copied here.

Its code is of 2021. What current libraries took away since is put back before it is imported (card mae, section 13),
which changes modules of the process: only `harness.bench.side` may do so, in a child process.
"""

from __future__ import annotations

import collections.abc
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.bench.rounds import Parts, patched
from harness.errors import HarnessError

FILES = ("models_mae.py", "engine_pretrain.py", "util/misc.py", "util/lr_sched.py", "util/pos_embed.py")
DEFAULT_WORKERS = 10  # of its DataLoader, for a machine with more cores than that
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def require(checkout: Path | None) -> Path:
    """The checkout as an absolute path. Raises HarnessError when none was named or it is not one."""
    clone = "git clone facebookresearch/mae from GitHub into ./mae, then: "
    next_step = clone + "python -m harness bench train --reference mae"
    if checkout is None:
        raise HarnessError(
            "bench train has nothing to compare with",
            "--reference CHECKOUT of the MAE paper's code",
            next_step,
        )
    lacking = [name for name in FILES if not (checkout / name).is_file()]
    if lacking:
        raise HarnessError(f"{checkout} lacks {', '.join(lacking)}", "a checkout of the MAE paper's code", next_step)
    return checkout.resolve()


def worker_choices() -> list[int]:
    """Numbers of DataLoader workers to try: its default cut to the cores there are, one, and none."""
    return sorted({0, 1, min(DEFAULT_WORKERS, os.cpu_count() or 1)})


def restore_old_names() -> None:
    """Put back what torch, numpy and timm have removed and the reference still imports."""
    import timm.models.vision_transformer as vit

    np.float = float  # type: ignore[attr-defined]
    six = ModuleType("torch._six")
    six.inf, six.container_abcs = math.inf, collections.abc  # type: ignore[attr-defined]
    sys.modules["torch._six"] = six
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda device=None: None
    vit.Block = _without_qk_scale(vit.Block)


def _without_qk_scale(block: type[nn.Module]) -> type[nn.Module]:
    class Block(block):  # type: ignore[misc, valid-type]
        """timm's block, deaf to an argument it used to have; the reference always passes None."""

        def __init__(self, *args: Any, qk_scale: None = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    return Block


class Pictures(torch.utils.data.Dataset):
    """uint8 images [n, C, H, W] as PIL pictures through a transform: what ImageFolder gives, without decoding files."""

    def __init__(self, images: np.ndarray, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index].transpose(1, 2, 0))), 0


class Feed:
    """The DataLoader cut to `steps` batches after `warm` that do not count; keeps the time and the parts of the rest.

    The loader is given up and not exhausted, so that its workers still work ahead when the clock stops, as they do in
    the middle of a long epoch; starting and stopping them is not timed.
    """

    def __init__(self, loader: Any, warm: int, steps: int, parts: Parts) -> None:
        if len(loader) < warm + steps:
            raise HarnessError(f"an epoch of {len(loader)} batches", f"at least {warm + steps}")
        self.loader, self.warm, self.steps, self.parts = loader, warm, steps, parts
        self.seconds = math.nan

    def __len__(self) -> int:
        return self.warm + self.steps

    def __iter__(self) -> Iterator[Any]:
        following = self.parts.wrap("data", partial(next, iter(self.loader)))
        began = math.nan
        for i in range(len(self)):
            if i == self.warm:
                self.parts.seconds.clear()
                began = time.perf_counter()
            yield following()
        self.seconds = time.perf_counter() - began


class Reference:
    """Its model, its AdamW, its scaler and its `train_one_epoch`, on our images and widths."""

    def __init__(self, checkout: Path, images: np.ndarray, config: Any, batch_size: int, device: torch.device) -> None:
        restore_old_names()
        sys.path.insert(0, str(checkout))
        import engine_pretrain  # type: ignore[import-not-found]
        import models_mae  # type: ignore[import-not-found]
        from timm.optim import param_groups_weight_decay
        from util import misc  # type: ignore[import-not-found]

        self.device, self.batch_size, self.epoch = device, batch_size, 0
        self.train_one_epoch = engine_pretrain.train_one_epoch
        self.model = _build(models_mae, config, images.shape[-1]).to(device)
        lr = config.base_lr * batch_size / 256
        groups = param_groups_weight_decay(self.model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=config.betas)
        self.scaler = misc.NativeScalerWithGradNormCount()
        self.data = Pictures(images, _transform(images.shape[-1], config.crop))
        self.args = Namespace(
            accum_iter=1, mask_ratio=config.mask_ratio, lr=lr, min_lr=0.0, warmup_epochs=40, epochs=800
        )

    def about(self) -> dict[str, Any]:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {"parameters": trained, "precision": "fp16" if self.device.type == "cuda" else "fp32"}

    def run(self, warm: int, steps: int, workers: int, parts: Parts) -> float:
        """Seconds of `steps` steps of its loop, after `warm` steps that do not count."""
        loader = torch.utils.data.DataLoader(
            self.data,
            sampler=torch.utils.data.DistributedSampler(self.data, num_replicas=1, rank=0, shuffle=True),
            batch_size=self.batch_size,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            drop_last=True,
        )
        feed = Feed(loader, warm, steps, parts)
        self.train_one_epoch(
            self.model, feed, self.optimizer, self.device, 100 + self.epoch, self.scaler, args=self.args
        )
        self.epoch += 1
        return feed.seconds

    def profile(self, warm: int, steps: int, workers: int, parts: Parts) -> float:
        """`run` with forward, backward and optimizer booked too."""
        with (
            patched(self.model, "forward", parts.wrap("forward", self.model.forward)),
            patched(self.optimizer, "step", parts.wrap("optimizer", self.optimizer.step)),
            patched(torch.Tensor, "backward", parts.wrap("backward", torch.Tensor.backward)),
        ):
            return self.run(warm, steps, workers, parts)


def _build(models_mae: ModuleType, config: Any, side: int) -> nn.Module:
    encoder, decoder = config.encoder, config.decoder
    return models_mae.MaskedAutoencoderViT(
        img_size=side,
        patch_size=config.patch,
        in_chans=3,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        decoder_embed_dim=decoder.width,
        decoder_depth=decoder.depth,
        decoder_num_heads=decoder.heads,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss=config.norm_pix,
    )


def _transform(side: int, crop: tuple[float, float]) -> Any:
    """The reference recipe's pipeline: bicubic crop, mirror, tensor, ImageNet's mean and deviation."""
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=crop, interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*IMAGENET),
        ]
    )
