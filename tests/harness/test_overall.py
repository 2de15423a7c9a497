"""The best of a column, and the overall table: marked and ranked only as far as chance can be told away."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.hits import packed
from harness.records import Number
from harness.report.best import REMARK
from harness.report.lines import SAW_LABELS
from harness.report.render import render
from harness.report.tables import build
from tests.harness.made_study import made_eval, made_run, made_study, table

N = 400


def number(share: float, seed: int, own: int = 0, hits: bool = True) -> Number:
    """An accuracy whose guesses follow one difficulty of the images, so that methods are paired."""
    difficulty = np.random.default_rng(0).normal(size=N)
    luck = np.random.default_rng(1 + seed + 10 * own).normal(size=N) * 0.3
    right = torch.tensor(np.argsort(np.argsort(difficulty + luck)) < share * N)
    value = 100 * right.double().mean().item()
    about = {"title": "linear top-1 %", "table": "representation", "better": "higher", "n": N}
    return Number(value=value, **about, hits=packed([right]) if hits else None)


def records(shares: dict[str, float], seeds: int = 3, hits: bool = True, **changes):
    runs, evals = [], []
    for own, (method, share) in enumerate(shares.items()):
        for seed in range(seeds):
            runs.append(made_run(method, seed, **changes.get(method, {})))
            evals.append(
                made_eval(runs[-1], "linear", 0.0, numbers={"value": number(share + seed / N, seed, own, hits)})
            )
    return runs, evals


def representation(runs, evals):
    (section,) = table("Representation", runs, evals).sections
    return section


def marked(runs, evals) -> list[str]:
    section = representation(runs, evals)
    return [row.cells[0].text for row in section.rows if any(cell.best for cell in row.cells)]


def test_the_best_is_marked_and_its_note_names_the_next_the_gap_and_the_test():
    section = representation(*records({"a": 0.5, "b": 0.6, "c": 0.4}))
    assert marked(*records({"a": 0.5, "b": 0.6, "c": 0.4})) == ["b"]
    cell = next(cell for row in section.rows for cell in row.cells if cell.best)
    assert (
        cell.notes[0].startswith("ahead of a by 10.0 (") and "paired over test images (the bootstrap's" in cell.notes[0]
    )
    assert REMARK in section.remarks


def test_nothing_is_marked_where_the_first_two_cannot_be_told_apart():
    section = representation(*records({"a": 0.6, "b": 0.6025, "c": 0.4}))
    assert not any(cell.best for row in section.rows for cell in row.cells) and REMARK not in section.remarks


def test_one_seed_without_images_says_nothing_and_with_them_speaks_of_these_weights():
    assert marked(*records({"a": 0.5, "b": 0.6}, seeds=1, hits=False)) == []
    assert marked(*records({"a": 0.5, "b": 0.6}, seeds=1)) == ["b"]


def test_what_saw_labels_is_in_no_race_with_what_did_not():
    runs, evals = records({"a": 0.5, "b": 0.7, "c": 0.4}, b={"saw_labels": True})
    assert marked(runs, evals) == ["a"]
    overall = table("Overall", runs, evals).sections[0]
    ranks = {row.cells[0].text: row.cells[3].text for row in overall.rows}
    assert ranks == {"a": "1", "c": "2", "b, saw labels": "—"}
    assert SAW_LABELS in next(row.cells[0].notes for row in overall.rows if "saw labels" in row.cells[0].text)


def test_one_that_is_no_better_than_its_floor_is_not_shown_as_the_best():
    runs, evals = records({"a": 0.5, "b": 0.6})
    floor = made_eval(None, "linear", 0.0, reference="raw pixels", chosen={}, numbers={"value": number(0.7, 0)})
    assert marked(runs, [*evals, floor]) == []


@pytest.mark.parametrize(
    ("form", "said"), [("md", "**60.2"), ("tex", "\\textbf{60.2"), ("html", 'class="number best">60.2')]
)
def test_every_format_shows_it(form, said):
    assert said in render(build(*records({"a": 0.5, "b": 0.6})), form)


def test_a_method_without_a_number_at_one_seed_does_not_hide_who_is_ahead():
    runs, evals = records({"a": 0.5, "b": 0.4, "c": 0.7, "d": 0.6}, hits=False)
    first = next(i for i, record in enumerate(evals) if record.cell.method == "c")
    lost = evals[first].numbers["value"].model_copy(update={"value": float("nan")})
    evals[first] = evals[first].model_copy(update={"numbers": {"value": lost}})
    assert marked(runs, evals) == ["d"]
    (section,) = table("Overall", runs, evals).sections
    assert {row.cells[0].text: row.cells[3].text for row in section.rows} == {"a": "2", "b": "3", "c": "—", "d": "1"}


def test_the_first_is_not_marked_where_the_seeds_that_both_have_put_another_one_ahead():
    runs, evals = records({"a": 0.5, "b": 0.5}, hits=False)
    values = {("a", 0): 40.0, ("a", 1): 40.2, ("a", 2): 90.0, ("b", 0): 45.0, ("b", 1): 45.1}
    kept = [
        (run, record) for run, record in zip(runs, evals, strict=True) if (run.cell.method, run.cell.seed) in values
    ]
    runs = [run for run, _ in kept]
    evals = [
        record.model_copy(update={"numbers": {"value": record.numbers["value"].model_copy(update={"value": v})}})
        for run, record in kept
        for v in [values[run.cell.method, run.cell.seed]]
    ]
    assert marked(runs, evals) == []
    (section,) = table("Overall", runs, evals).sections
    assert {row.cells[0].text: row.cells[3].text for row in section.rows} == {"a": "2", "b": "1"}


def test_ranks_are_intervals_and_rows_are_in_their_order():
    made = table("Overall", *records({"a": 0.5, "b": 0.6, "c": 0.6025, "d": 0.4}))
    (section,) = made.sections
    found = [(row.cells[0].text, row.cells[3].text, row.cells[4].text) for row in section.rows]
    assert found == [("b", "1–2", "1.50"), ("c", "1–2", "1.50"), ("a", "3", "3.00"), ("d", "4", "4.00")]


def test_several_sections_have_a_last_one_with_the_mean_of_their_ranks():
    runs, evals = records({"a": 0.5, "b": 0.6})
    more, others = records({"a": 0.7, "b": 0.4})
    for made in (more, others):
        for i, record in enumerate(made):
            cell = record.cell.model_copy(update={"dataset": "other"})
            key = record.key + "-other"
            extra = {} if made is more else {"dataset": "other"}
            made[i] = record.model_copy(update={"cell": cell, "key": key, **extra})
    sections = table("Overall", [*runs, *more], [*evals, *others]).sections
    assert [section.heading for section in sections][-1] == "mean rank in every section"
    assert [[cell.text for cell in row.cells] for row in sections[-1].rows] == [
        ["a", "2.00", "1.00", "1.50"],
        ["b", "1.00", "2.00", "1.50"],
    ]


def test_rows_that_read_one_pretraining_are_named():
    runs, evals = records({"a": 0.5, "b": 0.6, "c": 0.6, "d": 0.4}, seeds=2)
    shared = {run.key: run.key.replace("c-", "b-") for run in runs if run.cell.method == "c"}
    runs = [run.model_copy(update={"shared": shared.get(run.key)}) for run in runs]
    (section,) = table("Overall", runs, evals).sections
    assert section.remarks == ("b and c read one pre-training, and tie where they read it alike.",)


def test_a_single_method_has_no_rank_and_no_overall_table():
    assert next(t.title for t in build(*records({"a": 0.5}))) == "Representation"
    assert "Overall" in [t.title for t in build(*made_study())]
