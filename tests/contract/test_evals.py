"""What every eval promises, whoever wrote it: nothing that it chooses depends on the test part."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import override
from harness.data.dataset import Part
from harness.evaluation import Subject, can, evaluate
from harness.method import Method
from harness.plugins import eval_plugins, load_eval, load_method
from harness.records import EvalRecord
from tests.contract.conftest import build
from tests.evals.kit import context, toy_data

EVALS = sorted(eval_plugins())
METHOD = "dit"  # recognises, draws, and learns from labels: every eval can have it
# Only lengths: what is chosen, and how, is the recipe's. Evals that read data sets of their own are poisoned in their
# own tests, where such data are made.
SHORT: dict[str, dict[str, Any]] = {
    "attentive": {"images": 64, "select_images": 32, "epochs": 1, "width": 16, "seeds": 1},
    "conditional": {"budget": "4step", "batch_size": 16, "samples": 100, "steps": 2, "chunk": 50},
    "cost": {"chunk": 32, "passes": 1, "samples": 1, "seeds": 1},
    "finetune": {"recipe": {"length": "4step"}},
    "generation": {"samples": 100, "steps": 2, "chunk": 50, "kernel_subsets": 2, "kernel_size": 50, "grid": 2},
    "online": {"presets": ["dinov2", "mae", "ddae"], "epochs": 1, "images": 64, "batch": 32, "seeds": 1},
    "semi": {"ways": ["probe", "finetune"], "recipe": {"length": "2step"}, "seeds": 1},
}
OWN_DATA: dict[str, str] = {
    "detection": "tests/evals/test_detection.py",
    "segmentation": "tests/evals/test_segmentation.py",
    "transfer": "tests/evals/test_transfer.py",
}


@pytest.fixture(scope="module")
def method() -> Method:
    built = build(load_method(METHOD), toy_data())
    return built.requires_grad_(False).eval()


def evaluated(name: str, method: Method, folder: Path, data) -> EvalRecord:
    if name in OWN_DATA:
        pytest.skip(f"reads a data set of its own: {OWN_DATA[name]} poisons it")
    plugin = load_eval(name)
    assert can(method, plugin.NEEDS)
    config = override(plugin.recipe("nano"), SHORT.get(name, {}), name)
    record = evaluate(name, context(folder, method, data), config, subject=Subject(reference="contract"))
    assert record is not None
    return record


def facts(chosen: Any) -> Any:
    """What was chosen, but for what a clock says."""
    if not isinstance(chosen, dict):
        return chosen
    return {key: facts(value) for key, value in chosen.items() if not key.endswith("_s")}


@pytest.mark.parametrize("name", EVALS)
def test_a_poisoned_test_part_changes_no_choice(name, method, tmp_path):
    clean, poisoned = toy_data(120, 60, 60), toy_data(120, 60, 60)
    images = torch.randint(256, poisoned.test.images.shape, generator=torch.Generator().manual_seed(0))
    poisoned.test = Part(images.to(torch.uint8), torch.zeros_like(poisoned.test.labels), poisoned.test.index)
    one = evaluated(name, method, tmp_path / "one", clean)
    two = evaluated(name, method, tmp_path / "two", poisoned)
    assert facts(one.chosen) == facts(two.chosen) and one.trials == two.trials
    assert clean.opened == one.test_opened  # through the one door, which the record holds
    if one.test_opened:
        assert {look.by for look in one.test_opened} == {f"{name} of contract"}
        values = [{key: number.value for key, number in record.numbers.items()} for record in (one, two)]
        assert values[0] != values[1]


@pytest.mark.parametrize("name", EVALS)
def test_a_snapshot_never_meets_the_test_part(name, method, tmp_path):
    plugin, data = load_eval(name), toy_data(120, 60, 60)
    config = override(plugin.recipe("nano"), SHORT.get(name, {}), name)
    record = evaluate(name, context(tmp_path, method, data, cheap=True), config, subject=Subject(reference="contract"))
    assert data.opened == [] and (record is None or record.test_opened == [])
    assert record is None or not getattr(plugin, "FULL_ONLY", False)


@pytest.mark.parametrize("name", EVALS)
def test_an_eval_states_its_rule(name):
    plugin = load_eval(name)
    assert plugin.TITLE and isinstance(plugin.PROTOCOL, int) and plugin.PROTOCOL >= 1
    assert plugin.NEEDS in ("features", "sample", "labelled")
    for size in ("nano", "b"):
        config = plugin.recipe(size)
        assert isinstance(config, plugin.Config) and type(config).__dataclass_params__.frozen
        assert plugin.recipe(size) == config
    assert any(field.name in ("seeds", "probe", "linear") for field in dataclasses.fields(plugin.Config)), (
        "no seeds of its own"
    )
