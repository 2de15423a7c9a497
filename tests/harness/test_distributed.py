"""Several processes train one run: the same batches, losses and weights as one, and one of them decides and writes.

Jobs are of 2 and of 4 gloo processes; each serves many tests.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.config import parse_words
from harness.display import Plain
from harness.distributed import ALONE, Ranks, joined, stated
from harness.errors import HarnessError
from harness.launch.folders import Superseded
from harness.pretrain_run import pretrain_run
from harness.resolve import jobs as resolved
from harness.rng import Rng, Share
from harness.signals import Stopper
from harness.store import RunFolder
from harness.study import build
from harness.train.pretraining import Pretraining
from tests.harness import ranked
from tests.harness.ranked import CASES, STEPS, run_job

LMD = ["methods=lmd", "budget=60img", "train.batch_size=8", "train.snapshots=[0.5]", "lmd.vae_training.batch_size=4"]
ROUNDING = {"rtol": 2e-5, "atol": 1e-6}  # of float32 sums in another order, over a few steps
WEIGHTS = {"rtol": 1e-4, "atol": 2e-5}  # Adam divides rounding by the gradient's own size
TOY = {"budget": "97img", "method": "ToyLatent", "checkpoint_s": 1e-9}  # saves after every step
WORLDS = (2, 4)


def tasks(world: int, folder: Path) -> list[tuple[str, dict[str, Any]]]:
    work = [("losses", {"name": name}) for name in CASES]
    work += [("latents", {})]
    if world == 2:
        work += [
            ("timed", {"folder": folder / "timed", "budget": "0.15s"}),
            ("train", {"folder": folder / "unbroken", **TOY}),
            ("train", {"folder": folder / "stopped", **TOY, "stop_at": 7}),
            ("train", {"folder": folder / "bad", "budget": "20step", "method": "OneGoesBad"}),
            ("record", {"folder": folder / "record", "words": LMD}),
        ]
    return work


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of the same tasks."""
    work = tasks(2, tmp_path_factory.mktemp("alone"))
    return {named(*task): getattr(ranked, task[0])(ALONE, **task[1]) for task in work}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By number of processes, what each of them makes of the tasks."""
    made = {}
    for world in WORLDS:
        folder = tmp_path_factory.mktemp(f"job-{world}")
        work = tasks(world, folder)
        names = [named(*task) for task in work]
        made[world] = [dict(zip(names, done, strict=True)) for done in run_job(world, folder / "job", work)]
    return made


def named(task: str, settings: dict[str, Any]) -> str:
    return f"{task} {settings['name']}" if "name" in settings else settings.get("folder", Path(task)).name


LOSSES = [f"losses {name}" for name in CASES]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_step_has_the_loss_of_one_process(alone: dict, jobs: dict, world: int, name: str) -> None:
    one = alone[name]
    assert len(one["losses"]) == STEPS + 1
    for rank in jobs[world]:
        assert rank[name]["img"] == one["img"]
        torch.testing.assert_close(torch.tensor(rank[name]["losses"]), torch.tensor(one["losses"]), **ROUNDING)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", LOSSES)
def test_weights_are_equal_in_all_processes_and_those_of_one(alone: dict, jobs: dict, world: int, name: str) -> None:
    first, *others = jobs[world]
    for kind in ("weights", "average"):
        assert any(len(weight) for weight in first[name][kind].values())
        for key, weight in first[name][kind].items():
            assert all(torch.equal(other[name][kind][key], weight) for other in others), key
        torch.testing.assert_close(first[name][kind], alone[name][kind], **WEIGHTS)


@pytest.mark.parametrize("world", WORLDS)
def test_latents_are_those_of_one_process(alone: dict, jobs: dict, world: int) -> None:
    assert alone["latents"].shape[:2] == (2, 600)
    for rank in jobs[world]:
        assert torch.equal(rank["latents"], alone["latents"])


def test_the_first_process_has_the_clock(jobs: dict) -> None:
    """The clock of the second runs twice as fast; a step takes 1 ms on the first's."""
    first, second = (rank["timed"] for rank in jobs[2])
    assert first["step"] == second["step"]
    assert first["share"] == pytest.approx(1, abs=0.01) and second["share"] > 1.5
    assert first["progresses"][-first["step"] :] == second["progresses"][-first["step"] :]
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items() if "." in name)
    assert first["spent"]["device_s"] == 2 * first["spent"]["wall_s"]


def test_all_processes_stop_at_the_same_step_when_the_first_is_asked_to(jobs: dict) -> None:
    assert [(rank["stopped"]["end"], rank["stopped"]["step"]) for rank in jobs[2]] == [("interrupted", 7)] * 2


def test_a_loss_that_is_no_number_in_one_process_ends_all(jobs: dict) -> None:
    assert [rank["bad"]["end"] for rank in jobs[2]] == ["non-finite loss (nan) at step 5"] * 2


def test_a_run_of_two_is_on_record_as_that_of_one(alone: dict, jobs: dict) -> None:
    """With a VAE trained first and its latents cached; the second process would fail if it wrote anything."""
    one, (first, second) = alone["record"], (rank["record"] for rank in jobs[2])
    assert first == second and first["state"] == "finished"
    for unit in ("img", "step", "epoch", "flop"):
        assert first["spend"][unit] == one["spend"][unit]
    assert first["final_loss"] == pytest.approx(one["final_loss"], rel=1e-3)
    assert first["snapshots"].keys() == one["snapshots"].keys()
    assert first["cost"]["flop_train_img"] == one["cost"]["flop_train_img"]
    assert first["environment"]["devices"] == 2 and one["environment"]["devices"] == 1
    assert first["spend"]["device_s"] == pytest.approx(2 * first["spend"]["wall_s"])


def test_killed_and_resumed_by_two_is_the_unbroken_run_of_two(jobs: dict, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _, left = run_job(2, tmp_path / "killed", [("train", {"folder": folder, **TOY, "die_at": 8})])
    assert left[0]["end"] == "lost another", "the second process saw that the first was gone"
    ended = [rank[0] for rank in run_job(2, tmp_path / "resumed", [("train", {"folder": folder, **TOY})])]
    for rank, unbroken in zip(ended, (rank["unbroken"] for rank in jobs[2]), strict=True):
        assert (rank["end"], rank["step"], rank["img"]) == ("finished", unbroken["step"], 97)
        assert len(rank["progresses"]) < len(unbroken["progresses"]), "it did not begin anew"
    first, unbroken = ended[0], jobs[2][0]["unbroken"]
    trained = [name for name in unbroken["weights"] if name != "calls"]  # of the warm-up and the flop count, too
    assert all(torch.equal(first["weights"][name], unbroken["weights"][name]) for name in trained)


# -- what needs no second process -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 5, 1])
def test_processes_draw_for_their_own_images_what_one_draws(size: int) -> None:
    rng, whole = Rng(0), Rng(0).normal("noise", (size, 3))
    for rank in range(4):
        mine = Share(rank, 4, size)
        drawn = Rng(0, share=mine).normal("noise", (mine.count, 3))
        assert torch.equal(drawn, whole[rank::4])
        for start, stop in ((0, size // 2), (size // 2, size)):
            part = Rng(0, share=mine).part(start, stop)
            here = [i - start for i in range(start, stop) if i % 4 == rank]
            assert torch.equal(part.uniform("mask", (len(here),)), rng.uniform("mask", (stop - start,))[here])
    assert torch.equal(Rng(0, share=Share(1, 2, 4)).permutation("order", 9), rng.permutation("order", 9))


def test_a_draw_that_is_not_per_image_has_to_say_so() -> None:
    shared = Rng(0, share=Share(1, 2, 8))
    with pytest.raises(HarnessError, match=r"rng\.alone"):
        shared.normal("centre", (3,))
    assert torch.equal(shared.alone.normal("centre", (3,)), Rng(0).normal("centre", (3,)))


def test_a_batch_that_does_not_divide_is_refused_before_any_work(tmp_path: Path) -> None:
    (job,) = resolved(build(parse_words(["methods=mae", "budget=2step", "train.batch_size=10"])))
    with pytest.raises(HarnessError, match=r"train\.batch_size=10 over 4 processes(.|\n)*train\.batch_size=12 or"):
        pretrain_run(job, RunFolder(tmp_path / "run"), None, Plain(), Stopper(), ranks=Ranks(1, 4, 1))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "WORLD_SIZE is set and RANK is not"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK=2, LOCAL_RANK=0, WORLD_SIZE=2"),
    ],
)
def test_an_environment_that_is_not_whole_is_refused(variables: dict[str, str], found: str) -> None:
    with pytest.raises(HarnessError, match=found):
        stated(variables)


def test_processes_without_a_place_to_meet_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(HarnessError, match="no place to meet"), joined():
        pass
    monkeypatch.setenv("HARNESS_RENDEZVOUS", "/dev/null/nowhere")
    with pytest.raises(HarnessError, match="did not meet"), joined(timeout_s=1):
        pass


def test_a_single_process_of_a_job_joins_no_group(monkeypatch: pytest.MonkeyPatch, toy_run) -> None:
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with joined() as ranks:
        assert ranks == ALONE and "LOCAL_RANK" not in os.environ
        toy_run("2step").run()
        assert not torch.distributed.is_initialized()
    assert os.environ["LOCAL_RANK"] == "0"


def test_where_the_first_process_is_superseded_all_are() -> None:
    told: list[Any] = []  # what went to the others, who unpickle it

    def tell(thing: Any) -> Any:
        told.append(pickle.dumps(thing))
        return thing

    def superseded() -> None:
        raise Superseded

    first = SimpleNamespace(guard=superseded, ranks=SimpleNamespace(first=True, world=2, told=tell))
    with pytest.raises(Superseded):
        Pretraining._guarded(first)
    other = SimpleNamespace(ranks=SimpleNamespace(first=False, world=2, told=lambda _: pickle.loads(told[0])))
    with pytest.raises(Superseded):
        Pretraining._guarded(other)
