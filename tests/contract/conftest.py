"""The contract runs over every method that is installed, whoever wrote it, on real digits."""

from __future__ import annotations

import pytest
import torch

from harness.data.dataset import load
from harness.method import Batch, Method
from harness.plugins import load_method, method_plugins
from harness.rng import Rng

METHODS = sorted(method_plugins())


@pytest.fixture(scope="session")
def digits():
    return load("digits")


@pytest.fixture(params=METHODS)
def method_class(request) -> type[Method]:
    return load_method(request.param)


@pytest.fixture
def nano(method_class, digits) -> Method:
    return build(method_class, digits)


def build(method_class: type[Method], data, seed: int = 0) -> Method:
    """The method at nano on a data set, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method_class.create(method_class.recipe("nano", data.spec), data.spec)


def batch_of(method: Method, images: torch.Tensor) -> Batch:
    """What the harness would hand to `pretrain`: the images, or what the method caches of them."""
    with torch.no_grad():
        cached = method.eval().cached(images)
    method.train()
    return Batch(images) if cached is None else Batch(None, cached)


def rng() -> Rng:
    return Rng(7).at("contract")
