"""The page of `harness report`: what it holds, that it asks for nothing, and that it works in a real browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from harness.bench.browser import Tab, browser
from harness.bench.many_records import write_study as write_many
from harness.page import charts
from harness.page.command import content, report
from harness.page.pictures import album
from harness.page.render import page
from harness.records import EvalRecord, RunRecord, Spend
from harness.report.tables import build
from harness.report.view import View
from harness.store import Study
from tests.harness.made_study import made_eval, made_run, made_study, write_study

BAD = """</script><script>document.title = "broken"</script><img src=x onerror="document.title='broken'"> \0 "&amp;"""


def studied(folder: Path, runs: list[RunRecord], evals: list[EvalRecord]) -> Study:
    """A study with its pictures, of one colour for each run."""
    study = write_study(folder, runs, evals)
    for i, record in enumerate(e for e in evals if e.pictures):
        Image.new("RGB", (8, 8), (20 * i, 90, 200)).save(study.holding(record) / record.pictures[0])
    return study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    runs, evals = made_study()
    timed = {s: Spend(device_s=59.8 * float(s), flop=6e12 * float(s), img=48_000 * float(s)) for s in runs[0].snapshots}
    return studied(tmp_path / "study", [run.model_copy(update={"snapshots": timed}) for run in runs], evals)


@pytest.fixture
def written(study: Study) -> Path:
    """The page alone, without its plots."""
    place = study.path / "report"
    place.mkdir()
    (place / "index.html").write_text(page(content(study, place)), encoding="utf-8")
    return place / "index.html"


@pytest.fixture(scope="module")
def tab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_report_writes_the_page_and_its_plots_and_the_same_bytes_again(study: Study) -> None:
    first = {path.name: path.read_bytes() for path in report(study, study.path / "report")}
    again = {path.name: path.read_bytes() for path in report(study, study.path / "report")}
    assert first == again
    names = {f"{name}.{form}" for name in ("recognition-generation", "ledger") for form in ("png", "svg")}
    names |= {f"anytime-{axis}.{form}" for axis in ("gpu-h", "flop", "img", "share") for form in ("png", "svg")}
    assert set(first) == names | {"index.html"}
    with Image.open(io.BytesIO(first["ledger.png"])) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10  # something is drawn


def test_the_policy_lets_the_pages_own_script_and_style_in_and_nothing_else(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for kind, element in (("style", "style"), ("script", "script")):
        body = re.search(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)[1]
        assert f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" in policy, kind
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_every_number_leads_to_the_records_it_was_read_from(written: Path, study: Study) -> None:
    text = written.read_text(encoding="utf-8")
    records = data_of(text)["records"]
    cell = re.search(r'data-records="([\d ]+)">92\.0 ± [\d.]+</a>', text)  # the mean of UMD's 91.4 and 92.6
    named = [records[int(i)] for i in cell[1].split()]
    assert [record["title"] for record in named] == ["umd, seed 0: linear", "umd, seed 1: linear"]
    for record in records:
        assert (written.parent / record["href"]).resolve().is_file(), record["href"]
    assert ["linear top-1 % (higher is better)", "91.4; n = 360"] in named[0]["facts"]


def test_what_records_say_is_text(tmp_path: Path) -> None:
    run = made_run("umd", 0, notes=[BAD], message=BAD)
    evals = [made_eval(run, "linear", 90.0, notes=[BAD]), made_eval(run, "generation", 5.0, notes=[BAD])]
    study = studied(tmp_path / "study", [run], evals)
    text = page(content(study, study.path / "report"))
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert "<img src=x" not in text
    facts = dict(data_of(text)["records"][0]["facts"])
    assert facts["notes"] == BAD  # whole, and as it was


def test_the_front_has_whom_no_other_beats() -> None:
    spots = {"a": (50, 4), "b": (49, 5), "c": (40, 3), "d": (50, 6), "e": (40, 3)}
    made = tuple(charts.Spot(name, x, None, y, None) for name, (x, y) in spots.items())
    trade = charts.Trade((), "", "linear", "FD", "higher", "lower", made)
    assert trade.front == ("c", "e", "a")  # b, d are worse than a on one axis and no better on the other


def test_recognition_stands_against_generation_of_the_same_runs() -> None:
    runs, evals = made_study()
    found = charts.trades(build(runs, evals))
    assert {(trade.x, trade.y) for trade in found} == {
        ("linear top-1 %", "FD (small classifier, digits)"), ("kNN top-1 %", "FD (small classifier, digits)"),
    }  # fmt: skip
    umd = next(spot for spot in found[0].spots if spot.name == "umd")
    assert (umd.x, umd.y) == (92.0, 8.25) and umd.x_half > 0
    assert {spot.name for spot in found[0].spots} == {"umd", "lmd", "mae"}  # no untrained network, no reference


def test_no_spot_joins_what_different_runs_reached() -> None:
    """A method's recognition on one machine against its samples from another is no method's."""
    runs, evals = made_study()
    other = runs[0].environment.model_copy(update={"device": "Other CPU"})
    moved = {run.key for run in runs if run.cell.method == "umd" and run.cell.seed == 0}
    runs = [run.model_copy(update={"environment": other}) if run.key in moved else run for run in runs]
    keys = {(trade.heading, spot.name) for trade in charts.trades(build(runs, evals)) for spot in trade.spots}
    assert {name for heading, name in keys if "Other CPU" in heading} <= {"umd"}
    assert not any(";" in heading for heading, _ in keys)


def test_what_saw_labels_is_on_no_front() -> None:
    runs, evals = made_study()
    runs = [run.model_copy(update={"saw_labels": run.cell.method == "umd"}) for run in runs]
    assert {spot.name for trade in charts.trades(build(runs, evals)) for spot in trade.spots} == {"lmd", "mae"}


def test_runs_of_other_settings_are_lines_of_their_own() -> None:
    runs = [made_run("umd", 0), made_run("umd", 1, config={"mask_ratio": 0.5})]
    evals = [made_eval(run, "linear", 80 + 9 * i, share=0.5, cheap=True) for i, run in enumerate(runs)]
    from harness.report import anytime

    (panel,) = charts.panels(anytime.points(runs, evals))
    assert {name: line[0][1] for name, line in panel.lines["share"].items()} == {
        "umd (umd.mask_ratio=0.75)": 80, "umd (umd.mask_ratio=0.5)": 89,
    }  # fmt: skip


def test_pictures_are_held_once_and_up_to_a_size(study: Study) -> None:
    tables = build(*study.asked_for())
    held = album(tables, study.path)
    assert [picture.who for picture in held.shown if picture.kind == "samples"] == [("lmd",), ("mae",), ("umd",)]
    assert held.left == 1  # UMD's second seed
    samples = {run: study.run(run).evals(1.0) / "samples.png" for run in ("umd-0", "lmd-0", "mae-0")}
    samples["lmd-0"].write_bytes(samples["mae-0"].read_bytes())
    assert ("lmd", "mae") in [picture.who for picture in album(tables, study.path).shown]
    samples["umd-0"].unlink()
    assert album(tables, study.path).missing == 1
    small = album(tables, study.path, most=100)
    assert len(small.shown) < len(held.shown) and small.left > held.left


def test_a_filter_leaves_runs_out(study: Study) -> None:
    made = content(study, study.path / "report", View(keep={"method": ("umd",)}))
    assert "2 of 2 runs finished: umd; 2 seeds." in made.summary
    assert "lmd" not in page(made)


ALL = "[...document.querySelectorAll('{}')]"
ROWS = ALL.format("#table-2 tbody tr") + ".filter(row => !row.hidden).map(row => row.cells[0].textContent.trim())"
NUMBERS = ALL.format("#table-2 tbody tr.method") + ".map(row => parseFloat(row.cells[{}].textContent))"
HEADS = ALL.format("#table-2 thead button")


@pytest.mark.slow
def test_it_sorts_filters_and_draws_without_a_word_on_the_console(written: Path, tab: Tab) -> None:
    tab.open(written)
    titles = tab.js(ALL.format("section.table > h2") + ".map(head => head.textContent)")
    assert titles == ["Overall", "Representation", "Generation", "Wall-clock"]
    j = tab.js(f"{HEADS}.findIndex(head => head.textContent.startsWith('kNN'))")
    head = f"{HEADS}[{j}]"
    tab.js(f"{head}.click()")
    best_first = tab.js(NUMBERS.format(j))
    assert best_first == [95.0, 93.2, 89.9]
    kinds = tab.js(ALL.format("#table-2 tbody tr") + ".map(row => row.className)")
    assert [b for a, b in pairwise(kinds) if a == "method"] == ["untrained"] * 3 and kinds[-1] == "reference"
    tab.js(f"{head}.click()")
    assert tab.js(NUMBERS.format(j)) == best_first[::-1]
    assert tab.js(f"{head}.closest('th').getAttribute('aria-sort')") == "ascending"

    tab.js("words.value = 'umd, lmd'; words.dispatchEvent(new Event('input', {bubbles: true}))")
    assert {name[:3] for name in tab.js(ROWS)} == {"umd", "lmd", "raw"}
    tab.js("untrained.click()")
    assert not any("untrained" in name for name in tab.js(ROWS))
    assert re.fullmatch(r"\d+ of \d+ rows", tab.js("count.textContent"))
    drawn = tab.js(
        "[...document.querySelectorAll('#trade .plot g.mark, #trade .plot g[role=img]')].map(g => g.ariaLabel)"
    )
    assert len(drawn) == 2 and drawn[0].startswith("lmd: linear top-1 % 88.2")
    axes = tab.js(ALL.format("#anytime-axis option") + ".map(option => option.textContent)")
    assert axes == ["device time", "FLOP", "images", "share of the budget"]
    for axis in axes:
        tab.js(f"document.querySelector('#anytime-axis').value = '{axis}'")
        tab.js("document.querySelector('#anytime-axis').dispatchEvent(new Event('change', {bubbles: true}))")
        assert tab.js("document.querySelectorAll('#anytime polyline.line').length") == 2
    assert tab.js("document.querySelectorAll('#ledger rect.bar').length") > 0
    shown = ALL.format("#samples figure:not([hidden]) img")
    widths = (
        f"Promise.all({shown}.map(image => (image.loading = 'eager', image.decode().then(() => image.naturalWidth))))"
    )
    assert tab.js(widths) == [8, 8]
    assert tab.said == []
    assert tab.asked and all(address.startswith(("file:", "data:")) for address in tab.asked)
    assert len([address for address in tab.asked if address.startswith("file:")]) == 1


@pytest.mark.slow
def test_the_keyboard_opens_a_cells_records_and_closes_them(written: Path, tab: Tab) -> None:
    tab.open(written)
    tab.js("document.querySelector('#table-2 td a.cell').focus()")
    tab.press("Enter", 13)
    assert tab.js("details.open")
    assert re.fullmatch(r"\w+: \d records?", tab.js("document.querySelector('#details-title').textContent"))
    assert tab.js("document.querySelector('#facts a').getAttribute('href')").startswith("../runs/")
    tab.press("Escape", 27)
    assert not tab.js("details.open")
    tab.js("document.querySelector('#table-2 thead button').focus()")
    tab.press("Enter", 13)
    assert tab.js("document.querySelector('#table-2 thead th').hasAttribute('aria-sort')")


@pytest.mark.slow
def test_a_phone_and_the_dark(written: Path, tab: Tab) -> None:
    tab.open(written, width=390, height=844, dark=True)
    assert tab.js("document.documentElement.scrollWidth") <= 390  # tables scroll inside themselves
    paper = "getComputedStyle(document.body).backgroundColor"
    assert tab.js(paper) == "rgb(20, 22, 26)"
    tab.js("theme.click()")
    assert tab.js(paper) == "rgb(255, 255, 255)" and tab.js("theme.textContent") == "Dark"
    assert tab.js("document.querySelector('#trade svg').getBoundingClientRect().right") <= 390


@pytest.mark.slow
def test_what_records_say_does_not_run(tmp_path: Path, tab: Tab) -> None:
    run = made_run("umd", 0, notes=[BAD], message=BAD)
    study = studied(tmp_path / "study", [run], [made_eval(run, "linear", 90.0, notes=[BAD])])
    place = tmp_path / "index.html"
    place.write_text(page(content(study, tmp_path)), encoding="utf-8")
    tab.open(place)
    tab.js("document.querySelector('a.cell').click()")
    assert tab.js("document.title") == "study"
    assert tab.js("document.querySelectorAll('#facts img, #facts script').length") == 0


@pytest.mark.slow
def test_a_thousand_runs_are_there_and_answer(tmp_path: Path, tab: Tab) -> None:
    study, _ = write_many(tmp_path / "many", 18_000)
    assert len(study.asked().keys) >= 1000
    place = tmp_path / "index.html"
    place.write_text(page(content(study, tmp_path)), encoding="utf-8")
    tab.said.clear()
    tab.open(place)
    assert tab.js("document.querySelectorAll('section.rows tbody tr').length") > 1000
    tab.js("document.querySelector('select[data-word]').value = 'cifar100'")
    tab.js("document.querySelector('#filter').dispatchEvent(new Event('input'))")
    assert 0 < tab.js("document.querySelectorAll('section.rows:not([hidden])').length") < 100
    assert tab.said == []
