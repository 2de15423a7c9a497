"""One side of the training pair, in a process of its own that lives through all rounds and waits between them.

`python -m harness.bench.side` reads a `Spec` and then requests, one JSON object a line; answers likewise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from harness.bench import PASSIVE
from harness.errors import HarnessError


@dataclass(frozen=True)
class Spec:
    """What a side trains on what."""

    method: str
    size: str
    images: str  # an .npy file of uint8 [n, 3, S, S]
    batch_size: int
    precision: str = "auto"  # ours only
    reference: str | None = None  # a checkout; None is our own loop


class Side:
    """The parent's handle of a side; a context manager, because the process must not outlive the bench."""

    def __init__(self, name: str, spec: Spec) -> None:
        self.name = name
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "harness.bench.side"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=dict([PASSIVE]) | os.environ,
        )
        try:
            self.about = self.ask(**asdict(spec))
        except HarnessError:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request. Raises HarnessError with what the process last said when it has died."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            answer = self._process.stdout.readline()  # type: ignore[union-attr]
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._complaints.seek(0)
            said = self._complaints.read().strip().splitlines() or ["nothing was said"]
            raise HarnessError(f"the {self.name} loop stopped: {said[-1]}", "a loop that runs", "\n".join(said[-12:]))
        return json.loads(answer)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process by ending its requests, and wait for it."""
        with suppress(BrokenPipeError):  # a dead process never read its last request
            self._process.stdin.close()  # type: ignore[union-attr]
        self._process.stdout.close()  # type: ignore[union-attr]
        self._process.wait()
        self._complaints.close()


def main() -> None:
    """Answer requests until there are no more. Whatever the loops print goes nowhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    requests = iter(sys.stdin.readline, "")
    loop = _loop(Spec(**json.loads(next(requests))))
    _answer(answers, loop.about())
    for request in requests:
        _answer(answers, serve(loop, **json.loads(request)))


def serve(loop: Any, do: str, warm: int, steps: int, workers: int = 0) -> dict[str, Any]:
    """`do` is "run" or "profile"; the seconds of `steps` steps, their parts, and the peak memory so far."""
    from harness import machine
    from harness.bench.rounds import Parts

    settle = _settle if do == "profile" else lambda: None
    parts = Parts(settle)
    wall_s = getattr(loop, do)(warm, steps, workers, parts)
    return {"wall_s": wall_s, "parts": parts.seconds, "peak_bytes": machine.peak_memory_bytes()}


def _settle() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _loop(spec: Spec) -> Any:
    from pathlib import Path

    import numpy as np

    images = np.load(spec.images)

    from harness import machine
    from harness.bench.ours import Ours, config

    if spec.reference is None:
        return Ours(spec.method, images, spec.size, spec.precision, spec.batch_size, machine.device())
    from harness.bench.reference import load

    shared = config(spec.method, spec.size, images)
    return load(spec.method, Path(spec.reference), images, shared, spec.batch_size, machine.device())


def _answer(answers: IO[str], content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
