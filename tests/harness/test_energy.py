"""Energy from counters of a made-up machine, and of the charged time of a run, however often it stops."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness import checkpoint, energy, ledger, pretrain_run
from harness.energy import EnergyMeter, Unreadable, counters
from harness.train.pretraining import Interrupted, Pretraining
from tests.toys import CLOCK, Toy, ToyLatent

RANGE_UJ = 262_143_328_850


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ledger, energy):
        monkeypatch.setattr(module, "time", CLOCK)


def zone(root: Path, place: str, name: str, uj: int = 0) -> Path:
    folder = root / place
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{uj}\n")
    return folder / "energy_uj"


@pytest.fixture
def two_packages(tmp_path: Path) -> dict[str, Path]:
    """Files of a machine with two packages, their parts, and a zone that is the sum of all."""
    places = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
    places |= {"intel-rapl:1": "package-1", "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}
    return {place: zone(tmp_path, place, name, uj=1000) for place, name in places.items()}


# -- counters ---------------------------------------------------------------------------------------------------------


def test_packages_and_memory_are_added_and_nothing_twice(two_packages: dict[str, Path], tmp_path: Path) -> None:
    meter = EnergyMeter(counters("cpu", tmp_path))
    assert meter.source == "package-0 (RAPL) + package-0 memory (RAPL) + package-1 (RAPL)"
    meter.start()
    for i, file in enumerate(two_packages.values()):
        file.write_text(str(1000 + 10**i * 1_000_000))
    assert meter.joules() == 1 + 100 + 1000


def test_a_counter_that_starts_again_is_followed(two_packages: dict[str, Path], tmp_path: Path) -> None:
    meter = EnergyMeter(counters("cpu", tmp_path))
    meter.start()
    for uj in (RANGE_UJ - 1000, 500, RANGE_UJ - 1000, 2000):
        two_packages["intel-rapl:0"].write_text(str(uj))
        meter.look()
    assert meter.joules() == pytest.approx((2 * RANGE_UJ + 1000) / 1e6)


def test_a_counter_left_unread_for_longer_than_its_range_lasts_is_unknown(
    clock: None, two_packages: dict[str, Path], tmp_path: Path
) -> None:
    meter = EnergyMeter(counters("cpu", tmp_path))
    CLOCK.now += 5000  # nothing is counted yet
    meter.start()
    for _ in range(30):
        CLOCK.now += 20
        meter.keep_up()
    assert meter.joules() == 0
    CLOCK.now += 300
    assert (meter.joules(), meter.source) == (None, None)


@pytest.mark.parametrize("broken", ["", "not a number"])
def test_one_package_that_cannot_be_read_leaves_no_sum(
    two_packages: dict[str, Path], tmp_path: Path, broken: str
) -> None:
    two_packages["intel-rapl:1"].write_text(broken)
    assert counters("cpu", tmp_path) == []


def test_a_package_that_may_not_be_read_leaves_no_sum(two_packages: dict[str, Path], tmp_path: Path) -> None:
    two_packages["intel-rapl:0"].unlink()
    two_packages["intel-rapl:0"].mkdir()  # an OSError also for root, whom permissions do not stop
    assert counters("cpu", tmp_path) == []


def test_a_counter_that_fails_on_the_way_makes_the_sum_unknown(two_packages: dict[str, Path], tmp_path: Path) -> None:
    meter = EnergyMeter(counters("cpu", tmp_path))
    meter.start()
    kept = two_packages["intel-rapl:0"].read_text()
    two_packages["intel-rapl:0"].write_text("gone")
    meter.look()
    two_packages["intel-rapl:0"].write_text(kept)
    assert (meter.joules(), meter.source) == (None, None)


def test_without_counters_there_is_no_number(tmp_path: Path) -> None:
    meter = EnergyMeter(counters("cpu", tmp_path / "no powercap here"))
    meter.start()
    assert (meter.joules(), meter.source) == (None, None)


class FakeNvml:
    """What is used of nvidia-ml-py, for one card."""

    class NVMLError(Exception):
        pass

    def __init__(self, mj: int | None = 7_000) -> None:
        self.mj = mj

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-ab-12":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self.mj is None:
            raise self.NVMLError("Not Supported")
        return self.mj


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-12"))
    return fake


def test_a_card_is_read_by_its_own_counter(nvml: FakeNvml, tmp_path: Path) -> None:
    meter = EnergyMeter(counters("cuda", tmp_path))
    meter.start()
    nvml.mj += 2_500
    assert (meter.joules(), meter.source) == (2.5, "GPU (NVML)")
    nvml.mj = 10  # the driver was loaded anew
    assert meter.joules() is None


def test_a_card_and_its_packages_are_added(nvml: FakeNvml, two_packages: dict[str, Path], tmp_path: Path) -> None:
    meter = EnergyMeter(counters("cuda", tmp_path))
    meter.start()
    nvml.mj += 1_000
    two_packages["intel-rapl:1"].write_text("2001000")
    assert meter.joules() == pytest.approx(3)
    assert meter.source.startswith("GPU (NVML) + package-0")


@pytest.mark.parametrize("why", ["no library", "no counter", "a slice of a card"])
def test_packages_alone_do_not_pass_for_a_card(
    nvml: FakeNvml, two_packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "no library":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif why == "no counter":
        nvml.mj = None
    else:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="MIG-0"))
    assert counters("cuda", tmp_path) == []


# -- of a run ---------------------------------------------------------------------------------------------------------


class Hundred:
    """A device that draws 100 W on the tests' clock."""

    name, holds_s = "hundred watts", 1e9

    def __init__(self) -> None:
        self.broken = False

    def joules(self) -> float:
        if self.broken:
            raise Unreadable("broken")
        return 100 * CLOCK.now


def metered(run: Pretraining, *counters: Hundred) -> Pretraining:
    run.energy = EnergyMeter(counters)
    return run


def stopped(run: Pretraining, step: int) -> Pretraining:
    run.should_stop = lambda: run.step >= step
    with pytest.raises(Interrupted):
        run.run()
    return run


@pytest.mark.parametrize("method", [Toy, ToyLatent])
def test_what_is_charged_in_seconds_is_counted_in_joules(
    clock: None, toy_run: Callable, monkeypatch: pytest.MonkeyPatch, method: type[Toy]
) -> None:
    save = checkpoint.save

    def slowly(*words: object) -> object:
        CLOCK.now += 3
        return save(*words)

    monkeypatch.setattr(checkpoint, "save", slowly)
    run = metered(toy_run("40step", method), Hundred())
    run.run()
    book = run.ledger.snapshot()
    assert book["checkpoint"] > 10 and run.energy.joules() == pytest.approx(100 * (book["train"] + book["prepare"]))


def test_the_record_holds_the_sum_and_its_counters(clock: None, toy_run: Callable) -> None:
    run = metered(toy_run("40step"), Hundred())
    run.run()
    cost = pretrain_run._cost(run, run.method, None)
    assert (cost.energy_j, cost.energy_source) == (pytest.approx(4), "hundred watts")
    run.energy = EnergyMeter()
    cost = pretrain_run._cost(run, run.method, None)
    assert (cost.energy_j, cost.energy_source) == (None, None)


def test_a_run_that_was_stopped_adds_what_it_used_before(clock: None, toy_run: Callable) -> None:
    stopped(metered(toy_run("40step", ToyLatent), Hundred()), 7)
    stopped(metered(toy_run("40step", ToyLatent), Hundred()), 25)
    CLOCK.now += 1000
    last = metered(toy_run("40step", ToyLatent), Hundred())
    last.run()
    assert last.energy.joules() == pytest.approx(100 * last.ledger.charged_s())
    assert last.ledger.charged_s() == pytest.approx(0.04)


@pytest.mark.parametrize("blind", [0, 1, 2])
def test_an_attempt_without_a_reading_leaves_no_sum(clock: None, toy_run: Callable, blind: int) -> None:
    for attempt, step in enumerate((7, 25, None)):
        run = metered(toy_run("40step"), *([] if attempt == blind else [Hundred()]))
        _ = run.run() if step is None else stopped(run, step)
    assert (run.energy.joules(), run.energy.source) == (None, None)


def test_attempts_on_other_counters_leave_no_sum(clock: None, toy_run: Callable) -> None:
    stopped(metered(toy_run("40step"), Hundred()), 7)
    run = metered(toy_run("40step"), Hundred(), Hundred())
    run.run()
    assert run.energy.joules() is None


def test_a_checkpoint_of_before_energy_was_kept_leaves_no_sum(
    clock: None, toy_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(toy_run("40step"), 7)
    load = checkpoint.load_latest

    def older(*words: object) -> tuple:
        payload, notices = load(*words)
        return {key: value for key, value in payload.items() if key != "energy"}, notices

    monkeypatch.setattr(checkpoint, "load_latest", older)
    run = metered(toy_run("40step"), Hundred())
    run.run()
    assert run.energy.joules() is None
