"""Few labels: which images are drawn, that no other label is read, and how each way learns from them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from evals import _recipe, _tune, semi
from evals._references import RawPixels
from harness.data.dataset import Part
from harness.errors import HarnessError
from harness.evaluation import Subject, evaluate
from harness.rng import Rng
from tests.evals.kit import CLASSES, Toy, context, toy_data
from tests.evals.trainable import QUICK, Noisy, Small

WHO = Subject(reference="toy")
SHORT = dataclasses.replace(QUICK, length="400img", trial=0.5)
BOTH = semi.Config(shares=(0.04, 0.2), recipe=SHORT, c_values=(1e-2, 1.0), seeds=2)  # 5 and 26 of each class
PROBE = dataclasses.replace(BOTH, ways=("probe",))


def record(folder, method=None, data=None, config=BOTH):
    return evaluate("semi", context(folder, method or Small(), data or toy_data(noise=50.0)), config, subject=WHO)


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_draws_are_even_over_the_classes_nested_and_fixed():
    labels = Rng(0).integers("labels", 4, (400,))
    few, many, other = (semi.drawn(labels, 4, count, seed) for count, seed in ((3, 0), (30, 0), (30, 1)))
    assert torch.bincount(labels[many]).tolist() == [30] * 4 and len(set(many.tolist())) == 120
    assert torch.equal(many[:12], few) and not torch.equal(many, other)
    assert labels[few].tolist() == 3 * [0, 1, 2, 3]


def test_a_share_is_at_least_one_of_each_class():
    counts = [semi.shots(share, n, k) for share, n, k in ((0.01, 50_000, 10), (0.1, 50_000, 10), (0.01, 100_000, 200))]
    assert counts == [50, 500, 5], "the card's"
    assert semi.shots(0.01, 90, 3) == 1


@pytest.mark.parametrize("missing", [0, 2])
def test_a_class_without_enough_images_is_an_error(tmp_path, missing):
    data = toy_data()
    found = (data.train.labels == missing).nonzero().flatten()
    kept = torch.ones(len(data.train), dtype=torch.bool)
    kept[found[2:]] = False
    data.train = data.train.subset(kept.nonzero().flatten())
    with pytest.raises(HarnessError, match=rf"class {missing} has 2 images in train, and \d+ labels"):
        record(tmp_path, data=data, config=PROBE)
    with pytest.raises(HarnessError, match="class 3 has 0 images"):
        semi.drawn(data.train.labels, 4, 1, 0)


# -- what is found ----------------------------------------------------------------------------------------------------


def test_a_column_for_each_share_and_way(tmp_path):
    longer = dataclasses.replace(BOTH, recipe=dataclasses.replace(QUICK, length="1600img"))
    found = record(tmp_path, config=longer)
    titles = {name: number.title for name, number in found.numbers.items()}
    assert titles == {
        "probe_4pct_top1": "4 % labels, probe top-1 %",
        "finetune_4pct_top1": "4 % labels, fine-tune top-1 %",
        "probe_20pct_top1": "20 % labels, probe top-1 %",
        "finetune_20pct_top1": "20 % labels, fine-tune top-1 %",
    }
    for number in found.numbers.values():
        assert number.table == "finetune" and number.n == 120 and len(number.values) == 2
    assert "78 labels" in found.numbers["probe_20pct_top1"].note
    assert found.numbers["finetune_20pct_top1"].value > found.numbers["probe_20pct_top1"].value + 15
    assert found.trials == 1 + 2 + 2
    about = found.chosen["finetune_4pct"]
    assert (
        about["labels"] == 15
        and len(about["base_rate"]) == 2
        and list(about["base_rate_scores"][0]) == ["0.001", "0.1"]
    )
    assert list(found.chosen["probe_20pct"]["C_scores"][1]) == ["0.01", "1"]


def test_the_tap_is_chosen_within_the_draw(tmp_path):
    found = record(tmp_path, Toy(), config=PROBE).chosen["probe_20pct"]
    assert set(found["tap"]) <= {"rich", "rich@5"} and len(found["tap_scores"][0]) == 4


def test_every_training_has_the_whole_draw_and_no_trial_has(tmp_path, monkeypatch):
    sizes, train = [], _tune.train
    monkeypatch.setattr(_tune, "train", lambda task, part, *a: sizes.append(len(part)) or train(task, part, *a))
    record(tmp_path, config=dataclasses.replace(BOTH, ways=("finetune",), seeds=1))
    assert sizes == 2 * [12] + 2 * [63] + [15, 78], "of 5 and 26 images a class, 1 and 5 are held out"


def test_with_one_image_a_class_nothing_is_chosen(tmp_path):
    three = dataclasses.replace(SHORT, base_rates=(1e-3, 1e-2, 1e-1))
    config = dataclasses.replace(BOTH, shares=(0.001, 0.2), recipe=three)
    found = record(tmp_path, config=config)
    assert found.chosen["probe_0.1pct"]["C"] == [1.0, 1.0] and found.chosen["probe_0.1pct"]["C_scores"] == [{}, {}]
    assert found.chosen["finetune_0.1pct"]["base_rate"] == [1e-2, 1e-2]
    assert found.notes == ["0.1 % of 390 labels is less than one a class: one of each was drawn"]


def test_features_without_parameters_are_probed_alone(tmp_path):
    found = record(tmp_path / "a", RawPixels(toy_data()))
    assert set(found.numbers) == {"probe_4pct_top1", "probe_20pct_top1"}
    fine = dataclasses.replace(BOTH, ways=("finetune",))
    assert record(tmp_path / "b", RawPixels(toy_data()), config=fine) is None
    assert evaluate("semi", context(tmp_path / "c", Small(), cheap=True), BOTH, subject=WHO) is None


# -- what may be seen -------------------------------------------------------------------------------------------------


def test_no_other_image_or_label_is_read(tmp_path, monkeypatch):
    """Everything that was not drawn is replaced by garbage, under the same draw."""
    data, spoilt, drawn = toy_data(noise=50.0), toy_data(noise=50.0), semi.drawn
    draws = {seed: drawn(data.train.labels, CLASSES, 26, seed) for seed in range(2)}
    rest = torch.ones(len(data.train), dtype=torch.bool)
    rest[torch.cat(list(draws.values()))] = False
    images, labels = spoilt.train.images.clone(), spoilt.train.labels.clone()
    images[rest], labels[rest] = 255 - images[rest], (labels[rest] + 1) % CLASSES
    spoilt.train = Part(images, labels, data.train.index)
    assert rest.sum() > 200
    honest = record(tmp_path / "a", Noisy(), data)
    monkeypatch.setattr(semi, "drawn", lambda labels, classes, count, seed: draws[seed][: count * classes])
    assert honest.model_dump(exclude={"ledger", "test_opened"}) == record(tmp_path / "b", Noisy(), spoilt).model_dump(
        exclude={"ledger", "test_opened"}
    )


def test_poisoned_test_labels_change_no_choice(tmp_path):
    data, poisoned = toy_data(noise=50.0), toy_data(noise=50.0)
    poisoned.test = Part(data.test.images, (data.test.labels + 1) % CLASSES, data.test.index)
    one, two = record(tmp_path / "a", data=data), record(tmp_path / "b", data=poisoned)
    assert one.chosen == two.chosen and one.trials == two.trials
    assert one.numbers["probe_20pct_top1"].value != two.numbers["probe_20pct_top1"].value
    assert len(one.test_opened) == 1


def test_the_context_is_left_as_it_was(tmp_path):
    method = Small()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    record(tmp_path, method)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_sizes_have_settings():
    assert semi.recipe("nano").ways == ("probe",) and semi.recipe("ti").ways == ("probe", "finetune")
    assert semi.recipe("b").recipe == dataclasses.replace(_recipe.for_size("b"), length="200000img", batch=256)
    assert semi.recipe("b") == semi.Config()


@pytest.mark.parametrize(
    "odd",
    [
        {"ways": ()},
        {"ways": ("probe", "guess")},
        {"shares": ()},
        {"shares": (0.1, 0.01)},
        {"shares": (0.0,)},
        {"shares": (1.5,)},
        {"seeds": 0},
        {"c_values": ()},
    ],
)
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match=r"is|are"):
        semi.Config(**odd)
