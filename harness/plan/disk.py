"""What runs leave on the disk, from the shapes of their tensors: no network is held in memory.

A snapshot is the method's whole state (what is trained, what is frozen, buffers). A checkpoint is that state, the
optimizer's two numbers for each trained parameter (Adan: four) and the moving average where one is kept. A run has two
checkpoints while it trains and one at its end, a snapshot for each share, and, until its end, the latents that it
trains on. Readers of a shared pre-training link its snapshots. Records, logs, pictures, and features that evals keep
until they are done, are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import store
from harness.answers import Answers
from harness.launch.tasks import shares
from harness.plan.planned import Planned
from harness.plugins import card

if TYPE_CHECKING:
    from torch import Tensor

    from harness.method import Method
    from harness.resolve import Job

SLOTS = {"adamw": 2, "adan": 4}  # numbers that the optimizer keeps for each parameter


@dataclass(frozen=True)
class Size:
    """Of one run."""

    parameters: int  # trained
    snapshot_bytes: int
    checkpoint_bytes: int
    latents_bytes: int | None  # None: not known
    borrows: bool = False  # it was built from files of weights, which are no code

    @property
    def passing(self) -> int:
        """Bytes more while it trains."""
        return self.checkpoint_bytes + (self.latents_bytes or 0)


def known(job: Planned, answers: Answers) -> Size:
    """`size`, of a network that is built only where no earlier command has, or where it starts from borrowed weights:
    those may be gone, which is to be refused.
    """
    asked = [job.cell.method, job.config, job.train.batch_size, bool(job.train.ema)]
    data = [asdict(job.data.spec), job.data.mirror, job.data.fit_n]
    question = {"disk of": asked, "data": data}
    return Size(**answers.ask(question, lambda: asdict(size(job.job())), lambda answer: not answer["borrows"]))


def size(job: Job) -> Size:
    """Counted on the meta device."""
    import torch

    with torch.device("meta"):
        method = job.method_class.create(job.config, job.data.spec)
    trained = [p for p in method.parameters() if p.requires_grad]
    state = method.state_dict(keep_vars=True).values()
    extra = SLOTS[method.optim(job.train.batch_size).name] + bool(job.train.ema)
    return Size(
        sum(p.numel() for p in trained),
        _bytes(state),
        _bytes({id(tensor): tensor for tensor in state}.values()) + extra * _bytes(trained),
        _latents(job, method),
        bool(method.borrowed() or card(job.cell.method).get("borrowed")),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _latents(job: Job, method: Method) -> int | None:
    """What `train/latents.py` keeps: float32, of every fit image, mirrored too where that is allowed.

    None where it cannot be counted without numbers.
    """
    import torch

    from harness.method import Method

    if type(method).cached is Method.cached:
        return 0
    from torch._subclasses import FakeTensorMode

    spec, data = job.data.spec, job.data
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            method.to_empty(device="cpu").eval()
            one = method.cached(torch.zeros(1, spec.channels, spec.size, spec.size))
    except Exception:  # a plugin that reads numbers of its tensors while it runs
        return None
    views = 2 if data.mirror and method.augment().mirror else 1
    return 0 if one is None else 4 * one.numel() * data.fit_n * views


def to_come(job: Planned, place: store.Study, counted: Size) -> int:
    """Bytes of what the run keeps that are not there yet."""
    folder = place.run(job.key)
    there = len(list(folder.snapshots.glob("*.safetensors")))
    checkpoint = 0 if any(folder.checkpoints.glob("step-*.pt")) else counted.checkpoint_bytes
    return max(0, len(shares(job)) - there) * counted.snapshot_bytes + checkpoint


def free_bytes(path: Path) -> int:
    """Free space on the disk where `path` is, or would be."""
    import shutil

    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
