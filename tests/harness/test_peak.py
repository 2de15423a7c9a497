"""MFU: the share of a device's stated peak that training used, and no number where nobody states one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness import ledger, machine, peak, pretrain_run
from harness.errors import HarnessError
from harness.peak import peak_flop_s
from tests.toys import CLOCK


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "time", CLOCK)
    monkeypatch.delenv(peak.ENVIRONMENT, raising=False)


@pytest.mark.parametrize(
    ("device", "bf16", "tf32", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 66.9),
        ("NVIDIA H100 PCIe", 756, 378, 51),
        ("NVIDIA H200", 989.4, 494.7, 66.9),
        ("NVIDIA A100-SXM4-40GB", 312, 156, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 156, 19.5),
        ("NVIDIA L40S", 362.05, 183, 91.6),
        ("NVIDIA L4", 121, 60, 30.3),
        ("Tesla V100-SXM2-32GB", None, 15.7, 15.7),
    ],
)
def test_the_makers_figures(device: str, bf16: float | None, tf32: float, fp32: float) -> None:
    found = [peak_flop_s(device, "bf16"), peak_flop_s(device, "fp32", tf32=True), peak_flop_s(device, "fp32")]
    assert found == [None if bf16 is None else pytest.approx(bf16 * 1e12), tf32 * 1e12, fp32 * 1e12]


@pytest.mark.parametrize(
    "device",
    [
        "Example CPU @ 2.00GHz (8 cores)",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A10G",
        "NVIDIA L40",
        "NVIDIA H100 NVL",
    ],
)
def test_a_device_without_a_stated_peak_has_none(device: str) -> None:
    assert peak_flop_s(device, "bf16") is None


def test_the_users_figure_counts_before_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(peak.ENVIRONMENT, "0.05")
    assert peak_flop_s("Example CPU", "fp32") == peak_flop_s("NVIDIA H100 PCIe", "bf16") == 5e10


@pytest.mark.parametrize("text", ["fast", "0", "-3", "nan", "inf"])
def test_a_figure_that_is_none_is_refused_with_an_example(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(peak.ENVIRONMENT, text)
    with pytest.raises(HarnessError, match=f"HARNESS_PEAK_TFLOPS='{text}'") as caught:
        peak.stated()
    assert caught.value.next_step == "HARNESS_PEAK_TFLOPS=989.4"


def test_mfu_is_model_flop_a_second_over_the_peak(toy_run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy_run("40step")
    run.run()
    blank = pretrain_run._cost(run, run.method, None)
    assert (blank.mfu, blank.peak_flop_s) == (None, None)
    monkeypatch.setattr(machine, "device_name", lambda: "NVIDIA H100 PCIe")
    monkeypatch.setattr(peak, "rounds_to_tf32", lambda: True)
    cost = pretrain_run._cost(run, run.method, None)
    assert cost.peak_flop_s == 378e12
    assert cost.img_s == pytest.approx(8000)  # 8 images a step of a millisecond
    assert cost.mfu == pytest.approx(cost.flop_train_img * 8000 / 378e12)
    assert 0 < cost.mfu < 1
