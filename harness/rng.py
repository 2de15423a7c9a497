"""Randomness by name: every draw comes from a generator keyed by (seed, purpose, step or sample index).

There is no random state to save. A run that resumes at step k draws what the unbroken run would have drawn,
because the draw depends on its key alone and never on what was drawn before (design.md, "Randomness and resume").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Key = str | int


@dataclass(frozen=True)
class Rng:
    """A place in the tree of random streams; `at` goes deeper, the draws below take one more key."""

    seed: int
    path: tuple[Key, ...] = ()
    device: torch.device | str = "cpu"

    def at(self, *keys: Key) -> Rng:
        """The stream below this one: `rng.at("step", 7)`."""
        return replace(self, path=self.path + keys)

    def to(self, device: torch.device | str) -> Rng:
        """The same stream, drawing on `device`. Draws on CPU and on CUDA differ; draws on one device repeat."""
        return replace(self, device=device)

    def number(self, *keys: Key) -> int:
        """A 63-bit integer that depends on the seed and the keys only: a seed for libraries that want one."""
        text = "/".join(map(repr, (self.seed, *self.path, *keys)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def generator(self, *keys: Key) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.number(*keys))

    def normal(self, key: Key, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 of `shape`."""
        return torch.randn(tuple(shape), generator=self.generator(key), device=self.device)

    def uniform(self, key: Key, shape: Sequence[int]) -> Tensor:
        """Uniform float32 in [0, 1) of `shape`."""
        return torch.rand(tuple(shape), generator=self.generator(key), device=self.device)

    def integers(self, key: Key, high: int, shape: Sequence[int]) -> Tensor:
        """Uniform int64 in [0, high) of `shape`."""
        return torch.randint(high, tuple(shape), generator=self.generator(key), device=self.device)

    def permutation(self, key: Key, n: int) -> Tensor:
        """A random order of 0..n-1, int64."""
        return torch.randperm(n, generator=self.generator(key), device=self.device)

    @contextmanager
    def lent(self, key: Key) -> Iterator[None]:
        """torch's own generators follow this stream inside, and are as they were afterwards: for layers that can take
        no generator (dropout)."""
        cuda = torch.device(self.device).type == "cuda"
        with torch.random.fork_rng(devices=[torch.device(self.device)] if cuda else []):
            torch.manual_seed(self.number(key))
            yield
