"""One process at a time works in a study's folder; jobs of a cluster are told apart by their leases instead."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError
from harness.files import explain

LOCK = ".lock"
NONE_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # a file system without locks: Lustre mounted without flock


@contextmanager
def only_writer(folder: Path, what: str = "run") -> Iterator[None]:
    """Hold the study for this process; the kernel lets go when the process ends, however it ends.

    `what` it does stands in the file, for those that come later. Where the file system has no locks, a line says so.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "r+" if (folder / LOCK).exists() else "w+")  # noqa: SIM115 (held until the end)
    except OSError as error:
        raise explain(error, folder) from error
    with lock:
        taken = _taken(lock.fileno(), fcntl.LOCK_EX)
        if taken is None:
            print("no locks on this file system: see to it that no other command works on this study", file=sys.stderr)
        if taken is False:
            raise _held(folder, lock.read())
        lock.truncate(0)
        lock.write(f"{what} {socket.gethostname()} {os.getpid()}\n")
        lock.flush()
        yield


def refuse_trainer(folder: Path) -> None:
    """Raise HarnessError where a process trains in the study: jobs beside it would do its work again."""
    try:
        lock = open(folder / LOCK)  # noqa: SIM115
    except OSError:
        return
    with lock:
        if _taken(lock.fileno(), fcntl.LOCK_SH) is False and (said := lock.read()).partition(" ")[0] != "eval":
            raise _held(folder, said)


def _taken(number: int, how: int) -> bool | None:
    """Whether the lock is this process's now; None where the file system has none."""
    try:
        fcntl.flock(number, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NONE_HERE:
            raise
        return None
    return True


def _held(folder: Path, said: str) -> HarnessError:
    what, host, number = [*said.split(), "", "", ""][:3]
    who = f"another process ({what} on {host}, process {number})" if number else "another process"
    return HarnessError(
        f"{who} is working on the study {folder}",
        "one writer a study",
        f"python -m harness status {folder} shows how far it is; or choose another folder with --name",
    )
