"""The contract runs over every method that is installed, whoever wrote it, on real digits."""

from __future__ import annotations

import pytest
import torch

from harness.contract.subject import Subject
from harness.data.arrays import digits_file
from harness.data.dataset import load
from harness.method import Method
from harness.plugins import card, find, load_method, method_plugins

METHODS = sorted(method_plugins())


@pytest.fixture(scope="session")
def digits():
    return load("digits")


@pytest.fixture(params=METHODS)
def subject(request, digits, tmp_path) -> Subject:
    name = request.param
    place = find("method", name).folder
    return Subject(name, load_method(name), card(name), place, digits, tmp_path, closed=(digits_file(),))


def build(method_class: type[Method], data, seed: int = 0) -> Method:
    """The method at nano on a data set, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method_class.create(method_class.recipe("nano", data.spec), data.spec)
