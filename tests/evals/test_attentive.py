"""Heads trained with labels: what they find, what they may see, how they are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from evals import _heads, attentive, linear
from harness.data.dataset import Part
from harness.errors import HarnessError
from harness.evaluation import Choice, Subject, evaluate, verbs
from harness.evaluation.features import CHUNK
from harness.lacking import applies
from harness.method import Method, Tap
from harness.rng import Rng
from tests.evals.kit import CLASSES, SIZE, Toy, ToyData, context, toy_data
from tests.toys import CLOCK

WHO = Subject(reference="toy")
SMALL = attentive.Config(
    images=120,
    select_images=45,
    epochs=2,
    batch=30,
    feedback_images=120,
    feedback_epochs=3,
    width=16,
    depth=1,
    heads=2,
    side=4,
    seeds=1,
)


class Places(Method):
    """Two layers at two noise levels, whose maps say by the place of a spot what their mean does not say at all."""

    def taps(self) -> list[Tap]:
        return [Tap("cls"), Tap("block2"), Tap("block2", 5), Tap("block1"), Tap("block1", 5)]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        noise = taps[0].noise or 0
        seen = images + 0.02 * noise * rng.normal("noise", images.shape)
        columns = seen.mean(dim=2)  # [B, 1, W]; a class is the brightest pair of columns
        spot = columns.unfold(2, 2, 2).mean(dim=3).argmax(dim=2)[:, 0]  # 0 to 3
        maps = torch.zeros(len(images), 2, 4, 4)
        maps[torch.arange(len(images)), 0, 1, spot] = 1.0
        maps[:, 1] = 0.5
        return [maps if dense else maps.mean(dim=(2, 3)) for _ in taps]


class Fed(Places):
    """Offers a head of its own, which says in which mode and with which draws it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, float]] = []

    def feedback_head(self, classes: int, measures) -> nn.Module:
        return FedHead(classes, self.seen)


class FedHead(nn.Module):
    def __init__(self, classes: int, seen: list) -> None:
        super().__init__()
        self.norm, self.classify, self._seen = nn.BatchNorm2d(1), nn.Linear(SIZE, classes), seen

    def forward(self, images: Tensor, rng: Rng) -> Tensor:
        self._seen.append((self.training, rng.uniform("draw", (1,)).item()))
        return self.classify(self.norm(images).mean(dim=2)[:, 0])


def record(folder, method: Method | None = None, data: ToyData | None = None, config=SMALL):
    return evaluate("attentive", context(folder, method or Places(), data), config, subject=WHO)


# -- what is found ----------------------------------------------------------------------------------------------------


def test_a_head_finds_what_a_linear_probe_cannot(tmp_path):
    where = context(tmp_path, Places(), toy_data(noise=20.0))
    probe = evaluate("linear", where, linear.Config(), subject=WHO).numbers["linear_top1"]
    longer = dataclasses.replace(SMALL, images=300, epochs=6, batch=15)
    heads = evaluate("attentive", where, longer, subject=WHO).numbers
    assert probe.value < 100 / CLASSES + 10
    assert heads["attention_top1"].value > 95 and heads["fusion_top1"].value > 100 / CLASSES + 25
    assert set(heads) == {"linear_top1", "attention_top1", "fusion_top1"} and heads["fusion_top1"].n == 120
    assert "label-trained" in heads["fusion_top1"].note


def test_every_seed_is_another_training_at_the_chosen_rate(tmp_path):
    first = dataclasses.replace(SMALL, images=300, epochs=3, batch=15)
    one = record(tmp_path / "one", config=first)
    three = record(tmp_path / "three", config=dataclasses.replace(first, seeds=3))
    assert one.chosen == three.chosen and one.trials == three.trials  # nothing is chosen on the others
    for name, number in three.numbers.items():
        assert number.values[0] == one.numbers[name].value and len(number.values) == 3
        assert number.value == pytest.approx(sum(number.values) / 3)
    spread = [number for number in three.numbers.values() if len(set(number.values)) > 1]
    assert spread and all(number.half > 0 for number in spread)


def test_the_record_says_what_was_tried_and_how_large_the_heads_are(tmp_path):
    found = record(tmp_path)
    assert found.trials == 4 + 3 + 3 + 3
    assert found.chosen["fusion_taps"] == [["block1", "block2"], ["block1@5", "block2@5"]]
    assert found.chosen["probe_tap"] == "cls" and found.chosen["tap"] == "block2"  # tables show what the head reads
    for name in ("attention", "fusion"):
        about = found.chosen[name]
        assert list(about["rate_scores"]) == ["0.001", "0.003", "0.01"]
        assert about["rate_scores"][f"{about['rate']:g}"] == max(about["rate_scores"].values())
    # Per layer: the map's norm, 2 x 4 x 4 twice, and the convolution.
    assert found.chosen["fusion"]["parameters"] - found.chosen["attention"]["parameters"] == 64 + 48 + 16 * CLASSES


def test_the_feedback_head_is_trained_where_there_is_one(tmp_path):
    method = Fed()
    found = record(tmp_path, method, toy_data(noise=20.0))
    number = found.numbers["feedback_top1"]
    assert number.n == 120 and "120 images of train for 3 epochs" in number.note and number.value > 60
    assert found.trials == 4 + 3 + 3 + 3 + 3
    # One batch to measure the cost, three trainings of 3 epochs of 4 batches, each scored on select once, then the test
    # part: never trained in eval mode, never scored in train mode.
    assert [mode for mode, _ in method.seen] == [True] + 3 * (12 * [True] + [False]) + [False]
    trained = [draw for mode, draw in method.seen if mode][1:]
    assert (
        trained[:12] == trained[12:24] and len(set(trained)) == 12
    )  # fresh noise in every step, the same for each rate


# -- what may be seen -------------------------------------------------------------------------------------------------


def test_poisoned_test_labels_change_no_choice(tmp_path):
    data, poisoned = toy_data(), toy_data()
    poisoned.test = Part(data.test.images, (data.test.labels + 1) % CLASSES, data.test.index)
    one, two = record(tmp_path / "a", Fed(), data), record(tmp_path / "b", Fed(), poisoned)
    assert one.chosen == two.chosen and one.trials == two.trials
    assert one.numbers["feedback_top1"].value > two.numbers["feedback_top1"].value + 20


def test_the_test_part_is_opened_once_and_after_every_choice(tmp_path, monkeypatch):
    data, order = toy_data(), []
    best_of, open_test = _heads.best_of, data.open_test
    monkeypatch.setattr(_heads, "best_of", lambda *args: order.append("choice") or best_of(*args))
    monkeypatch.setattr(data, "open_test", lambda by: order.append("test") or open_test(by))
    found = record(tmp_path, Fed(), data)
    assert order == ["choice"] * 4 + ["test"] and len(found.test_opened) == 1


def test_equal_input_gives_equal_bits(tmp_path):
    one, two = (record(tmp_path / name, Fed()).model_dump(exclude={"ledger"}) for name in "ab")
    assert one == two


def test_the_heads_own_training_is_evaluation_and_the_rest_is_choosing(tmp_path, monkeypatch):
    import harness.ledger

    train = _heads.train

    def takes_a_second(*args) -> nn.Module:
        CLOCK.now += 1.0
        return train(*args)

    for module in (_heads, harness.ledger):
        monkeypatch.setattr(module, "time", CLOCK)
    monkeypatch.setattr(_heads, "train", takes_a_second)
    ledger = record(tmp_path, Fed()).ledger
    assert ledger == {"select": 8.0, "evaluate": 4.0, "sample": 0.0}, "four heads at three rates"


def test_the_record_has_what_training_a_head_cost(tmp_path):
    found = record(tmp_path, Fed())
    n, epochs, batch = 120, 3, 30
    assert found.chosen["feedback"]["images"] == n
    # Its one product: forward, back to its weights, and back to what it is given, as the norm before it learns too.
    assert found.chosen["feedback"]["fit_flop"] == 3 * (2 * batch * SIZE * CLASSES) * epochs * (n // batch)
    assert found.chosen["fusion"]["fit_flop"] > found.chosen["attention"]["fit_flop"] > 0


def test_the_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    record(tmp_path, Fed())
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_asked_of_whole_evaluations_only():
    asked = {
        (share, cheap): applies("attentive", verbs(Places), share, cheap) for share in (0, 0.5, 1) for cheap in (0, 1)
    }
    assert [place for place, yes in asked.items() if yes] == [(0, 0), (0.5, 0), (1, 0)]


def test_snapshots_and_methods_without_maps_have_no_record(tmp_path):
    assert evaluate("attentive", context(tmp_path / "a", Places(), cheap=True), SMALL, subject=WHO) is None

    class Vectors(Toy):
        def maps(self) -> list[Tap]:
            return []

    assert evaluate("attentive", context(tmp_path / "b", Vectors()), SMALL, subject=WHO) is None


# -- maps -------------------------------------------------------------------------------------------------------------


class Wide(Method):
    """Maps of 8 x 8, noise and all."""

    def taps(self) -> list[Tap]:
        return [Tap("a", 3), Tap("b", 3)]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        maps = images + rng.normal("noise", images.shape)
        return [maps if dense else maps.mean(dim=(2, 3)) for _ in taps]


def test_maps_are_those_of_the_features_averaged_down(tmp_path):
    where, (tap, other) = context(tmp_path, Wide()), Wide().taps()
    chunks = list(where.maps([tap], "fit", 4, limit=280))
    assert [m[tap].shape for m in chunks] == [(CHUNK, 1, 4, 4), (24, 1, 4, 4)] and chunks[0][tap].dtype == torch.half
    pooled = torch.cat([m[tap] for m in chunks]).float().mean(dim=(2, 3))
    torch.testing.assert_close(pooled, where.features([tap], "fit", 280)[tap], atol=2e-3, rtol=0)
    both = next(where.maps([tap, other], "fit", 16))
    assert both[tap].shape == (CHUNK, 1, 8, 8)  # never enlarged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m * 1e6, "half precision"),
        (lambda m: m / 0, "not finite"),
        (lambda m: m[..., :3], "S, S"),
        (lambda m: m.mean(dim=3), "S, S"),
    ],
)
def test_maps_that_cannot_be_kept_are_an_error(tmp_path, change, message):
    class Broken(Wide):
        def features(self, images, taps, rng, dense=False):
            return [change(m) for m in super().features(images, taps, rng, dense)]

    with pytest.raises(HarnessError, match=message):
        next(context(tmp_path, Broken()).maps(Wide().taps()[:1], "fit", 8))


def test_maps_beyond_the_memory_are_refused(tmp_path):
    with pytest.raises(HarnessError, match=r"the maps of 120 images at 4 tap\(s\) take 3\.07e-05 GB"):
        record(tmp_path, config=dataclasses.replace(SMALL, memory_gb=1e-5))


def test_where_the_chosen_tap_has_no_map_the_best_that_has_one_is_read():
    cls, a, b = Tap("cls"), Tap("a"), Tap("b")
    scores = {"cls": 9.0, "a": 3.0, "b": 3.0}
    assert attentive.mapped_tap(Choice(cls, 3, scores), [b, a]) == b
    assert attentive.mapped_tap(Choice(cls, 3, scores | {"a": 4.0}), [b, a]) == a
    assert attentive.mapped_tap(Choice(a, 3, scores), [b, a]) == a
    assert attentive.mapped_tap(Choice(cls, 1, {"cls": 9.0}), [b, a]) == b


def test_what_fusion_reads_by_default():
    class Many(Method):
        def taps(self) -> list[Tap]:
            first = [Tap("cls"), Tap("block6"), Tap("block6", 40), Tap("block12"), Tap("block12", 40)]
            return [*first, *(Tap(f"block{b}", noise) for b in (1, 2) for noise in (10, 80))]

    listed = [[str(tap) for tap in level] for level in Many().fusion()]
    assert listed == [["block6", "block12"], ["block1@10"], ["block6@40", "block12@40"]]


# -- training ---------------------------------------------------------------------------------------------------------


def test_the_recipes():
    assert _heads.RECIPES["repo"] == _heads.Recipe("sgd", (1e-3, 1e-2, 5e-2), "steps")
    assert _heads.RECIPES["paper"] == _heads.Recipe("adam", (1e-4, 3e-4, 1e-3), "steps")
    assert len({len(recipe.rates) for recipe in _heads.RECIPES.values()}) == 1
    assert [_heads.course("steps", step, 28) for step in (0, 6, 7, 27)] == pytest.approx([1, 1, 0.1, 1e-3])
    cosine = [_heads.course("cosine", step, 20) for step in range(20)]
    assert cosine[:3] == [0.5, 1.0, 1.0] and sorted(cosine[2:], reverse=True) == cosine[2:] and cosine[-1] < 0.02


@pytest.mark.parametrize("name", _heads.RECIPES)
def test_every_recipe_can_be_asked_for(tmp_path, name):
    found = record(tmp_path, config=dataclasses.replace(SMALL, recipe=name, epochs=1))
    assert list(found.chosen["fusion"]["rate_scores"]) == [f"{rate:g}" for rate in _heads.RECIPES[name].rates]
    assert f"recipe {name}" in found.numbers["fusion_top1"].note


def test_plain_sgd_is_plain():
    optimizer = _heads._optimizer(nn.Linear(2, 2), _heads.RECIPES["repo"], 1e-2)
    groups = [(group["momentum"], group["weight_decay"], group["lr"]) for group in optimizer.param_groups]
    assert groups == [(0, 0.0, 1e-2)] * 2


def test_sizes_have_settings():
    assert [attentive.recipe(size).width for size in ("nano", "ti", "s", "b", "l", "xl")] == [
        64,
        128,
        256,
        512,
        1024,
        1024,
    ]


@pytest.mark.parametrize("odd", [{"epochs": 0}, {"width": 10, "heads": 4}, {"side": -1}, {"memory_gb": 0}])
def test_odd_settings_are_refused(odd):
    with pytest.raises(ValueError, match="must"):
        attentive.Config(**odd)
