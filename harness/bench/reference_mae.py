"""The reference MAE's own pre-training loop.

Its code is of 2021. What current libraries took away since is put back before it is imported (card mae, section 13).
"""

from __future__ import annotations

import collections.abc
import math
import sys
from argparse import Namespace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.bench.reference import Feed, Loop, Pictures

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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


class Reference(Loop):
    """Its model, its AdamW, its scaler and its `train_one_epoch`, on our images and widths."""

    def __init__(self, images: np.ndarray, config: Any, batch_size: int, device: torch.device) -> None:
        restore_old_names()
        import engine_pretrain  # type: ignore[import-not-found]
        import models_mae  # type: ignore[import-not-found]
        from timm.optim import param_groups_weight_decay
        from util import misc  # type: ignore[import-not-found]

        self.device, self.batch_size, self.epoch = device, batch_size, 0
        self.precision = "fp16" if device.type == "cuda" else "fp32"
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

    def go(self, feed: Feed) -> None:
        self.train_one_epoch(
            self.model, feed, self.optimizer, self.device, 100 + self.epoch, self.scaler, args=self.args
        )
        self.epoch += 1


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
