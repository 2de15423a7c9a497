"""Randomness by name: every draw comes from a generator keyed by (seed, purpose, step or sample index).

There is no random state to save. A run that resumes at step k draws what the unbroken run would have drawn,
because the draw depends on its key alone and never on what was drawn before (design.md, "Randomness and resume").

Where several processes share a batch, each draws for the whole batch and keeps its own images' part: what happens to an
image does not depend on how many processes there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from harness.errors import HarnessError

Key = str | int


class Share(NamedTuple):
    """What one process has of a batch: every `ranks`-th of its `whole` images, from image `first` on."""

    first: int
    ranks: int
    whole: int

    @property
    def count(self) -> int:
        return len(range(self.first, self.whole, self.ranks))

    def drawn(self, shape: Sequence[int], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """This process's part, of `shape`, of what `draw` makes for the whole batch."""
        if not len(shape) or shape[0] != self.count:
            raise HarnessError(
                f"a draw of shape {tuple(shape)} in a step whose batch is shared by {self.ranks} processes",
                f"[{self.count}, ...], a row for each image that this process has",
                "rng.alone for a draw that is not per image, rng.part for one of some images of the batch",
            )
        return draw((self.whole, *shape[1:]))[self.first :: self.ranks].contiguous()


@dataclass(frozen=True)
class Rng:
    """A place in the tree of random streams; `at` goes deeper, the draws below take one more key.

    With a `share`, `normal`, `uniform` and `integers` are per image: the first number of a shape is how many images
    this process has of the batch. `number` and `permutation` are the same in every process.
    """

    seed: int
    path: tuple[Key, ...] = ()
    device: torch.device | str = "cpu"
    share: Share | None = None  # None: all of the batch is here

    def at(self, *keys: Key) -> Rng:
        """The stream below this one: `rng.at("step", 7)`."""
        return replace(self, path=self.path + keys)

    def to(self, device: torch.device | str) -> Rng:
        """The same stream, drawing on `device`. Draws on CPU and on CUDA differ; draws on one device repeat."""
        return replace(self, device=device)

    @property
    def alone(self) -> Rng:
        """The same stream for draws that are no part of a shared batch's."""
        return replace(self, share=None)

    def whole(self, images: int) -> int:
        """Images in the whole batch, of which this process has `images`."""
        return images if self.share is None else self.share.whole

    def part(self, start: int, stop: int) -> Rng:
        """The same stream for draws of images `start` to `stop` of the whole batch alone; its `share` counts them."""
        first, ranks, _ = self.share or (0, 1, stop)
        return replace(self, share=Share((first - start) % ranks, ranks, stop - start))

    def number(self, *keys: Key) -> int:
        """A 63-bit integer that depends on the seed and the keys only: a seed for libraries that want one."""
        text = "/".join(map(repr, (self.seed, *self.path, *keys)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def generator(self, *keys: Key) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.number(*keys))

    def normal(self, key: Key, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 of `shape`."""
        return self._drawn(shape, lambda whole: torch.randn(whole, generator=self.generator(key), device=self.device))

    def uniform(self, key: Key, shape: Sequence[int]) -> Tensor:
        """Uniform float32 in [0, 1) of `shape`."""
        return self._drawn(shape, lambda whole: torch.rand(whole, generator=self.generator(key), device=self.device))

    def integers(self, key: Key, high: int, shape: Sequence[int]) -> Tensor:
        """Uniform int64 in [0, high) of `shape`."""
        return self._drawn(
            shape, lambda whole: torch.randint(high, whole, generator=self.generator(key), device=self.device)
        )

    def _drawn(self, shape: Sequence[int], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        return draw(tuple(shape)) if self.share is None else self.share.drawn(shape, draw)

    def permutation(self, key: Key, n: int) -> Tensor:
        """A random order of 0..n-1, int64."""
        return torch.randperm(n, generator=self.generator(key), device=self.device)

    @contextmanager
    def lent(self, key: Key) -> Iterator[None]:
        """torch's own generators follow this stream inside, and are as they were afterwards: for layers that can take
        no generator (dropout).

        Dropout masks, too, are drawn for the whole of a shared batch. Which number falls on which place follows a
        tensor's memory, and some layers lay out that of a single image otherwise: a process with one image alone may
        have other masks than it would have among more.
        """
        cuda = torch.device(self.device).type == "cuda"
        with torch.random.fork_rng(devices=[torch.device(self.device)] if cuda else []):
            torch.manual_seed(self.number(key))
            with nullcontext() if self.share is None else _SharedDropout(self.share):
                yield


class _SharedDropout(TorchFunctionMode):
    """Draws every dropout mask for the whole batch, and applies this process's part of it."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.dropout or not kwargs.get("training", True):
            return func(*args, **kwargs)
        (x,) = args

        def mask(shape: tuple[int, ...]) -> Tensor:
            # Memory as x has it: the generator fills a mask in that order.
            channels_last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
            whole = torch.empty(
                shape,
                dtype=x.dtype,
                device=x.device,
                memory_format=torch.channels_last if channels_last else torch.contiguous_format,
            )
            return F.dropout(whole.fill_(1.0), kwargs.get("p", 0.5))

        return x * self.share.drawn(x.shape, mask)
