"""`--help` against a bare `import typer`, and against what it would take if torch were imported first; and a plan.

A plan is typed with nothing kept of earlier commands, when it imports the methods, and again with their answers kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.bench.rounds import Spread, interleave, ratios, timed
from harness.bench.show import table

ROUNDS = 7
HELP = "python -m harness --help"
PLAN = ["-m", "harness", "plan", "--methods", "umd,lmd,mae", "--budget", "1min", "--cluster", "inline"]
COMMANDS = {
    HELP: ["-m", "harness", "--help"],
    'python -c "import typer"': ["-c", "import typer"],
    "the same help, torch imported first": [
        "-c",
        "import torch, sys; sys.argv = ['harness', '--help']; from harness.__main__ import main; main()",
    ],
}


def bench(rounds: int = ROUNDS) -> None:
    """Print the seconds of each command (fresh processes, one after another) and their ratio to `--help`."""
    sides = {name: (lambda words=words: timed(lambda: _run(words))) for name, words in COMMANDS.items()}
    with tempfile.TemporaryDirectory() as folder:
        title = "a plan of umd, lmd and mae"
        sides[f"{title}, for the first time"] = lambda: timed(lambda: _run(PLAN, Path(tempfile.mkdtemp(dir=folder))))
        sides[f"{title}, again"] = lambda: timed(lambda: _run(PLAN, Path(folder)))
        interleave(sides, 1)  # fills the disk cache, writes the bytecode, and keeps the plan's answers
        seconds = interleave(sides, rounds)
    rows = [
        (name, f"{Spread.of(s).text('.3f')}", f"{ratios(s, seconds[HELP]).text('.2f')}") for name, s in seconds.items()
    ]
    table(
        f"start-up, median of {rounds} interleaved rounds (lowest to highest)",
        ["command", "seconds", "times --help"],
        rows,
    )


def _run(words: list[str], cache: Path | None = None) -> None:
    environment = os.environ | ({} if cache is None else {"HARNESS_CACHE": str(cache)})
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, env=environment, check=True)
