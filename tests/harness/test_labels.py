"""Labels in pre-training: who gets them, that nobody else's run changes, and that records and tables say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness import store
from harness.config import parse_words
from harness.data.batches import Batches
from harness.data.dataset import load
from harness.display import Plain
from harness.errors import HarnessError
from harness.fitted import Fitted
from harness.method import Augment, Batch, Loss
from harness.pretrain_run import _known, pretrain_run
from harness.records import RunRecord
from harness.released.evaluate import _record
from harness.released.formats import Loaded
from harness.report import anytime
from harness.report.layout import footnotes
from harness.report.lines import SAW_LABELS
from harness.resolve import jobs
from harness.rng import Rng
from harness.signals import Stopper
from harness.store import RunFolder
from harness.study import build
from tests.harness.made_study import cells, made_eval, made_run, table
from tests.harness.runs import snapshots
from tests.toys import Toy, ToyLatent, ToyPart, toy_part
from tests.toys import build as make


class Notes(Toy):
    """Keeps the batches that it is given."""

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        vars(self).setdefault("given", []).append(batch)
        return super().pretrain(batch, progress, rng)


class Sees(Notes):
    sees_labels = True


class SeesLatents(ToyLatent):
    """Its part, which does not ask for labels, keeps what it is given too."""

    sees_labels = True

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        vars(self).setdefault("given", []).append(batch)
        return super().pretrain(batch, progress, rng)


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_labels_are_those_of_the_images_and_change_nothing_else(cached: bool) -> None:
    part = toy_part()
    latents = torch.arange(2 * len(part)).view(2, -1, 1).float() if cached else None
    plain, labelled = (
        Batches(part, 6, Rng(0), Augment(crop=(0.5, 1.0)), True, latents, labels=labels) for labels in (False, True)
    )
    for step in range(9):
        one, two = plain.at(step), labelled.at(step)
        assert one.labels is None
        assert torch.equal(two.labels, part.labels[labelled.positions(step)])
        same = [torch.equal(a, b) for a, b in zip(one, two, strict=True) if a is not None]
        assert same == [True]


def test_each_process_has_the_labels_of_its_own_slice() -> None:
    part = toy_part()
    whole = Batches(part, 6, Rng(0), Augment(), True, labels=True).at(3).labels
    slices = [Batches(part, 6, Rng(0), Augment(), True, share=(r, 3), labels=True).at(3).labels for r in range(3)]
    assert torch.equal(torch.stack(slices, dim=1).flatten(), whole)


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_only_an_objective_that_sees_labels_is_given_them(toy_run: Callable) -> None:
    for method, seen in ((Notes, False), (Sees, True)):
        run = toy_run("37img", method, folder=method.__name__)
        run.run()
        assert {batch.labels is not None for batch in run.method.given} == {seen}
    last = run.method.given[-1]
    assert len(last.images) == len(last.labels) == 37 % 8, "the last batch is cut alike"


def test_labels_that_nobody_reads_change_no_bit_of_a_run(toy_run: Callable) -> None:
    made = []
    for method in (Notes, Sees):
        run = toy_run("20step", method, folder=method.__name__)
        run.run()
        made.append(snapshots(run))
    assert made[0] == made[1]


def test_cached_latents_keep_their_labels_and_a_preparation_sees_none(toy_run: Callable, monkeypatch) -> None:
    prepared: list[Batch] = []
    pretrain = ToyPart.pretrain

    def noted(self: ToyPart, batch: Batch, progress: float, rng: Rng) -> Loss:
        prepared.append(batch)
        return pretrain(self, batch, progress, rng)

    monkeypatch.setattr(ToyPart, "pretrain", noted)
    run = toy_run("40step", SeesLatents)
    run.run()
    assert prepared and all(batch.labels is None for batch in prepared)
    latents = run.stage.batches.latents.flatten(0, 1)
    for batch in run.method.given[-5:]:
        places = [int((latents == row).all(dim=1).nonzero()[0]) % len(run.fit) for row in batch.latents]
        assert torch.equal(batch.labels, run.fit.labels[places])


# -- records and tables -----------------------------------------------------------------------------------------------


def test_a_record_of_before_saw_no_labels() -> None:
    old = json.loads(made_run("umd", 0).model_dump_json(exclude={"saw_labels"}))
    assert RunRecord.model_validate(old).saw_labels is False


def test_every_table_and_the_curve_mark_a_run_that_saw_labels() -> None:
    runs = [
        made_run("dit", 0, saw_labels=True),
        made_run("umd", 0),
        made_run("dit", 1, saw_labels=True, state="failed"),
    ]
    evals = [made_eval(run, name, 80.0) for run in runs[:2] for name in ("linear", "generation")]
    evals += [made_eval(run, "linear", 30.0, share=0.0) for run in runs[:2]]
    evals += [made_eval(run, "linear", 70.0, share=s, cheap=True) for run in runs[:2] for s in (0.5, 1.0)]
    for title in ("Representation", "Generation", "Wall-clock"):
        made = table(title, runs, evals)
        labels = {row.cells[0].text for s in made.sections for row in s.rows}
        assert {"dit, saw labels", "umd", "dit, saw labels, seed 1"} <= labels and "dit" not in labels
        assert SAW_LABELS in footnotes(made)
        assert SAW_LABELS not in footnotes(table(title, runs[1:2], evals))
    assert cells(table("Representation", runs, evals), "dit, untrained"), "an untrained network has seen none"
    assert {point.method for point in anytime.points(runs, evals)} == {"dit, saw labels", "umd"}


@pytest.mark.parametrize("labels", [False, True])
def test_the_runs_record_says_what_pre_training_saw(tmp_path: Path, labels: bool) -> None:
    words = parse_words(["methods=dit", "budget=2step", "train.batch_size=8", f"dit.labels={str(labels).lower()}"])
    (job,) = jobs(build(words))
    folder = RunFolder(tmp_path / job.key)
    record = pretrain_run(job, folder, None, Plain(), Stopper())
    assert record.saw_labels is labels and record.state == "finished"
    assert store.read_as(RunRecord, folder.record) == record


def test_a_method_whose_preparation_sees_labels_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    record = made_run("mae", 0)
    assert _known(record, make(ToyLatent)).saw_labels is False
    monkeypatch.setattr(ToyPart, "sees_labels", True)
    assert _known(record, make(ToyLatent)).saw_labels is True


def test_a_method_that_cannot_be_built_has_failed(tmp_path: Path) -> None:
    (job,) = jobs(build(parse_words(["methods=dit", "budget=2step", "dit.labels=true", "dit.classes=4"])))
    folder = RunFolder(tmp_path / job.key)
    with pytest.raises(HarnessError, match=r"dit\.classes=4 with labels"):
        pretrain_run(job, folder, None, Plain(), Stopper())
    record = store.read_as(RunRecord, folder.record)
    assert record.state == "failed" and record.message == "dit.classes=4 with labels"


@pytest.mark.parametrize(("classes", "saw"), [(0, False), (1, False), (1000, True)])
def test_released_weights_with_a_label_table_saw_labels(classes: int, saw: bool) -> None:
    """One class says nothing of an image."""
    method = make().eval()
    loaded = Loaded(method, "dit", True, "dit.pt", "0" * 64, "dit", classes=classes)
    data = load("digits")
    assert _record(loaded, Fitted(method, data.spec), data, "nano", None).saw_labels is saw
