"""Transfer: whose metric, what is refused before any work, what opens the test split, what is recorded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from evals import linear, transfer
from evals._accuracy import mean_per_class, top1
from evals._references import RawPixels
from harness.config import override, parse_words, plain
from harness.data.dataset import Part, load
from harness.errors import HarnessError
from harness.evaluation import Outcome, Subject, evaluate
from harness.fitted import Fitted
from harness.method import DataSpec, Tap
from harness.rng import Rng
from tests.evals.kit import SIZE, Toy, context, toy_data

WHO = Subject(reference="toy")
QUICK = linear.Config(taps=2, c_low=0.1, c_high=10.0, c_count=2, widen=0)


class Sees(Toy):
    """A toy that remembers the sides of the images which it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.data, self.config, self.sides = DataSpec("toy", 1, SIZE, 3), None, set()

    def features(self, images, taps, rng, dense=False):
        self.sides.add(images.shape[-1])
        return super().features(images, taps, rng, dense)


def other(name, side=SIZE, metric="top1", noise=110.0, rare=None):
    """A data set of another name and size; class `rare` has a fifth of the others' images."""
    data = toy_data(noise=noise)
    parts = [data.fit, data.select, data.test]
    if rare is not None:
        parts = [p.subset((p.labels != rare) | (torch.arange(len(p)) % 5 == 0)) for p in parts]
    scale = side // SIZE
    parts = [Part(p.images.repeat_interleave(scale, 2).repeat_interleave(scale, 3), p.labels, p.index) for p in parts]
    fit, select, test = parts
    train = Part(*(torch.cat([getattr(p, key) for p in (fit, select)]) for key in ("images", "labels", "index")))
    return replace(
        data, spec=DataSpec(name, 1, side, 3), train=train, fit_n=len(fit), test=test, title=f"the {name} set",
        metric=metric, revision=f"revision-of-{name}",
    )  # fmt: skip


SETS = {
    "large": partial(other, "large", 2 * SIZE),
    "uneven": partial(other, "uneven", metric="mean-per-class", rare=2),
}
CONFIG = transfer.Config(data=("large", "uneven"), linear=QUICK)


def run(folder, method=None, config=CONFIG, sets=SETS, **settings):
    """The record, and the data sets that were read."""
    read = {}

    def get(name):
        read[name] = sets[name]()
        return read[name]

    where = context(folder, method or Sees(), load=get, **settings)
    return evaluate("transfer", where, config, subject=WHO), read


def test_each_data_set_has_its_own_metric(tmp_path):
    record, _ = run(tmp_path)
    titles = {key: number.title for key, number in record.numbers.items()}
    assert titles == {
        "linear_large": "linear on large, top-1 %",
        "linear_uneven": "linear on uneven, mean per class %",
        "linear_mean": "linear, mean of 2 data sets %",
    }
    assert {number.table for number in record.numbers.values()} == {"transfer"}
    assert record.numbers["linear_large"].note.startswith("the large set; logistic regression")


def test_the_numbers_are_those_of_the_way_on_that_data_set(tmp_path):
    record, _ = run(tmp_path)
    method = Fitted(Sees(), SETS["uneven"]().spec).eval()
    there = context(tmp_path / "there", method, SETS["uneven"]())
    there.rng = there.rng.at("on", "uneven")
    alone = linear.evaluate(there, QUICK)
    assert record.numbers["linear_uneven"].value == alone.numbers["linear_mean_class"].value
    assert alone.numbers["linear_mean_class"].value != alone.numbers["linear_top1"].value
    assert record.chosen["linear"]["uneven"] == alone.chosen
    assert record.numbers["linear_uneven"].n == len(SETS["uneven"]().test)


def test_the_mean_counts_data_sets_alike_and_trials_add_up(tmp_path):
    record, _ = run(tmp_path)
    large, uneven, mean = (record.numbers[f"linear_{key}"] for key in ("large", "uneven", "mean"))
    assert mean.value == pytest.approx((large.value + uneven.value) / 2)
    assert mean.n == large.n + uneven.n and "large, uneven" in mean.note
    assert record.trials == 2 * (2 + 2)


def test_the_network_can_be_fine_tuned_on_each(tmp_path):
    from evals import finetune
    from tests.evals.trainable import QUICK as RECIPE
    from tests.evals.trainable import Small

    method = Small()
    method.config = None
    config = replace(CONFIG, ways=("linear", "finetune"), finetune=finetune.Config(RECIPE, seeds=2))
    record, read = run(tmp_path, method, config)
    titles = [number.title for key, number in record.numbers.items() if key.startswith("finetune")]
    assert titles == [
        "finetune on large, top-1 %",
        "finetune on uneven, mean per class %",
        "finetune, mean of 2 data sets %",
    ]
    assert record.numbers["finetune_large"].value > record.numbers["linear_large"].value
    assert len(record.numbers["finetune_mean"].values) == 2
    assert record.chosen["finetune"]["uneven"]["base_rate"] in RECIPE.base_rates
    assert [len(data.opened) for data in read.values()] == [2, 2] and len(record.test_opened) == 4
    raw, _ = run(tmp_path / "raw", RawPixels(toy_data()), config)
    assert [key for key in raw.numbers if key.startswith("finetune")] == []  # nothing there to tune


def test_a_single_data_set_has_no_mean(tmp_path):
    record, _ = run(tmp_path, config=replace(CONFIG, data=("large",)))
    assert list(record.numbers) == ["linear_large"]


class Noisy(Sees):
    """Its one tap is read under noise."""

    def taps(self):
        return [Tap("rich", 5)]


def test_noise_is_repeated_over_the_seeds_and_the_mean_goes_seed_by_seed(tmp_path):
    record, _ = run(tmp_path, Noisy())
    large, uneven, mean = (record.numbers[f"linear_{key}"] for key in ("large", "uneven", "mean"))
    assert [len(number.values) for number in (large, uneven, mean)] == [3, 3, 3]
    assert mean.values == pytest.approx([(a + b) / 2 for a, b in zip(large.values, uneven.values, strict=True)])
    assert mean.half is not None


def test_a_clean_data_set_counts_with_its_one_value_beside_noisy_ones():
    from harness.evaluation import measured

    about = {"title": "", "table": "transfer", "better": "higher", "n": 10}
    mean = transfer._mean("linear", {"a": measured([10.0], **about), "b": measured([20.0, 30.0, 40.0], **about)})
    assert mean.values == [15.0, 20.0, 25.0]


def test_images_are_resized_once_to_the_networks_size(tmp_path):
    method = Sees()
    record, _ = run(tmp_path, method)
    assert method.sides == {SIZE}
    assert f"images of {2 * SIZE} px are resized to the network's {SIZE} px" in record.numbers["linear_large"].note
    assert "resized" not in record.numbers["linear_uneven"].note


def test_released_weights_see_the_images_at_their_own_size_in_one_step(tmp_path):
    """On a data set of 8 px a network of 16 px stands behind a Fitted; images of 16 px then need no resizing."""
    inner = Sees()
    inner.data = DataSpec("its own", 1, 2 * SIZE, 3)
    fitted = Fitted(inner, DataSpec("toy", 1, SIZE, 3)).eval()
    image = Rng(0).normal("image", (1, 1, 2 * SIZE, 2 * SIZE)).clamp(-1, 1)
    place = context(tmp_path, fitted, load=lambda name: SETS[name]()).on("large")
    seen = place.method.features(image, [Tap("poor")], Rng(0))[0]
    assert torch.equal(seen, inner.features(image, [Tap("poor")], Rng(0))[0])


def test_the_raw_pixels_row(tmp_path):
    record, _ = run(tmp_path, RawPixels(toy_data()))
    assert record.numbers["linear_large"].value > 50 and record.chosen["linear"]["large"]["tap"] == "pixels"


def test_each_test_split_is_opened_once_and_recorded(tmp_path):
    record, read = run(tmp_path)
    assert [len(data.opened) for data in read.values()] == [1, 1]
    assert len(record.test_opened) == 2 and {look.by for look in record.test_opened} == {"transfer of toy"}
    assert record.others == {"large": "revision-of-large", "uneven": "revision-of-uneven"}


def test_a_poisoned_test_part_changes_no_choice(tmp_path):
    def poisoned(make):
        data = make()
        return replace(data, test=replace(data.test, images=255 - data.test.images, labels=(data.test.labels + 1) % 3))

    honest, _ = run(tmp_path / "a")
    lied, _ = run(tmp_path / "b", sets={name: partial(poisoned, make) for name, make in SETS.items()})
    assert lied.chosen == honest.chosen and lied.trials == honest.trials
    assert lied.numbers["linear_large"].value < honest.numbers["linear_large"].value


def test_a_missing_data_set_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "decoded"))
    method = Sees()
    where = context(tmp_path, method, load=partial(load, data_dir=tmp_path))
    config = transfer.Config(data=("digits", "pets"), linear=QUICK)
    with pytest.raises(HarnessError) as error:
        evaluate("transfer", where, config, subject=WHO)
    assert "'pets' was not found" in str(error.value) and "data fetch pets" in str(error.value)
    assert method.passes == []
    with pytest.raises(HarnessError, match="offline"):
        evaluate("transfer", where, replace(config, data=("digits", "cars")), subject=WHO)
    assert method.passes == []


def test_two_names_of_one_data_set(tmp_path):
    """`cifar10` may be found in its JPEG form, which has a name of its own."""
    sets = SETS | {"alias": SETS["large"]}
    with pytest.raises(HarnessError, match="names large twice"):
        run(tmp_path, config=replace(CONFIG, data=("large", "alias")), sets=sets)


def test_a_way_without_the_metric_is_refused(tmp_path, monkeypatch):
    real = linear.evaluate

    def poor(place, config):
        outcome = real(place, config)
        return Outcome({"linear_top1": outcome.numbers["linear_top1"]}, outcome.chosen, outcome.trials)

    monkeypatch.setattr(linear, "evaluate", poor)
    with pytest.raises(HarnessError, match="linear on uneven gave linear_top1"):
        run(tmp_path)


def test_what_a_way_notes_is_noted_at_its_column(tmp_path, monkeypatch):
    from evals import _logistic

    monkeypatch.setattr(_logistic, "MAX_STEPS", 2)
    record, _ = run(tmp_path)
    assert "without converging" in record.numbers["linear_large"].note and record.notes == []


def test_snapshots_are_not_asked(tmp_path):
    record, read = run(tmp_path, cheap=True)
    assert record is None and read == {} and transfer.FULL_ONLY


def test_the_ways_settings_are_the_ways(tmp_path):
    config = override(transfer.recipe("nano"), parse_words(["linear.taps=2", "data=dtd,folder:x?size=8"]), "transfer")
    assert config.linear == replace(linear.recipe("nano"), taps=2) and config.data == ("dtd", "folder:x?size=8")
    assert plain(config)["linear"]["taps"] == 2
    with pytest.raises(HarnessError, match=r"did you mean 'transfer\.linear\.taps'"):
        override(transfer.recipe("nano"), parse_words(["linear.tap=2"]), "transfer")


def test_a_changed_rule_of_a_way_is_a_changed_rule_of_transfer():
    assert transfer.PROTOCOL > linear.PROTOCOL


@pytest.mark.parametrize(
    "odd", [{"data": ()}, {"data": ("dtd", "dtd")}, {"ways": ()}, {"ways": ("knn",)}, {"ways": ("linear", "linear")}]
)
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match="must"):
        transfer.Config(**odd)


def test_the_default_data_sets_are_in_the_catalogue():
    from harness.data.catalog import ENTRIES

    assert {*transfer.SUITE, *transfer.SMALL} <= set(ENTRIES)


# -- accuracies ---------------------------------------------------------------------------------------------------


def test_mean_per_class_is_scikit_learns_balanced_accuracy():
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    rng = Rng(5)
    labels = (4 * rng.uniform("labels", (300,)) ** 3).long()
    guess = torch.where(rng.uniform("right", (300,)) < 0.6, labels, rng.integers("wrong", 4, (300,)))
    assert mean_per_class(guess, labels) == pytest.approx(100 * balanced_accuracy_score(labels, guess))
    assert top1(guess, labels) == pytest.approx(100 * accuracy_score(labels, guess))
    assert abs(top1(guess, labels) - mean_per_class(guess, labels)) > 1


def test_a_class_without_test_images_counts_for_nothing():
    labels, guess = torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])
    assert mean_per_class(guess, labels) == pytest.approx(75.0)


def test_a_guess_above_all_labels_is_wrong_and_no_error():
    assert mean_per_class(torch.tensor([5, 0]), torch.tensor([1, 0])) == pytest.approx(50.0)
