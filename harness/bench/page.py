"""How long the page of `harness report` takes to open in a real browser: of a study of many runs, and of one of few.

The two are opened in turn, in one tab that is emptied before each. A first round, which fills caches, is not counted.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from harness.bench.browser import Tab, browser, chromium
from harness.bench.many_records import write_runs
from harness.bench.rounds import Spread, interleave, ratios, timed
from harness.bench.show import line, table
from harness.errors import HarnessError
from harness.store import Study

RUNS, FEW = 1000, 10
ROUNDS = 5
PROMISED_S = 2.0  # with RUNS runs: a page that takes longer feels broken before it is there

NOTES = (
    "Medians (lowest to highest round); a ratio is taken round by round.",
    "Written: from the records to the page, without its plots. Loaded: from the start of navigation until the",
    "tables are built, drawn and answer; CPU s are those of all the browser's processes meanwhile, which leaves",
    "out what others had of its cores. Filtered: from then on, until the rows of one method alone are drawn.",
)

# The second frame after a change is asked for when the first, which shows the change, has been drawn.
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
ROWS = "[...document.querySelectorAll('section.rows tbody tr')]"
BUILT = f"{DRAWN}.then(() => {ROWS}.length)"
FILTERED = f"""
words.value = 'umd';
words.dispatchEvent(new Event('input', {{bubbles: true}}));
{DRAWN}.then(() => {ROWS}.filter(row => !row.hidden).length)
"""


class Opened(NamedTuple):
    loaded_s: float  # from the start of navigation until the tables are built and drawn and say how many rows they have
    cpu_s: float  # of the browser, meanwhile: what a busy neighbour does not add to
    filtered_s: float  # from then on, until the rows of one method alone are drawn


def bench(runs: int = RUNS, rounds: int = ROUNDS, few: int = FEW) -> None:
    """Print the size in MB of both pages, the seconds to write and to load each, their ratio, and what is promised.

    Raises HarnessError where there is no Chromium, for fewer `runs` than two studies need, and for a page that fails.
    """
    chromium()  # before a study is written for nothing
    if runs <= few:
        raise HarnessError(f"a study of {runs} runs", f"more than the {few} of the other", f"--runs {RUNS}")
    # A browser that was killed may have helpers that end a moment later, with a file in its profile.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        line(f"writing made-up studies of {few:,} and {runs:,} runs ...")
        sizes = (few, runs)
        studies = {f"{n:,} runs": write_runs(Path(folder, f"study-{n}"), n)[0] for n in sizes}
        line("writing their pages ...")
        written = interleave({name: (lambda of=of: timed(lambda: _write(of))) for name, of in studies.items()}, rounds)
        with browser(Path(folder, "profile")) as tab:
            tab.window()
            line(f"{tab.call('Browser.getVersion')['product']}; {_machine()}; {rounds} interleaved rounds")
            sides = {name: (lambda of=of: _open(tab, of)) for name, of in studies.items()}
            interleave(sides, 1)
            opened = interleave(sides, rounds)
        size_mb = {name: _place(of).stat().st_size / 1e6 for name, of in studies.items()}
    _show(size_mb, written, opened)


def _write(study: Study) -> None:
    """The page alone, from the records on."""
    from harness.files import write_atomic
    from harness.page.command import content
    from harness.page.render import page

    place = _place(study)
    write_atomic(place, page(content(study, place.parent)))


def _place(study: Study) -> Path:
    return study.path / "report" / "index.html"


def _open(tab: Tab, study: Study) -> Opened:
    tab.go("about:blank")  # so that taking down the page before is not counted
    tab.said.clear()
    address = _place(study).as_uri()
    cpu_s = tab.cpu_s()
    began = time.perf_counter()
    tab.go(address)
    rows = tab.js(BUILT)
    loaded_s = time.perf_counter() - began
    cpu_s = tab.cpu_s() - cpu_s
    began = time.perf_counter()
    shown = tab.js(FILTERED)
    filtered_s = time.perf_counter() - began
    if tab.said or not 0 < shown < rows:
        found = f"the page shows {shown} of {rows} rows of one method; its console says {tab.said or 'nothing'}"
        raise HarnessError(found, "some rows, and a silent console", "python -m pytest tests/harness/test_page.py")
    return Opened(loaded_s, cpu_s, filtered_s)


def _machine() -> str:
    """The cores that are ours, and how busy all of them were, for a reader of what was printed."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{ours} of {os.cpu_count()} cores, {os.getloadavg()[0]:.1f} processes at work in the last minute"


def _show(size_mb: dict[str, float], written: dict[str, list[float]], opened: dict[str, list[Opened]]) -> None:
    loaded = {name: [one.loaded_s for one in found] for name, found in opened.items()}
    small, large = opened
    rows = [
        (
            name,
            f"{size_mb[name]:.1f}",
            Spread.of(written[name]).text(".1f"),
            Spread.of(loaded[name]).text(".2f"),
            Spread.of([one.cpu_s for one in found]).text(".2f"),
            ratios(loaded[name], loaded[small]).text(".1f"),
            Spread.of([one.filtered_s for one in found]).text(".2f"),
        )
        for name, found in opened.items()
    ]
    wall_s, cpu_s = (Spread.of(took).median for took in (loaded[large], [one.cpu_s for one in opened[large]]))
    table(
        "the page of harness report",
        ["study", "MB", "written, s", "loaded, s", "loaded, CPU s", f"times {small}", "filtered, s"],
        rows,
        [
            *NOTES,
            f"Promised: under {PROMISED_S:.0f} s to load {RUNS:,} runs. "
            f"Measured: {wall_s:.2f} s to load {large}, {cpu_s:.2f} s of CPU.",
        ],
    )
