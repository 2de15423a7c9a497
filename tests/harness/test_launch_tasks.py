"""A study as tasks: what needs what, and what goes into one array."""

from __future__ import annotations

import pytest

from harness.launch.tasks import Task, graph, parse
from harness.resolve import jobs
from harness.study import build

ASKED = {"budget": "6step", "evals": "knn", "train": {"snapshots": [0.5]}}


def tasks(methods: str, **more: object) -> dict[str, Task]:
    study = build({**ASKED, "methods": methods, **more})
    return {task.name: task for task in graph(study, jobs(study))}


def key(methods: str, seed: int = 0) -> str:
    return next(
        job.key for job in jobs(build({**ASKED, "methods": methods, "seeds": seed + 1})) if job.cell.seed == seed
    )


def test_every_snapshot_is_evaluated_after_its_pre_training_the_last_one_first():
    found, mae = tasks("mae"), key("mae")
    pretrain = f"pretrain {mae}"
    evaluations = [f"evaluate-{share} {mae}" for share in ("1.0000", "0.5000", "0.0000")]
    assert list(found) == [pretrain, *evaluations, "references digits"]
    assert not found[pretrain].needs and not found["references digits"].needs
    assert all(found[name].needs == (pretrain,) for name in evaluations)


def test_a_reader_is_evaluated_after_its_source_which_alone_is_pre_trained():
    found, ddae, difformer = tasks("ddae,difformer"), key("ddae"), key("difformer")
    assert [task.key for task in found.values() if task.stage == "pretrain"] == [ddae]
    for share in ("1.0000", "0.5000", "0.0000"):
        assert found[f"evaluate-{share} {ddae}"].needs == (f"pretrain {ddae}",)
        needs = found[f"evaluate-{share} {difformer}"].needs
        assert needs == (f"pretrain {ddae}", f"evaluate-{share} {ddae}")
    names = list(found)
    for task in found.values():
        assert all(names.index(need) < names.index(task.name) for need in task.needs), "what is needed comes first"


def test_a_source_that_nobody_asked_for_is_pre_trained_and_not_evaluated():
    found, ddae = tasks("difformer,diffeed"), key("ddae")
    assert [task.key for task in found.values() if task.stage == "pretrain"] == [ddae]
    evaluations = [task for task in found.values() if task.stage == "evaluate"]
    assert {task.key for task in evaluations} == {key("difformer"), key("diffeed")}
    assert all(task.needs == (f"pretrain {ddae}",) for task in evaluations)


def test_one_array_holds_tasks_of_one_stage_snapshot_depth_and_size():
    found = list(tasks("mae,ddae,difformer", size="nano,ti", seeds=2).values())
    levels = {}
    for task in found:
        levels.setdefault(task.level, []).append(task)
    for level in levels.values():
        assert len({(task.stage, task.share, len(task.needs)) for task in level}) == 1
        assert level[0].stage == "references" or len({task.size for task in level}) == 1
    sizes = {
        (level[0].stage, level[0].share, len(level[0].needs), level[0].size): len(level) for level in levels.values()
    }
    assert sizes["pretrain", None, 0, "nano"] == 4  # two methods, two seeds
    assert sizes["evaluate", 1.0, 1, "nano"] == 4 and sizes["evaluate", 1.0, 2, "ti"] == 2


@pytest.mark.parametrize(
    "task", [Task("pretrain", "mae-0"), Task("evaluate", "mae-0", 0.125), Task("references", "digits"), Task("tables")]
)
def test_a_task_is_known_by_its_name(task):
    assert parse(task.name) == task
    assert parse(task.name).kind == task.kind
