"""`harness list --sizes`: what it counts without running anything is what a run measures."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from harness import sizes
from harness.method import Batch, DataSpec
from harness.plugins import load_method, method_plugins
from harness.rng import Rng
from harness.train import flops
from methods.dit.method import Dit


@pytest.mark.parametrize("name", sorted(method_plugins()))
def test_counts_are_those_of_the_network_that_runs(name: str) -> None:
    found = sizes.measure(name, "nano", 32)
    cls, spec = load_method(name), DataSpec("32 px", channels=3, size=32, classes=10)
    method = cls.create(cls.recipe("nano", spec), spec)
    images = torch.zeros(4, 3, 32, 32)
    with torch.no_grad():
        latents = method.eval().cached(images)
    batch = Batch(images) if latents is None else Batch(None, latents)
    assert found.parameters == sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert found.features_flop == flops.feature_cost(method, method.taps()[0], Rng(0))[0]
    assert found.forward_flop == flops.forward_flop_per_image(method.train(), batch, Rng(0))


def test_a_method_that_sees_labels_is_counted_with_some(monkeypatch) -> None:
    def recipe(size: str, data: DataSpec):
        return dataclasses.replace(Dit.recipe(size, data), labels=True)

    free = sizes.measure("dit", "nano", 32)
    labelled = type("Labelled", (Dit,), {"recipe": staticmethod(recipe)})
    monkeypatch.setattr(sizes, "load_method", lambda name: labelled)
    width = Dit.recipe("nano", DataSpec("32 px", 3, 32, 10)).trunk.width
    assert sizes.measure("dit", "nano", 32).parameters == free.parameters + 11 * width


def test_a_reader_is_counted_for_itself_where_its_recipe_is_its_own(monkeypatch) -> None:
    def recipe(size: str, data: DataSpec):
        return dataclasses.replace(Dit.recipe(size, data), learn_sigma=False)

    kinds = {"dit": Dit, "same": type("Same", (Dit,), {"pretrained_as": "dit"})}
    kinds["own"] = type("Own", (Dit,), {"pretrained_as": "dit", "recipe": staticmethod(recipe)})
    monkeypatch.setattr(sizes, "load_method", kinds.__getitem__)
    dit, same, own = (sizes.measure(name, "nano", 32) for name in ("dit", "same", "own"))
    assert dataclasses.replace(same, method="dit") == dit and own.parameters < dit.parameters


def test_off_is_a_share_of_the_yardstick() -> None:
    mae, other = sizes.Measure("mae", "s", 100, 10.0, 4.0), sizes.Measure("x", "s", 120, 9.0, 4.0)
    assert other.off(mae) == pytest.approx([0.2, -0.1, 0.0])
    assert [sizes._percent(share).rstrip() for share in other.off(mae)] == ["+20 % *", "-10 %", "+0 %"]


def test_what_cannot_be_counted_is_said_and_the_rest_is_listed(monkeypatch, capsys) -> None:
    def fails(name: str, size: str, resolution: int) -> sizes.Measure:
        if name == "mae":
            raise RuntimeError("reads a number")
        return sizes.Measure(name, size, 1000, 2e9, 3e9)

    monkeypatch.setattr(sizes, "measure", fails)
    monkeypatch.setattr(sizes, "RESOLUTIONS", (32,))
    sizes.show()
    printed = capsys.readouterr().out
    assert "mae at nano, 32 px could not be counted: RuntimeError: reads a number" in printed
    assert "umd" in printed and "2.00" in printed
