"""The labelled fine-tune: its budget, its seed, what it may see, who it is for, and the numbers that come of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from evals import _standin, _yardstick, conditional
from evals._references import REFERENCES
from harness.errors import HarnessError
from harness.evaluation import Subject, can, evaluate, verbs
from harness.lacking import applies
from harness.ledger import Ledger
from harness.method import Augment, Batch, Loss, Method, Optim, inherit
from harness.plugins import load_method
from harness.rng import Rng
from tests.evals.kit import CLASSES, SIZE, Toy, context, toy_data

CONFIG = conditional.Config(budget="40step", batch_size=30, samples=150, seeds=1, chunk=64)


@dataclass(frozen=True)
class Paint:
    grain: float = 0.1


class Painter(Toy):
    """Draws one picture, with a little noise; with labels a picture for each class, which it can learn."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Paint()
        self.base = nn.Parameter(torch.zeros(1, SIZE, SIZE))

    def labelled(self) -> Painter:
        return inherit(LabelledPainter(), self)

    def sample(self, n, rng, labels=None, steps=None):
        return (self.base + 0.1 * rng.normal("grain", (n, 1, SIZE, SIZE))).clamp(-1, 1)


class LabelledPainter(Painter):
    sees_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(CLASSES, 1, SIZE, SIZE))

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        loss = (self.base + self.table[batch.labels] - batch.images).square().mean()
        return Loss(loss, {})

    def optim(self, batch_size: int) -> Optim:
        return Optim(0.05, weight_decay=0.0)

    def augment(self) -> Augment:
        return Augment(mirror=False)

    def sample(self, n, rng, labels: Tensor | None = None, steps=None, guidance: float | None = None):
        led = 0.0 if labels is None else (1.0 if guidance is None else guidance) * self.table[labels]
        return (self.base + led + 0.1 * rng.normal("grain", (n, 1, SIZE, SIZE))).clamp(-1, 1)


@pytest.fixture(autouse=True)
def short_stand_in(monkeypatch):
    monkeypatch.delenv(_yardstick.ENVIRONMENT, raising=False)
    monkeypatch.setattr(_standin, "FEWEST", 60)
    monkeypatch.setattr(_standin, "EPOCHS", 1)


def data(**changes):
    return toy_data(noise=30, **changes)


def run(where, config=CONFIG):
    return evaluate("conditional", where, config, subject=Subject(reference="toy"))


def values(record) -> dict[str, float]:
    return {key: number.value for key, number in record.numbers.items()}


# -- what comes of it -------------------------------------------------------------------------------------------------


def test_columns_say_what_they_are(tmp_path):
    record = run(context(tmp_path, Painter(), data()))
    name = record.chosen["extractor"]
    assert [number.title for number in record.numbers.values()] == [
        f"conditional FD ({name} on toy, n=150, train, guidance 1)",
        f"right class % ({name} on toy, n=150, guidance 1)",
        f"conditional FD ({name} on toy, n=150, train, guidance 1.5)",
        f"right class % ({name} on toy, n=150, guidance 1.5)",
    ]
    assert {(number.table, number.n) for number in record.numbers.values()} == {("generation", 150)}
    assert "FID" not in record.model_dump_json()
    known = record.chosen["judge"]["extractor_train_top1"]
    assert record.numbers["right_1"].note.endswith(f"the classifier itself: {known:.1f} % on real train images")


def test_a_method_that_learns_its_classes_draws_them(tmp_path):
    record = run(context(tmp_path, Painter(), data()))
    short = run(context(tmp_path, Painter(), data()), replace(CONFIG, budget="1step"))
    assert record.numbers["right_1"].value > 90
    assert record.numbers["frechet_1"].value < 0.5 * short.numbers["frechet_1"].value
    by_class = record.chosen["at guidance 1"]["right_by_class"]
    assert np.mean(by_class) == pytest.approx(record.numbers["right_1"].value, abs=0.1) and len(by_class) == CLASSES


def test_numbers_are_means_over_sets_from_one_fine_tune(tmp_path):
    one = run(context(tmp_path, Painter(), data()))
    three = run(context(tmp_path, Painter(), data()), replace(CONFIG, seeds=3))
    for key, number in three.numbers.items():
        assert number.values[0] == one.numbers[key].value and len(number.values) == 3
        assert number.value == pytest.approx(np.mean(number.values)) and number.half is not None
    assert len(set(three.numbers["frechet_1"].values)) == 3
    assert three.chosen["finetune"]["spend"]["step"] == 40 and three.chosen["at guidance 1"]["distinct"] == [150] * 3


def test_the_picture_has_a_class_a_row(tmp_path):
    where = context(tmp_path, Painter(), data())
    record = run(where, replace(CONFIG, columns=5, rows=2))
    assert record.pictures == ["conditional-1.png", "conditional-1.5.png"]
    picture = np.asarray(Image.open(where.pictures / record.pictures[0]))[::8, ::8]
    assert picture.shape == (2 * SIZE, 5 * SIZE)
    tiles = picture.reshape(2, SIZE, 5, SIZE).astype(float)
    for row, tile_row in enumerate(tiles):  # a class's bright bar stands at its own columns, in every tile of its row
        bars = tile_row.mean(axis=0).reshape(5, SIZE // 2, 2).mean(axis=2)
        assert (bars.argmax(axis=1) == row).all()


def test_scales_differ_in_guidance_alone(tmp_path):
    """The same fine-tune and the same noise: twice the same scale is refused, as it could only repeat itself."""
    both = values(run(context(tmp_path, Painter(), data())))
    one = values(run(context(tmp_path, Painter(), data()), replace(CONFIG, guidance=(1.5,))))
    assert one == {key: value for key, value in both.items() if key.endswith("_1.5")}
    assert both["frechet_1"] != both["frechet_1.5"]


# -- the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "steps", "images"), [("7step", 7, 210), ("100img", 4, 100), ("1epoch", 13, 390)])
def test_its_own_budget_is_spent_and_shown(tmp_path, budget, steps, images):
    record = run(context(tmp_path, Painter(), data()), replace(CONFIG, budget=budget, guidance=(1.0,)))
    about = record.chosen["finetune"]
    assert about["budget"] == record.config["budget"] == budget
    assert about["optim"]["lr_peak"] == 0.05 and about["augment"]["mirror"] is False
    assert about["method"] == {"grain": 0.1}
    spend = about["spend"]
    assert (spend["step"], spend["img"], spend["share"]) == (steps, images, 1.0)
    assert 0 < spend["wall_s"] <= record.ledger["evaluate"] + 1e-3, "its seconds are on the account `evaluate`"
    assert f"{images:,} images" in record.notes[0] and f"fine-tune of {budget}" in record.notes[0]


def test_a_budget_that_cannot_be_read_is_refused():
    with pytest.raises(HarnessError, match="unknown unit 'sep'"):
        conditional.Config(budget="10sep")


def test_a_budget_has_one_spelling():
    assert conditional.Config(budget="50 epochs") == conditional.Config(budget="50epoch")


@pytest.mark.parametrize(
    "odd", [{"samples": 99}, {"guidance": ()}, {"guidance": (1.5, 1.5)}, {"guidance": (1.0, 1.0000001)}, {"columns": 0}]
)
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match=r"fewer than 100|guidance is|must be positive"):
        conditional.Config(**odd)


# -- what it may see, and that it repeats -----------------------------------------------------------------------------


def test_it_repeats_from_its_seed(tmp_path):
    made = [run(context(tmp_path / name, Painter(), data())) for name in "ab"]
    assert values(made[0]) == values(made[1])
    pictures = [(tmp_path / n / "pictures" / "conditional-1.5.png").read_bytes() for n in "ab"]
    assert pictures[0] == pictures[1]
    other = context(tmp_path / "a", Painter(), data())
    other.rng = Rng(4).at("evaluate")
    assert values(run(other)) != values(made[0])


def test_the_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(context(tmp_path, Painter(), data()))
    assert torch.equal(torch.get_rng_state(), before)


def test_test_images_and_labels_change_nothing_and_are_never_opened(tmp_path):
    clean, poisoned = data(), data()
    poisoned.test.labels.zero_()
    poisoned.test.images.zero_()
    records = [run(context(tmp_path / n, Painter(), d)) for n, d in (("a", clean), ("b", poisoned))]
    assert values(records[0]) == values(records[1])
    assert clean.opened == poisoned.opened == records[0].test_opened == []


def test_train_labels_are_what_it_learns_from(tmp_path):
    """The classifier that judges is trained first, on the true ones; then a third of the samples is right by chance."""
    where = context(tmp_path, Painter(), data())
    run(where)
    where.data.train.labels.copy_((where.data.train.labels + 1) % CLASSES)
    assert run(where).numbers["right_1"].value < 10, "every class is drawn as the next one"


def test_the_pre_trained_weights_are_its_start_and_stay_as_they_are(tmp_path):
    method = Painter()
    method.base.data.fill_(0.7)
    where = context(tmp_path, method, data())
    record = run(where, replace(CONFIG, budget="1step", guidance=(1.0,)))  # at rate 0, the first of its warm-up
    assert torch.equal(method.base, torch.full_like(method.base, 0.7))
    picture = np.asarray(Image.open(where.pictures / record.pictures[0]))
    assert picture.mean() == pytest.approx(127.5 * 1.7, rel=0.03)


# -- who it is for ----------------------------------------------------------------------------------------------------


def test_only_methods_that_can_draw_a_class_have_a_record(tmp_path):
    able = {name: can(load_method(name), "labelled") for name in ("mae", "lmd", "umd", "dit")}
    assert able == {"mae": False, "lmd": False, "umd": True, "dit": True}
    assert run(context(tmp_path)) is None, "a method without the verb"
    assert not any(can(kind, "labelled") for kind in REFERENCES.values())
    assert not can(Method, "labelled")


def test_final_weights_only(tmp_path):
    assert run(context(tmp_path, Painter(), data(), cheap=True)) is None
    asked = {(s, c): applies("conditional", verbs(Painter), s, c) for s in (0.0, 0.5, 1.0) for c in (True, False)}
    assert [place for place, yes in asked.items() if yes] == [(1.0, False)]


def test_a_method_that_saw_labels_is_drawn_from_as_it_is(tmp_path):
    torch.manual_seed(0)
    method, ledger = LabelledPainter(), Ledger()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    record = run(context(tmp_path, method, data(), ledger=ledger))
    assert record.chosen["finetune"] is None
    assert record.notes == [
        "drawn as pre-trained: it saw labels there, and was not fine-tuned",
        "drawn by: the method's own sampler",
    ]
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_sizes_of_its_own():
    assert conditional.recipe("nano").samples < conditional.recipe("b").samples
    assert conditional.recipe("b").budget == "50epoch"
