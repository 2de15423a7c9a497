"""The processes of a job that train one run together: who they are, and what they tell each other.

A job that starts several processes tells each by environment variables which one it is, as torchrun does and submitit's
`TorchDistributedEnvironment().export(set_cuda_visible_devices=False)`. They meet through the file that
HARNESS_RENDEZVOUS names, new for each attempt, on a file system that all of them see; without it through
MASTER_ADDR:MASTER_PORT, where rank 0 then listens on all addresses. Gradients travel by NCCL between GPUs and by gloo
between CPUs; control messages are a few numbers and always travel by gloo, so that none waits for a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from harness.errors import HarnessError
from harness.rng import Share
from harness.train.settings import check_batch

RENDEZVOUS = "HARNESS_RENDEZVOUS"
TIMEOUT_S = 600.0  # that a process waits for the others: more than rank 0 takes to write a checkpoint
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
TOUCHED = (*NAMES, "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")  # here and by accelerate


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job. What it tells and hears, all of them have to tell and hear in one order."""

    rank: int = 0
    world: int = 1
    local: int = 0  # rank among the processes of this machine

    @property
    def first(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process among those that it may see, in turn; the CPU where there is none."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if self.world == 1:
            return torch.device("cuda")
        return torch.device("cuda", self.local % torch.cuda.device_count())

    def share(self, whole: int) -> Share | None:
        """This process's part of a batch of `whole` images; None alone.

        One that has none of a last, short batch computes along with an image of its own, of weight 0.
        """
        if self.world == 1:
            return None
        share = Share(self.rank, self.world, whole)
        return share if share.count else Share(0, 1, 1)

    def weight(self, whole: int) -> float:
        """What this process's mean over its part counts in the mean over processes, so that it is that of the batch."""
        return Share(self.rank, self.world, whole).count * self.world / whole

    # -- control messages -----------------------------------------------------------------------------------------

    def broadcast(self, *values: float) -> list[float]:
        """Rank 0's `values`, everywhere."""
        if self.world == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64)
        distributed.broadcast(told, src=0)
        return told.tolist()

    def gather(self, *values: float) -> list[list[float]]:
        """The `values` of every process, by rank."""
        if self.world == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(own) for _ in range(self.world)]
        distributed.all_gather(every, own)
        return [told.tolist() for told in every]

    def mean(self, value: float) -> float:
        return math.fsum(value for (value,) in self.gather(value)) / self.world

    def barrier(self) -> None:
        """Go on when all processes are here."""
        self.gather(0.0)

    def told(self, thing: Any) -> Any:
        """Rank 0's `thing`, plain values only, everywhere."""
        if self.world == 1:
            return thing
        box = [thing]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather_tensors(self, own: Tensor) -> list[Tensor]:
        """Every process's tensor, by rank; of one shape, on the processes' devices."""
        if self.world == 1:
            return [own]
        every = [torch.empty_like(own) for _ in range(self.world)]
        distributed.all_gather(every, own.contiguous())
        return every

    # -- what cannot be shared ------------------------------------------------------------------------------------

    def check_batch(self, batch_size: int, of: str) -> None:
        """Raise HarnessError where the batch does not divide into equal parts."""
        check_batch(batch_size, of, self.world)


ALONE = Ranks()


def ranks() -> Ranks:
    """Which of its job's processes this is, by its environment: joined or not."""
    return stated(os.environ)


@contextmanager
def joined(timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """The processes of this job, for as long as the block lasts; ALONE where there is but one.

    Raises HarnessError when the environment is not whole or the others do not come within `timeout_s`, which is also
    how long any later exchange may take. Code in the block that is not meant for all processes must not use
    accelerate, which finds the group and joins it.
    """
    before = {name: os.environ.get(name) for name in TOUCHED}
    here = ranks()
    try:
        if here.world == 1:
            for name in NAMES:  # accelerate would make a group of one of them
                os.environ.pop(name, None)
            yield here
            return
        _export(here)
        _meet(here, timeout_s)
        try:
            yield here
        finally:
            distributed.destroy_process_group()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def stated(environment: Mapping[str, str]) -> Ranks:
    """The process that the variables say this is. Raises HarnessError where they contradict each other."""
    if _number(environment, "WORLD_SIZE", 1) == 1:
        return ALONE
    rank, world, local = (_number(environment, name) for name in NAMES)
    if not (0 <= rank < world and 0 <= local <= rank):
        raise HarnessError(
            f"RANK={rank}, LOCAL_RANK={local}, WORLD_SIZE={world}",
            "a rank below the number of processes, and a local rank not above it",
            "start the processes with torchrun, srun or `python -m harness run`",
        )
    return Ranks(rank, world, local)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, default)
    try:
        return int(text)
    except (TypeError, ValueError):
        found = f"{name}={text!r}" if name in environment else f"WORLD_SIZE is set and {name} is not"
        raise HarnessError(
            found, f"{', '.join(NAMES)}, each a whole number", "start the processes with torchrun or srun"
        ) from None


def _export(ranks: Ranks) -> None:
    """Tell accelerate what it would work out otherwise, or in another way."""
    if torch.cuda.is_available():
        # accelerate takes it for the device's number; a task that sees one GPU alone has local rank 3 and device 0.
        os.environ["LOCAL_RANK"] = str(ranks.device.index)
    # Where it is not set, accelerate picks another number of threads for the CPU.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # asked for; nobody listens where a file is the rendezvous


def _meet(ranks: Ranks, timeout_s: float) -> None:
    file = os.environ.get(RENDEZVOUS)
    if not file and "MASTER_PORT" not in os.environ:
        raise HarnessError(
            f"{ranks.world} processes and no place to meet",
            f"{RENDEZVOUS}=FILE, which all of them see and no earlier attempt used, or MASTER_ADDR and MASTER_PORT",
            "start the processes with torchrun, srun or `python -m harness run`",
        )
    cuda = ranks.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(ranks.device)
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method=f"file://{os.path.abspath(file)}" if file else "env://",
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=timedelta(seconds=timeout_s),
        )
        ranks.barrier()
    except (RuntimeError, ValueError) as error:  # of torch.distributed; its own kinds are RuntimeErrors
        if distributed.is_initialized():
            distributed.destroy_process_group()
        raise HarnessError(
            f"the {ranks.world} processes of this job did not meet: {str(error).splitlines()[0]}",
            f"all of them within {timeout_s:.0f} s",
            "see the logs of the other processes; one of them may not have started",
        ) from error


def lost_another(error: BaseException) -> bool:
    """Whether the error says that another process of the job is gone or silent."""
    text = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    return isinstance(error, RuntimeError) and distributed.is_initialized() and any(sign in text for sign in signs)
