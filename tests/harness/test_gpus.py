"""How many GPUs there are, without torch: never another number than torch's, which is asked wherever there is doubt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness import gpus

TORCH = 99  # what the torch of these tests counts


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A Linux with these names in /dev, NVML and torch, which is not loaded yet."""

    def made(dev: str = "null nvidiactl", number: int = 4, driver: int = 13_000, built: str = "'13.0'", **nvml):
        class Library:
            nvmlInit_v2 = staticmethod(lambda: nvml.get("init", 0))
            nvmlShutdown = staticmethod(lambda: 0)
            nvmlDeviceGetCount_v2 = staticmethod(lambda to: _put(to, number))
            nvmlSystemGetCudaDriverVersion_v2 = staticmethod(lambda to: _put(to, driver))

        def load(name: str):
            if nvml.get("gone"):
                raise OSError(name)
            return Library

        (tmp_path / "version.py").write_text(f"__version__ = '2.14.1'\ncuda: Optional[str] = {built}\nhip = None\n")
        monkeypatch.setattr(gpus.os, "listdir", lambda path: dev.split())
        monkeypatch.setattr(gpus.ctypes, "CDLL", load)
        monkeypatch.setattr(
            gpus.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        )

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "sys", SimpleNamespace(platform="linux", modules={}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: TORCH)
    return made


def _put(to, value: int) -> int:
    to._obj.value = value
    return 0


def test_a_machine_without_a_driver_has_none(machine):
    machine(dev="null nvme0 tty")
    assert gpus.count() == 0


@pytest.mark.parametrize(("visible", "number"), [(None, 4), ("0,2", 2), ("3", 1)])
def test_nvml_counts_those_that_may_be_seen(machine, monkeypatch, visible, number):
    machine()
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.count() == number


@pytest.mark.parametrize("visible", ["", "-1", "0,0", "0,4", "GPU-8932f937", "MIG-1", "0, 1"])
def test_torch_is_asked_what_the_environment_means(machine, monkeypatch, visible):
    machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.count() == TORCH


@pytest.mark.parametrize(
    "about", [{"built": "None"}, {"driver": 12_080}, {"init": 9}, {"gone": True}, {"dev": "kfd", "gone": True}]
)
def test_torch_is_asked_where_it_may_not_work_with_the_driver(machine, about):
    machine(**about)
    assert gpus.count() == TORCH


def test_torch_is_asked_where_it_is_loaded_anyway(machine):
    machine()
    gpus.sys.modules["torch"] = torch
    assert gpus.count() == TORCH


def test_the_version_of_the_torch_that_is_installed_can_be_read():
    cuda = torch.version.cuda
    assert gpus._cuda() == (None if cuda is None else int(cuda.split(".")[0]))
