"""What the reference loops share: finding a checkout, its pictures, its loader, and the clock of its steps.

A reference runs from a checkout that the user names; nothing of it is copied here. Importing one changes modules and
the import path of the process: only `harness.bench.side` may do so, in a child process.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import HarnessError, unknown

if TYPE_CHECKING:
    import numpy as np
    import torch

    from harness.bench.rounds import Parts

DEFAULT_WORKERS = 10  # of their DataLoaders at most (DiT 4, DDAE 1), for machines with more cores than that


class Source(NamedTuple):
    """A paper's own code."""

    repository: str  # on GitHub
    files: tuple[str, ...]  # that a checkout has and the loop needs
    module: str  # here: the module whose `Reference` drives it
    packages: tuple[str, ...] = ()  # that it imports and the harness does not; installed by hand
    notes: tuple[str, ...] = ()  # under the tables


SOURCES = {
    "mae": Source(
        "facebookresearch/mae",
        ("models_mae.py", "engine_pretrain.py", "util/misc.py", "util/lr_sched.py", "util/pos_embed.py"),
        "harness.bench.reference_mae",
        notes=("The harness's loop also keeps a moving average of the weights and the sampler's statistics.",),
    ),
    "dit": Source(
        "facebookresearch/DiT",
        ("models.py", "train.py", "diffusion/__init__.py", "diffusion/gaussian_diffusion.py"),
        "harness.bench.reference_dit",
        notes=(
            "Both loops keep a moving average of the weights.",
            "The reference's own loop begins with a GPU and a process group: its steps are driven from here.",
            "It works in pixels, as ours, without its VAE; its label table, of one class, is not counted.",
        ),
    ),
    "ddae": Source(
        "FutureXiang/ddae",
        ("train.py", "utils.py", "model/models.py", "model/unet.py", "model/block.py", "model/DDPM.py"),
        "harness.bench.reference_ddae",
        packages=("ema_pytorch",),
        notes=(
            "Both loops keep a moving average of the weights.",
            "The reference's own loop begins with a GPU and a process group: its steps are driven from here.",
        ),
    ),
}


def require(method: str, checkout: Path | None) -> Path:
    """The checkout as an absolute path. Raises HarnessError when none was named, or something of it is missing."""
    if method not in SOURCES:
        raise unknown("method with a reference loop", method, SOURCES, "python -m harness bench train --method mae ...")
    source = SOURCES[method]
    folder = source.repository.rpartition("/")[2]
    again = f"python -m harness bench train --method {method} --reference {folder}"
    next_step = f"git clone {source.repository} from GitHub into ./{folder}, then: {again}"
    expected = f"a checkout of {source.repository}"
    if checkout is None:
        raise HarnessError("bench train has nothing to compare with", f"--reference, {expected}", next_step)
    lacking = [name for name in source.files if not (checkout / name).is_file()]
    if lacking:
        raise HarnessError(f"{checkout} lacks {', '.join(lacking)}", expected, next_step)
    missing = [name for name in source.packages if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(name.replace("_", "-") for name in missing)
        raise HarnessError(
            f"the reference {method} imports {', '.join(missing)}, which is not installed",
            "its own dependencies; the harness does not have them",
            f"python -m pip install --no-deps --target bench-packages {names}, then: PYTHONPATH=bench-packages {again}",
        )
    return checkout.resolve()


def worker_choices() -> list[int]:
    """Numbers of DataLoader workers to try: the references' default cut to the cores there are, one, and none."""
    return sorted({0, 1, min(DEFAULT_WORKERS, os.cpu_count() or 1)})


def load(method: str, checkout: Path, images: np.ndarray, config: Any, batch_size: int, device: torch.device) -> Loop:
    """The reference's loop over uint8 `images` [n, 3, S, S], its network as large as our recipe `config` says."""
    kind = importlib.import_module(SOURCES[method].module).Reference
    sys.path.insert(0, str(checkout))
    return kind(images, config, batch_size, device)


class Loop:
    """A reference's own loop. A subclass sets the attributes in its constructor and drives its steps in `go`."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    data: Pictures
    batch_size: int
    device: torch.device
    precision: str

    def go(self, feed: Feed) -> None:
        """Train on what `feed` yields."""
        raise NotImplementedError

    def forward_of(self) -> tuple[Any, str]:
        """The owner and the name of what computes the loss, for the profile."""
        return self.model, "forward"

    def parameters(self) -> int:
        """How many are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def about(self) -> dict[str, Any]:
        return {"parameters": self.parameters(), "precision": self.precision}

    def run(self, warm: int, steps: int, workers: int, parts: Parts) -> float:
        """Seconds of `steps` steps of its loop, after `warm` steps that do not count."""
        from torch.utils.data import DataLoader, DistributedSampler

        loader = DataLoader(
            self.data,
            sampler=DistributedSampler(self.data, num_replicas=1, rank=0, shuffle=True),
            batch_size=self.batch_size,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            drop_last=True,
        )
        feed = Feed(loader, warm, steps, parts)
        self.go(feed)
        return feed.seconds

    def profile(self, warm: int, steps: int, workers: int, parts: Parts) -> float:
        """`run` with forward, backward and optimizer booked too."""
        import torch

        from harness.bench.rounds import patched

        owner, name = self.forward_of()
        with (
            patched(owner, name, parts.wrap("forward", getattr(owner, name))),
            patched(self.optimizer, "step", parts.wrap("optimizer", self.optimizer.step)),
            patched(torch.Tensor, "backward", parts.wrap("backward", torch.Tensor.backward)),
        ):
            return self.run(warm, steps, workers, parts)


class Pictures:
    """uint8 images [n, C, H, W] as PIL pictures through a transform: what ImageFolder gives, without decoding files."""

    def __init__(self, images: np.ndarray, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
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
