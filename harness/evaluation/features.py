"""Features, extracted once per checkpoint: a memory of what a method said of a part of the data.

Chunks are fixed and each has its own key, so a feature depends neither on which eval asked for it first nor on
which taps were asked for together. All layers of a noise level come from one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from harness.errors import HarnessError
from harness.evaluation.kept import InFiles, InMemory
from harness.method import Method, Tap, by_noise, require_taps
from harness.protocol import COMMON
from harness.rng import Rng

# Shapes: B images in a chunk, C channels, H height, W width, n images of a part, D feature width.

CHUNK = COMMON.chunk


class Features:
    """What `method` said so far: float32 rows on the CPU per (tap, part, chunk)."""

    def __init__(
        self,
        method: Method,
        rng: Rng,
        autocast: Callable[[], AbstractContextManager],
        kept: InMemory | InFiles | None = None,
    ) -> None:
        self._method, self._rng, self._autocast = method, rng, autocast
        self._kept = InMemory() if kept is None else kept

    def of(self, taps: Sequence[Tap], part: str, images: Images) -> dict[Tap, Tensor]:
        """[n, D] per tap for `images` of `part`; only chunks nobody asked for yet cost a pass."""
        found: dict[Tap, Tensor] = {}
        seen = 0
        for rows in self.chunks(taps, part, images):
            for tap, some in rows.items():
                whole = found.setdefault(tap, torch.empty(images.n, some.shape[1]))
                whole[seen : seen + len(some)] = some
            seen += len(next(iter(rows.values())))
        return found

    def chunks(self, taps: Sequence[Tap], part: str, images: Images, keep: bool = True) -> Iterator[dict[Tap, Tensor]]:
        """[B, D] per tap, chunk by chunk, in order; without `keep`, what is extracted now is forgotten again."""
        require_taps(self._method, taps)
        taps = list(dict.fromkeys(taps))
        for start in range(0, images.n, CHUNK):
            number = start // CHUNK
            missing = [tap for tap in taps if not self._kept.has((tap, part), number)]
            fresh: dict[Tap, Tensor] = {}
            if missing:
                # The whole chunk, also where the part's first images end within it: its noise is drawn as one.
                fresh = dict(self._pass(missing, part, start, images.whole.chunk(start, CHUNK), dense=False))
                fresh = {tap: rows.cpu() for tap, rows in fresh.items()}
            for tap, rows in fresh.items() if keep else ():
                self._kept.put((tap, part), number, rows, images.whole.n)
            upto = images.n - start
            yield {tap: (fresh[tap] if tap in fresh else self._kept.get((tap, part), number))[:upto] for tap in taps}

    def maps(self, taps: Sequence[Tap], part: str, images: Images, side: int) -> Iterator[dict[Tap, Tensor]]:
        """Chunk by chunk, [B, D, S, S] float16 on the CPU per tap, averaged down to `side` places where S is more.

        Nothing of it is kept; the noise is that of the features.
        """
        require_taps(self._method, taps)
        for start in range(0, images.n, CHUNK):
            found = self._pass(taps, part, start, images.chunk(start, CHUNK), dense=True)
            yield {tap: in_half(adaptive_avg_pool2d(m, min(side, m.shape[-1])), self._method, tap) for tap, m in found}

    def _pass(
        self, taps: Sequence[Tap], part: str, start: int, images: Tensor, dense: bool
    ) -> Iterator[tuple[Tap, Tensor]]:
        """Checked features at each tap, one pass per noise level over `images` [B, C, H, W] in [-1, 1]."""
        rng = self._rng.at("features", part, start)
        for together in by_noise(taps):
            with torch.no_grad(), self._autocast():
                found = self._method.features(images, together, rng, dense)
            for tap, values in zip(together, found, strict=True):
                yield tap, self._checked(tap, part, values, len(images), dense)

    def _checked(self, tap: Tap, part: str, values: Tensor, n: int, dense: bool) -> Tensor:
        """`values` as float32 [n, D], or [n, D, S, S]. Raises HarnessError for another shape or a value not finite."""
        name, wanted = type(self._method).__name__, f"[{n}, D, S, S]" if dense else f"[{n}, D]"
        if values.ndim != (4 if dense else 2) or len(values) != n or (dense and values.shape[2] != values.shape[3]):
            raise HarnessError(f"{name}.features gave {list(values.shape)} at tap {tap} for {n} images", wanted)
        values = values.detach().float()
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).flatten(1).any(dim=1).sum())
            raise HarnessError(
                f"features of {name} at tap {tap} are not finite for {bad} of {n} images of the {part} part",
                "finite features; the training may have diverged, or bf16 overflowed",
                "look at the loss in the run's log.jsonl, or evaluate in fp32",
            )
        return values


def in_half(maps: Tensor, method: Method, tap: Tap) -> Tensor:
    """`maps` as float16 on the CPU. Raises HarnessError for values that are not finite, or that it cannot hold."""
    halved = maps.detach().half().cpu()
    if not torch.isfinite(halved).all():
        what = f"reach {maps.abs().max():.3g}" if torch.isfinite(maps).all() else "are not finite"
        raise HarnessError(
            f"maps of {type(method).__name__} at tap {tap} {what}",
            f"finite values of at most {torch.finfo(torch.half).max:g}, to be kept in half precision",
            "look at the loss in the run's log.jsonl; a sound network stays far below",
        )
    return halved


class Images:
    """A part of the data in a fixed random order, so that any prefix of it is a fair subset."""

    def __init__(
        self, images: Tensor, labels: Tensor, order: Tensor, device: torch.device | str, whole: Images | None = None
    ) -> None:
        self._images, self._labels, self._order, self._device = images, labels, order, device
        self.n = len(order)
        self.whole = whole or self  # of which these are the first

    def first(self, limit: int | None) -> Images:
        """The first `limit` images, all of them for None."""
        if limit is None:
            return self
        return Images(self._images, self._labels, self._order[:limit], self._device, self.whole)

    @property
    def labels(self) -> Tensor:
        """int64 [n], in order."""
        return self._labels[self._order]

    def pixels(self, start: int, size: int) -> Tensor:
        """uint8 [B, C, H, W] from `start`, in order."""
        return self._images[self._order[start : start + size]]

    def pick(self, index: Tensor) -> Tensor:
        """Those at `index` [B] of the order, as float [B, C, H, W] in [-1, 1] on the device."""
        from harness.data.pixels import to_float

        return to_float(self._images[self._order[index]].to(self._device))

    def chunk(self, start: int, size: int) -> Tensor:
        """The same as float in [-1, 1] on the device."""
        from harness.data.pixels import to_float

        return to_float(self.pixels(start, size).to(self._device))

    def chunks(self, size: int) -> Iterable[Tensor]:
        """All images as uint8 [B, C, H, W], `size` at a time."""
        return (self.pixels(start, size) for start in range(0, self.n, size))
