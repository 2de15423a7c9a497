"""How far each run is, and the anytime curve, from what runs leave behind."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.report import anytime, status
from tests.harness.made_study import (
    made_study,
    write_study,
)


def test_status_reads_the_record_and_the_last_whole_log_line(tmp_path: Path) -> None:
    study = write_study(tmp_path, *made_study())
    line = '{"step": %d, "share": %s, "loss": 0.5, "img_s": 800.0, "at": "2025-01-01T00:00:00Z"}\n'
    log = line % (1, 0.1) + line % (7, 0.7) + '{"step": 8, "sha'
    study.run("mae-1").log.write_text(log)
    found = {s.key: s for s in status.rows(study, datetime(2025, 1, 1, 0, 3, tzinfo=UTC))}
    assert list(found) == ["lmd-0", "lmd-1", "mae-0", "mae-1", "umd-0", "umd-1"]
    running = found["mae-1"]
    assert (running.share, running.step, running.age_s, running.spent) == (0.7, 7, 180.0, "0.700min")
    assert found["lmd-1"].message == "non-finite loss at step 12"
    assert found["umd-0"].share == pytest.approx(0.9967)
    assert found["umd-0"].age_s is None


def test_status_on_a_terminal(tmp_path: Path) -> None:
    from rich.console import Console

    study = write_study(tmp_path, *made_study())
    study.run("mae-1").log.write_text('{"step": 1, "share": 0.5, "loss": "NaN", "at": "never"}\nnot json\n[1]\n')
    file = io.StringIO()
    Console(file=file, width=100).print(status.grid(status.rows(study)))
    said = file.getvalue()
    assert "50.0%" in said and "diverged" in said
    assert max(map(len, said.splitlines())) <= 100


def test_anytime_points_and_csv() -> None:
    runs, evals = made_study()
    curve = anytime.points(runs, evals)
    assert curve == anytime.points(runs[::-1], evals[::-1])
    mine = [p for p in curve if p.method == "mae" and p.title == "linear top-1 %"]
    assert [(p.share, p.value) for p in mine] == [(s, 90.3 * s - 5) for s in (0.125, 0.5, 1.0)]
    assert mine[1].img == 24_000
    header, first, *_ = anytime.to_csv(curve).splitlines()
    assert header.startswith("dataset,size,budget,eval,protocol,title,method,seed,share,device_s,img,flop,value")
    assert first.startswith("digits,nano,1min,knn,1,kNN top-1 %,lmd,0,0.125,")


def test_anytime_plot_is_a_picture_and_repeats(tmp_path: Path) -> None:
    curve = anytime.points(*made_study())
    first, again = (anytime.plot(curve, tmp_path / name, "img") for name in ("a.png", "b.png"))
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == again.read_bytes()
    with pytest.raises(HarnessError, match="no snapshots were evaluated"):
        anytime.plot([], tmp_path / "c.png")
