"""`--help` against a bare `import typer`, and against what it would take if torch were imported first."""

from __future__ import annotations

import subprocess
import sys

from harness.bench.rounds import Spread, interleave, ratios, timed
from harness.bench.show import table

ROUNDS = 7
HELP = "python -m harness --help"
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
    interleave(sides, 1)  # fills the disk cache and writes the bytecode
    seconds = interleave(sides, rounds)
    rows = [
        (name, f"{Spread.of(s).text('.3f')}", f"{ratios(s, seconds[HELP]).text('.2f')}") for name, s in seconds.items()
    ]
    table(
        f"start-up, median of {rounds} interleaved rounds (lowest to highest)",
        ["command", "seconds", "times --help"],
        rows,
    )


def _run(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
