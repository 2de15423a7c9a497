"""Workers on this machine: one task at a time for each GPU; on a CPU one task at a time, so that clocks stay true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import gpus
from harness.errors import HarnessError
from harness.launch.folders import Batch, Batches, Claim, Submitted
from harness.launch.here import Here, Key
from harness.launch.standing import Seen


@dataclass
class Local(Here):
    """Holds what was submitted until a device is free. Its workers end with it."""

    name: str = field(default="local", kw_only=True)
    devices: list[str] = field(default_factory=list)  # each worker's CUDA_VISIBLE_DEVICES; one empty word for a CPU
    _running: dict[Key, tuple[subprocess.Popen[bytes], str]] = field(default_factory=dict)
    _ended: dict[Key, int] = field(default_factory=dict)

    def submit(self, batch: Batch, attempts: Sequence[int], stage: str, after: Any = None) -> Submitted:
        """Take the batch; its tasks start as devices become free."""
        submitted = super().submit(batch, attempts, stage, after)
        self._start()
        return submitted

    def look(self, batches: Iterable[str]) -> Callable[[Claim], Seen | None]:
        self._reap()
        self._start()
        return super().look(batches)

    def _seen(self, claim: Claim) -> Seen | None:
        key = claim.batch, claim.index
        if key in self._running:
            return Seen(True, running=True, word="running", where=self._running[key][1])
        if key in self._ended:
            status = self._ended[key]
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            return Seen(False, word=f"the worker ended: {how}", kind="killed")
        return super()._seen(claim)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        taken = [device for _, device in self._running.values()]
        for device in self.devices:
            if device in taken or not self._waiting:
                continue
            key = next(iter(self._waiting))
            attempt = self._waiting.pop(key)
            self._running[key] = self._worker(key, attempt, device), device

    def _worker(self, key: Key, attempt: int, device: str) -> subprocess.Popen[bytes]:
        batch, index = key
        stored = Batches(self.place).read(batch)
        folder = self.folder(key)
        path = os.pathsep.join(filter(None, [stored.code, os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        words = ["work", str(self.place.path.resolve()), batch, str(index), str(attempt), "--parent", str(os.getpid())]
        with open(folder / "0_log.out", "ab") as out, open(folder / "0_log.err", "ab") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "harness", *words],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True,
            )  # fmt: skip

    def _reap(self) -> None:
        for key, (process, _) in list(self._running.items()):
            status = process.poll()
            if status is not None:
                self._ended[key] = status
                del self._running[key]

    def cancel(self, claims: Iterable[Claim]) -> list[str]:
        """Ask workers to save themselves and end; those that wait never start."""
        keys = self.drop(claims)
        for key, (process, _) in self._running.items():
            if key in keys:
                process.terminate()
        return [f"{batch}/{index}" for batch, index in keys]

    def close(self) -> None:
        """End every worker: training saves itself first."""
        super().close()
        for process, _ in self._running.values():
            process.terminate()
        for process, _ in self._running.values():
            process.wait()
        self._reap()


def devices(most: int | None = None) -> list[str]:
    """One word for each worker that this machine has a device for, at most `most`; one empty word for a CPU.

    Raises HarnessError where more are asked for than there are.
    """
    count = gpus.count()
    if most is not None and most > count:
        raise HarnessError(f"--gpus {most}, and this machine has {count}", f"at most {count}", f"--gpus {count}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(count)]
    return names[: count if most is None else most] or [""]


def end_with(parent: int) -> None:
    """Ask Linux to stop this process when its parent ends; elsewhere a worker that is left alone goes on."""
    import ctypes

    pr_set_pdeathsig = 1
    try:
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it ended before it was asked
        os.kill(os.getpid(), signal.SIGTERM)
