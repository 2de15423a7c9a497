"""The cost eval: what it counts by hand-made figures, what it times on a clock of its own, what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from evals import cost
from evals._references import RawPixels
from harness import energy, machine
from harness.energy import Unreadable
from harness.evaluation import Subject, evaluate
from harness.records import Borrowed, EvalRecord
from tests.evals import kit
from tests.harness.made_study import COST, ENVIRONMENT, made_run, table

WHO = Subject(reference="toy")
CONFIG = cost.Config(chunk=50, passes=3, samples=8, seeds=3)
PIXELS, WIDTH = kit.SIZE**2, 6


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cost, "time", clock)
    return clock


class Net(kit.Toy):
    """A layer that features pass through and one that they do not; a pass takes what `passes_s` says."""

    def __init__(self, clock: Clock | None = None, passes_s: Sequence[float] = ()) -> None:
        super().__init__()
        self.data = kit.toy_data().spec
        self.behind, self.beside = nn.Linear(PIXELS, WIDTH), nn.Linear(PIXELS, 100)
        self.clock, self.passes_s = clock, iter(passes_s)
        self.sizes: list[int] = []

    def taps(self):
        return super().taps()[:1]

    def features(self, images, taps, rng, dense=False):
        self.sizes.append(len(images))
        if self.clock:
            self.clock.now += next(self.passes_s, 1.0)
        return [self.behind(images.flatten(1)) for _ in taps]

    def sample(self, n, rng, labels=None, steps=None):
        assert steps is None, "each method's own number of steps"
        if self.clock:
            self.clock.now += 4.0
        return super().sample(n, rng)


def found(folder: Path, method: kit.Toy, **settings) -> EvalRecord:
    context = kit.context(folder, method.requires_grad_(False), **settings)
    record = evaluate("cost", context, CONFIG, subject=WHO)
    assert record is not None
    return record


def values(record: EvalRecord) -> dict[str, float]:
    return {key: number.value for key, number in record.numbers.items()}


@pytest.fixture(autouse=True)
def no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may have some."""
    monkeypatch.setattr(energy, "counters", lambda device: [])


def test_parameters_and_flop_are_those_of_the_layers(tmp_path: Path) -> None:
    got = values(found(tmp_path, Net()))
    behind = PIXELS * WIDTH + WIDTH
    assert got["parameters_features"] == pytest.approx(behind / 1e6)
    assert got["parameters"] == pytest.approx((behind + PIXELS * 100 + 100) / 1e6)
    assert got["gflop_features"] == pytest.approx(2 * PIXELS * WIDTH / 1e9)


def test_a_pace_is_that_of_the_median_pass_and_the_first_pass_is_no_part_of_it(tmp_path: Path, clock: Clock) -> None:
    # Counting takes two passes, warming up one; then three rounds of three, each with a stall.
    passes_s = [9.0, 9.0, 9.0, 0.5, 0.5, 7.0, 7.0, 0.5, 0.5, 0.25, 7.0, 0.25]
    net = Net(clock, passes_s)
    record = found(tmp_path, net)
    pace = record.numbers["img_s_features"]
    assert pace.values == [100, 100, 200]
    assert (pace.value, pace.n) == (pytest.approx(400 / 3), 150)
    assert pace.half == pytest.approx(4.303 * math.sqrt(10000 / 3) / math.sqrt(3), rel=1e-3)
    assert set(net.sizes[2:]) == {50}
    drawn = record.numbers["img_s_samples"]
    assert (drawn.values, drawn.half, drawn.n) == ([2, 2, 2], 0, 8)


def test_a_part_smaller_than_a_chunk_is_read_as_it_is(tmp_path: Path) -> None:
    net = Net()
    record = found(tmp_path, net, data=kit.toy_data(fit=20))
    assert set(net.sizes[2:]) == {20} and record.numbers["img_s_features"].n == 60
    assert record.numbers["memory_features"].title == "features, peak MiB at 20 img"


class Hungry(Net):
    """A pass holds 64 MiB for a moment."""

    def features(self, images, taps, rng, dense=False):
        torch.ones(2**24).sum()
        return super().features(images, taps, rng)


def test_peak_memory_is_the_networks_and_not_the_processs(tmp_path: Path) -> None:
    if torch.cuda.is_available() or not machine.forget_peak_memory():
        pytest.skip("the peak of a process can be forgotten on Linux only")
    ballast = torch.ones(2**25)  # 128 MiB that other evals may hold
    small, large = (values(found(tmp_path, net))["memory_features"] for net in (Net(), Hungry()))
    assert small < 30 < 60 < large < 100 < ballast.nbytes / 2**20


def test_memory_is_left_out_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "forget_peak_memory", lambda: False)
    assert "memory_features" not in values(found(tmp_path, Net()))


class Watts:
    """A counter that grows by 3 J with every second of a clock."""

    name, holds_s = "a counter", math.inf

    def __init__(self, clock: Clock, breaks_at: float = math.inf) -> None:
        self.clock, self.breaks_at = clock, breaks_at

    def joules(self) -> float:
        if self.clock.now > self.breaks_at:
            raise Unreadable("gone")
        return 3 * self.clock.now


def test_energy_is_per_image_and_names_its_counters(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "counters", lambda device: [Watts(clock)])
    number = found(tmp_path, Net(clock, [0.3] * 100)).numbers["joules_features"]
    assert number.value == pytest.approx(3 * 0.3 / 50)
    assert "a counter" in number.note


@pytest.mark.parametrize("watts", [[], ["breaks"]])
def test_energy_is_left_out_where_it_cannot_be_read(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, watts: list[str]
) -> None:
    monkeypatch.setattr(energy, "counters", lambda device: [Watts(clock, breaks_at=clock.now + 1) for _ in watts])
    assert "joules_features" not in values(found(tmp_path, Net(clock)))


def test_pre_training_is_read_from_the_runs_record(tmp_path: Path) -> None:
    run = made_run("umd", 0)
    run = run.model_copy(
        update={
            "cost": COST.model_copy(update={"mfu": 0.42}),
            "spend": run.spend.model_copy(update={"device_s": 5400.0}),
            "borrowed": [Borrowed(what="tiny VAE", parameters=7, cost="3 GPU-hours")],
        }
    )
    record = found(tmp_path, Net(), run=run)
    got = values(record)
    assert got["device_h"] == 1.5 and got["mfu"] == pytest.approx(42)
    assert (got["gflop_training"], got["img_s_training"]) == (pytest.approx(0.1234), 812.3)
    said = "without what it starts from: tiny VAE (its cost elsewhere: 3 GPU-hours)"
    assert record.numbers["device_h"].note == record.numbers["parameters"].note == said


TRAINING = {"gflop_training", "img_s_training", "mfu", "device_h"}


def test_what_was_not_measured_is_left_out_and_not_zero(tmp_path: Path) -> None:
    assert not TRAINING & set(values(found(tmp_path / "a", Net())))
    bare = made_run("umd", 0, cost=COST.model_copy(update={"flop_train_img": None, "img_s": None}))
    assert not TRAINING & set(values(found(tmp_path / "b", Net(), run=bare)))  # nor was device time booked


def test_raw_pixels_are_no_network(tmp_path: Path) -> None:
    assert set(values(found(tmp_path, RawPixels(kit.toy_data())))) <= {"img_s_features", "memory_features"}


def test_nothing_is_measured_on_snapshots(tmp_path: Path) -> None:
    assert evaluate("cost", kit.context(tmp_path, Net(), cheap=True), CONFIG, subject=WHO) is None
    assert cost.FULL_ONLY and cost.TRAINED_ONLY


def test_neither_the_test_split_nor_a_label_is_needed(tmp_path: Path) -> None:
    record = found(tmp_path, Net())
    assert (record.test_opened, record.trials) == ([], 1)
    assert record.ledger["sample"] >= 0 and record.ledger["select"] == 0


@pytest.mark.parametrize("odd", ["chunk", "passes", "samples", "seeds"])
def test_odd_settings_are_refused(odd: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cost.Config(**{odd: 0})


@pytest.mark.parametrize("size", ["nano", "ti", "s", "b", "l", "xl"])
def test_every_size_has_three_rounds_of_at_most_256_images_a_pass(size: str) -> None:
    assert cost.recipe(size).seeds == 3 and cost.recipe(size).chunk <= 256


def test_rows_timed_on_other_machines_do_not_mix(tmp_path: Path) -> None:
    runs = [made_run("umd", 0), made_run("mae", 0)]
    record = found(tmp_path, Net(), run=runs[0])
    here = {"cell": runs[0].cell, "key": runs[0].key, "share": 1.0, "reference": None, "environment": ENVIRONMENT}
    there = {"cell": runs[1].cell, "key": runs[1].key, "environment": ENVIRONMENT}
    same = [record.model_copy(update=here), record.model_copy(update=here | there)]
    made = table("Cost", runs, same)
    assert len(made.sections) == 1 and "cost timed on 1 × Example CPU, 2 CPU threads" in made.sections[0].conditions
    there["environment"] = ENVIRONMENT.model_copy(update={"device": "Other GPU"})
    made = table("Cost", runs, [same[0], record.model_copy(update=here | there)])
    assert [s.heading.rpartition(" · ")[2] for s in made.sections] == [
        "cost timed on 1 × Example CPU, 2 CPU threads",
        "cost timed on 1 × Other GPU, 2 CPU threads",
    ]
