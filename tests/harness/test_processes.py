"""Processes told from later ones of their number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import processes
from harness.processes import born, lives
from tests.harness.launched import ended_process


def test_whether_a_process_lives():
    assert lives(os.getpid()) and not lives(ended_process())
    zombie = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    zombie.stdout.read()  # until it ended; nobody has waited for it
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert not lives(zombie.pid)
    zombie.stdout.close()
    zombie.wait()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux says when a process began")
def test_a_number_that_another_process_has_by_now_is_not_it():
    mine = born(os.getpid())
    assert mine and mine == born(os.getpid()) and lives(os.getpid(), mine)
    assert not lives(os.getpid(), f"{mine}1") and not lives(os.getpid(), f"another boot {mine.split()[-1]}")
    assert born(ended_process()) == ""


def test_where_nobody_can_say_when_it_began_the_number_alone_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert born(os.getpid()) == "" and lives(os.getpid()) and not lives(ended_process())
