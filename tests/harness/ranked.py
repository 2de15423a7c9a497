"""What the processes of a job do in the tests of distributed training, and how a test starts such a job.

`run_job(2, folder, [("losses", {"name": "mae"}), ...])` gives what each process returned for each task, by rank. The
processes are forked from one that has imported torch and never computed anything.
"""

from __future__ import annotations

import builtins
import dataclasses
import multiprocessing
import os
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from backbones.sizes import Trunk
from backbones.unet import UnetConfig
from backbones.vae import VaeConfig
from harness import ledger
from harness.config import parse_words
from harness.data.batches import Batches
from harness.data.dataset import Part
from harness.display import Plain
from harness.distributed import RENDEZVOUS, Ranks, joined, lost_another
from harness.errors import Diverged
from harness.method import Batch, DataSpec, Loss, Method
from harness.plugins import load_method
from harness.pretrain_run import pretrain_run
from harness.resolve import jobs
from harness.rng import Rng
from harness.signals import Stopper
from harness.store import RunFolder
from harness.study import build
from harness.train.latents import encode
from harness.train.pretraining import Interrupted
from harness.train.stage import Stage, run_stage
from tests import toys

DIGITS = DataSpec("digits", channels=1, size=8, classes=10)
COLOUR = DataSpec("colour", channels=3, size=8, classes=10)
TRUNK, DECODER = Trunk(16, 2, 2), Trunk(8, 1, 2)
NET = UnetConfig(8, (1, 2), 1, (1,), groups=4, groups_out=4, dropout=0.1)
MASKED = {"encoder": TRUNK, "decoder": DECODER, "sampler_every": 2}
WORLD_LIMIT_S = 240  # how long a job of these may take on a busy machine

UMD = {"width": 16, "depth": 2, "heads": 2, "decoder_depth": 1, "patch": 2}

# name -> (method, changes to its nano recipe, images a step, images of the short last step)
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "mae": ("mae", MASKED, 8, 5),
    "mae, then one": ("mae", MASKED, 8, 1),  # the others have none
    "lmd": ("lmd", MASKED | {"views": 0}, 8, 5),
    "lmd's vae": ("lmd", {"vae_training": VaeConfig(8)}, 8, 5),
    "dit": ("dit", {"trunk": TRUNK, "labels": True}, 8, 5),
    "ddae": ("ddae", {"net": NET}, 12, 9),
    "ddae edm": ("ddae", {"net": dataclasses.replace(NET, label=9), "objective": "edm", "warp": 0.5}, 12, 9),
    "ddae adm": ("ddae", {"net": NET, "layout": "adm"}, 8, 5),
    "difformer": ("difformer", {"net": NET}, 12, 9),
    "diffeed": ("diffeed", {"net": NET}, 12, 9),
    "umd": ("umd", UMD, 8, 5),
    # The clean and the noised part differ from process to process, and of 4 images each of 4 processes has but one.
    "umd in threes": ("umd", UMD, 12, 5),
    "umd one by one": ("umd", UMD, 4, 1),
}
STEPS = 2  # whole ones, before the short one


def part(spec: DataSpec, n: int = 24) -> Part:
    images = Rng(0).integers("images", 256, (n, spec.channels, spec.size, spec.size)).to(torch.uint8)
    return Part(images, torch.arange(n) % spec.classes, torch.arange(n))


def built(name: str) -> tuple[Method, int]:
    """The method of a case, with the same initial weights at every call, and its images a step."""
    method, changes, batch_size, _ = CASES[name]
    spec = COLOUR if "edm" in name else DIGITS
    made = load_method(method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return made.create(dataclasses.replace(made.recipe("nano", spec), **changes), spec), batch_size


def losses(ranks: Ranks, name: str) -> dict[str, Any]:
    """A short stage of a case: the loss of every step, and the weights at the end."""
    method, batch_size = built(name)
    made, spec = method, method.data
    if name == "lmd's vae":
        made = method.preparation().objective.requires_grad_(True)
    rng, of = Rng(3), (ranks.rank, ranks.world)
    batches = Batches(part(spec), batch_size, rng, made.augment(), True, share=of, labels=made.sees_labels)
    stage = Stage(
        name="train",
        objective=made,
        batches=batches,
        batch_size=batch_size,
        rng=rng,
        device=torch.device("cpu"),
        precision="fp32",
        compiled=False,
        average=True,
        images_planned=STEPS * batch_size + CASES[name][3],
        ranks=ranks,
    )
    stage.warm_up()
    seen: list[float] = []
    run_stage(stage, lambda: 0.0, lambda stage, share, images: seen.append(stage.loss))
    trained = {name: p.detach() for name, p in made.named_parameters() if p.requires_grad}
    return {"losses": seen, "weights": trained, "average": stage.ema.averaged, "img": stage.img}


def latents(ranks: Ranks) -> torch.Tensor:
    """More than two chunks of latents in two views, the last chunk a short one."""
    method, _ = built("lmd's vae")
    images = part(method.data, 600).images
    return encode(method.eval(), images, [False, True], torch.device("cpu"), "fp32", ranks=ranks)


class OneGoesBad(toys.Toy):
    """From its fifth step on the last process has no finite loss."""

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        loss = super().pretrain(batch, progress, rng)
        bad = rng.path[-1] == 4 and rng.share is not None and rng.share.first == rng.share.ranks - 1
        return loss._replace(total=loss.total * torch.nan) if bad else loss


def train(ranks: Ranks, folder: Path, budget: str, method: str = "Toy", **settings: Any) -> dict[str, Any]:
    """A run of a toy method."""
    stop_at, die_at = settings.pop("stop_at", None), settings.pop("die_at", None)

    def should_stop() -> bool:
        if ranks.first and run.step == die_at:
            os._exit(9)
        return run.step == stop_at

    kind = OneGoesBad if method == "OneGoesBad" else getattr(toys, method)
    run = toys.training(folder, budget, kind, should_stop=should_stop, ranks=ranks, **settings)
    if not ranks.first:
        _forbid_writing()
    end = "finished"
    try:
        run.run()
    except Interrupted:
        end = "interrupted"
    except Diverged as error:
        end = str(error)
    except RuntimeError as error:
        if not lost_another(error):
            raise
        end = "lost another"
    done = {"end": end, "step": run.step, "img": run.img, "share": run.spent(), "spent": vars(run.meter())}
    return done | {"progresses": run.method.progresses, "weights": run.method.state_dict(), "loss": run.stage.loss}


def timed(ranks: Ranks, folder: Path, budget: str) -> dict[str, Any]:
    """A run whose clock is the tests' own; those of the other processes run faster and faster."""

    class Clock:
        def perf_counter(self) -> float:
            return toys.CLOCK.now * (1 + ranks.rank)

    before, ledger.time = ledger.time, Clock()
    try:
        return train(ranks, folder, budget)
    finally:
        ledger.time = before


def record(ranks: Ranks, folder: Path, words: list[str]) -> dict[str, Any]:
    """The record that a run of the command line's words leaves."""
    (job,) = jobs(build(parse_words(words)))
    if not ranks.first:
        _forbid_writing()
    return pretrain_run(job, RunFolder(folder), None, Plain(), Stopper(), ranks=ranks).model_dump()


def _forbid_writing() -> None:
    """In a process that is not the first: whatever would write a file fails."""
    opened = builtins.open

    def read_only(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        assert not set(mode) & set("wax+"), f"a rank that is not the first opens {file} with {mode!r}"
        return opened(file, mode, *rest, **more)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a rank that is not the first changes a folder")

    builtins.open = read_only
    os.replace = os.rename = os.mkdir = os.unlink = os.remove = refused


# -- starting a job ---------------------------------------------------------------------------------------------------


def run_job(world: int, folder: Path, tasks: list[tuple[str, dict[str, Any]]]) -> list[list[Any]]:
    """What each process of a job returned for each task, by rank. Raises AssertionError with the traceback of one."""
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.harness.ranked"])
    processes = [context.Process(target=_work, args=(rank, world, folder, tasks)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(WORLD_LIMIT_S)
        if process.exitcode is None:
            process.kill()
    results = [folder / f"{rank}.pt" for rank in range(world)]
    failed = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    assert not failed, "\n".join(failed)
    return [torch.load(path, weights_only=False) if path.exists() else None for path in results]


def _work(rank: int, world: int, folder: Path, tasks: list[tuple[str, dict[str, Any]]]) -> None:
    write = open
    try:
        warnings.simplefilter("error")
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ[RENDEZVOUS] = str(folder / "rendezvous")
        with joined(timeout_s=60) as ranks:
            done = [globals()[name](ranks, **settings) for name, settings in tasks]
        with write(folder / f"{rank}.pt", "wb") as file:
            torch.save(done, file)
    except BaseException:
        with write(folder / f"{rank}.txt", "w") as file:
            file.write(f"rank {rank} of {world}:\n{traceback.format_exc()}")
        os._exit(1)  # at once, as a job that loses a process should
