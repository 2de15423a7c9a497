"""What of the tables is shown: filters, columns, sorting, mixed conditions, published numbers."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.plugins import method_plugins
from harness.records import Spec
from harness.report.layout import Cell, Column, Row, Section, Table
from harness.report.published import Published, of_methods
from harness.report.tables import build
from harness.report.view import view
from tests.harness.made_study import ENVIRONMENT, made_eval, made_run, made_study, write_study


def shown(*words, records=None, **options):
    return build(*(records or made_study()), view=view(*words, **options))


def labels(table, section: int = 0) -> list[str]:
    return [row.cells[0].text for row in table.sections[section].rows]


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_only_the_tables_asked_for():
    assert [table.title for table in shown(only="wall clock,representation")] == ["Representation", "Wall-clock"]


def test_only_the_runs_asked_for_and_the_rest_are_no_strays():
    made = shown(keep=["method=umd,lmd", "seed=0"])
    assert labels(made[1]) == ["lmd", "lmd, untrained", "umd", "umd, untrained", "raw pixels"]
    assert not any("Left out" in table.caption for table in made)


def test_only_the_columns_asked_for():
    (table,) = shown(only="representation", columns="knn,beats")
    assert [column.title for column in table.sections[0].columns] == ["method", "seeds", "kNN top-1 % ↑", "beats"]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("linear", ["umd", "mae", "lmd"]),
        ("-linear", ["lmd", "mae", "umd"]),
        ("knn", ["lmd", "umd", "mae"]),
    ],
)
def test_the_best_comes_first_with_its_untrained_network_and_references_last(sort, order):
    (table,) = shown(only="representation", sort=sort)
    found = labels(table)
    assert [name for name in found if name in order] == order and found[-1] == "raw pixels"
    assert all(found[found.index(name) + 1] == f"{name}, untrained" for name in order)


def section(*columns: Column, rows: dict[str, tuple[str, ...]]) -> Table:
    made = tuple(
        Row("method", (Cell(name), *(Cell(text, text.replace("–", "-")) for text in cells)))
        for name, cells in rows.items()
    )
    return Table("T", "", (Section("s", "", (Column("method", numeric=False), *columns), made),))


def test_ranks_are_sorted_by_their_first_place_and_pace_by_the_fastest():
    rank, pace = Column("rank by linear", "linear rank", numeric=False), Column("img/s", better="higher")
    table = section(rank, pace, rows={"a": ("3", "9"), "b": ("1–2", "12"), "c": ("1–2", "300"), "d": ("4–10", "2e3")})
    for sort, order in (("linear rank", "bcad"), ("-rank", "dabc"), ("img/s", "dcba"), ("-img/s", "abcd")):
        (shown,) = view(sort=sort).of_tables([table])
        assert "".join(row.cells[0].text for row in shown.sections[0].rows) == order
    (shown,) = view(columns="rank").of_tables([table])
    assert [column.title for column in shown.sections[0].columns] == ["method", "rank by linear"]


def test_an_evals_name_means_its_own_columns_before_heads_that_begin_like_it():
    head = Column("linear head top-1 % ↑", "linear head top-1 %", eval="attentive", better="higher")
    probe = Column("linear probe top-1 % ↑", "linear probe top-1 %", eval="linear", better="higher")
    table = section(head, probe, rows={"a": ("40", "50"), "b": ("45", "30")})
    (shown,) = view(sort="linear").of_tables([table])
    assert [row.cells[0].text for row in shown.sections[0].rows] == ["a", "b"]
    (shown,) = view(sort="linear head", columns="linear").of_tables([table])
    assert [row.cells[0].text for row in shown.sections[0].rows] == ["b", "a"]
    assert [column.title for column in shown.sections[0].columns] == ["method", "linear probe top-1 % ↑"]


def test_where_less_is_better_the_least_comes_first():
    (table,) = shown(only="generation", sort="FD")
    assert labels(table)[:3] == ["umd", "lmd", "mae"] and labels(table)[-1] == "real images"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": "representations"}, "unknown table 'representations'"),
        ({"columns": "linaer"}, "unknown column 'linaer'"),
        ({"sort": "-linaer"}, "unknown column 'linaer'"),
        ({"keep": ["metod=umd"]}, "the filter 'metod=umd'"),
        ({"keep": ["method=umdd"]}, "unknown method 'umdd'"),
        ({"mix": "devices"}, "unknown condition 'devices'"),
    ],
)
def test_what_is_not_there_is_told(options, said):
    with pytest.raises(HarnessError, match=said):
        shown(**options)


def test_the_command_line_has_them_all(tmp_path, harness):
    study = write_study(tmp_path / "s", *made_study())
    words = ["--only", "representation", "--filter", "method=umd,lmd", "--columns", "linear", "--sort", "-linear"]
    status, printed, _ = harness("table", study.path, *words, "--mix", "device", "--published")
    assert status == 0 and printed.index("| lmd") < printed.index("| umd") and "kNN top-1" not in printed


# -- what is mixed on request -----------------------------------------------------------------------------------------


def two_machines():
    runs = [made_run("umd", 0), made_run("mae", 0, environment=ENVIRONMENT.model_copy(update={"device": "Other GPU"}))]
    return runs, [made_eval(run, "linear", 90.0 + i) for i, run in enumerate(runs)]


def test_rows_of_two_machines_stand_apart_unless_they_are_mixed_and_then_each_says_its_own():
    apart = next(t for t in build(*two_machines()) if t.title == "Representation")
    assert [labels(apart, i) for i in range(2)] == [["umd"], ["mae"]]
    (mixed,) = shown(only="representation", mix="device", records=two_machines())
    assert labels(mixed) == ["mae", "umd"]
    notes = {row.cells[0].text: row.cells[0].notes for row in mixed.sections[0].rows}
    assert notes == {
        "mae": ("mixed: 1 × Other GPU, 2 CPU threads",),
        "umd": ("mixed: 1 × Example CPU, 2 CPU threads",),
    }
    assert "CPU threads" not in mixed.sections[0].conditions


def test_mixing_one_condition_mixes_no_other():
    runs, evals = two_machines()
    evals[1] = evals[1].model_copy(update={"protocol": 2})
    (made,) = shown(only="representation", mix="device", records=(runs, evals))
    assert len(made.sections) == 2
    (both,) = shown(only="representation", mix="device,protocol", records=(runs, evals))
    assert len(both.sections) == 1
    assert "mixed: linear protocol 2" in both.sections[0].rows[0].cells[0].notes


# -- published numbers ------------------------------------------------------------------------------------------------


def entry(**changes) -> Published:
    about = {"model": "Big", "dataset": "Digits", "metric": "linear top-1 %", "value": 99.0, "protocol": "as ours"}
    where = {"data": "digits", "px": 8, "number": "value", "n": 360}
    return Published(**{**about, "source": "paper", **where, **changes})


def beside(monkeypatch, *entries: Published):
    monkeypatch.setattr("harness.report.tables.of_methods", lambda names: {"umd": list(entries)})
    runs = [made_run("umd", 0, spec=Spec(channels=1, size=8, classes=10))]
    evals = [made_eval(runs[0], "linear", 91.0), made_eval(runs[0], "generation", 8.0)]
    return shown(published=True, records=(runs, evals))


def test_a_comparable_number_has_a_row_of_its_own_that_is_no_rival(monkeypatch):
    table = next(t for t in beside(monkeypatch, entry()) if t.title == "Representation")
    last = table.sections[0].rows[-1]
    assert (last.kind, last.cells[0].text, last.cells[2].text) == ("published", "umd: Big, published", "99")
    assert last.cells[0].notes == ("published, not measured here: as ours (paper)",) and not last.cells[2].best
    assert not any("published" in row.kind for t in build(*made_study()) for s in t.sections for row in s.rows)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"apart": "its tap is chosen on the test split"}, "its tap is chosen on the test split"),
        ({"data": "cifar10"}, "on Digits, not digits"),
        ({"px": 32}, "at 32 px, not 8"),
        ({"number": "knn_top1"}, "knn_top1 is not measured here"),
        ({"n": 10_000}, "of 10,000 test images or samples, not 360"),
    ],
)
def test_one_that_is_not_is_refused_with_the_reason(monkeypatch, changes, why):
    table = next(t for t in beside(monkeypatch, entry(**changes)) if t.title == "Representation")
    assert table.sections[0].remarks[1:] == (f"Not beside these: umd, Big, linear top-1 % 99 (paper): {why}.",)
    assert all(row.kind != "published" for row in table.sections[0].rows)


def test_a_distance_of_another_network_is_no_fid(monkeypatch):
    fid = entry(metric="FID", n=1024)
    table = next(t for t in beside(monkeypatch, fid) if t.title == "Generation")
    assert "by FID, not FD (small classifier, digits)" in table.sections[0].remarks[-1]


def test_every_card_says_of_every_number_what_it_is_comparable_with():
    found = of_methods([*method_plugins(), "not-installed"])
    assert sum(map(len, found.values())) > 20 and "not-installed" not in found
    for entries in found.values():
        for one in entries:
            assert isinstance(one, Published) and (one.apart or one.number)


def test_a_card_that_does_not_say_it_is_told(monkeypatch):
    bare = {"model": "m", "dataset": "d", "metric": "FID", "value": 1.0, "protocol": "p", "source": "s"}
    for published, said in (
        ([bare], "does not say what it is comparable with"),
        ([{**bare, "x": 1}], "unexpected keyword"),
    ):
        monkeypatch.setattr("harness.report.published.card", lambda name, published=published: {"published": published})
        with pytest.raises(HarnessError, match=said):
            of_methods(["mae"])
