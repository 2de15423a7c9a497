"""The display: bars on a terminal, a line every few seconds elsewhere, and nothing that a message can break."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness import display
from harness.display import Live, Plain, choose, duration
from harness.train.log import Tick

TICK = Tick("train", share=0.5, loss=1.25, img_s=1234.5, left_s=61.0)
LABEL = "umd digits nano 1min seed 0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.4, "0:00"),
        (59.6, "1:00"),
        (309, "5:09"),
        (3909, "1:05:09"),
        (360_000, "100:00:00"),
        (-3, "0:00"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_lines_come_every_few_seconds_and_at_every_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(display, "time", clock)
    plain = Plain()
    plain.start([LABEL])
    for _ in range(100):
        clock.now += 0.11
        plain.tick(LABEL, TICK)
    plain.phase(LABEL, "evaluating knn")
    plain.done(LABEL, "finished at 100.00% of budget")
    plain.stop()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"1 run(s): {LABEL}",
        f"{LABEL}  train   50.0% of budget  loss 1.2500  1,234 img/s  1:01 left",
        f"{LABEL}  train   50.0% of budget  loss 1.2500  1,234 img/s  1:01 left",
        f"{LABEL}  evaluating knn",
        f"{LABEL}  finished at 100.00% of budget",
    ]


def test_no_terminal_no_bars(capsys: pytest.CaptureFixture) -> None:
    assert isinstance(choose(), Plain)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_bars_end_as_what_the_runs_are(wide: None, capsys: pytest.CaptureFixture) -> None:
    live = Live()
    live.start(["umd", "lmd", "mae", "late"])
    live.tick("umd", Tick("train", 0.9, 1.0, 10.0, 1.0))
    live.done("umd", "finished at 100.10% of budget, loss 0.1000")
    live.tick("lmd", Tick("train", 0.5, 1.0, 10.0, None))
    live.done("lmd", "failed: OSError: [Errno 28] [/no] space (see [bold]error.txt)")
    live.tick("mae", Tick("prepare", 1.2, 3.5, 10.0, -2.0))
    live.stop()
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "━" * 24 in rows["umd"] and "100.0 %" in rows["umd"] and "finished at 100.10%" in rows["umd"]
    assert "50.0 %" in rows["lmd"] and "[Errno 28] [/no] space (see [bold]error.txt)" in rows["lmd"]
    assert "100.0 %" in rows["mae"] and "prepare  loss 3.5000  10 img/s  0:00 left" in rows["mae"]
    assert "0.0 %" in rows["late"] and "queued" in rows["late"]


def test_lines_beside_the_bars_are_printed_as_they_are(wide: None, capsys: pytest.CaptureFixture) -> None:
    live = Live()
    live.start(["umd"])
    live.phase("raw pixels digits", "evaluating [knn]")
    live.say("umd: checkpoint [x] was damaged")
    live.stop()
    shown = capsys.readouterr().out
    assert "raw pixels digits  evaluating [knn]" in shown
    assert "umd: checkpoint [x] was damaged" in shown


def test_a_bar_is_filled_and_does_not_pulse(
    wide: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """On a terminal with colours: a pulsing bar is drawn character by character, and never fills."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    live = Live()
    live.start(["umd"])
    live.tick("umd", TICK)
    live.stop()
    last = capsys.readouterr().out.rpartition("umd")[2]
    assert "50.0" in last
    assert "━" * 11 in last
