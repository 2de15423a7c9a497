"""Doors that are closed while a method is checked: the network, and the files that hold its test part.

Python's own audit events tell of every connection and every file, from wherever they are asked for. A hook cannot be
taken away again, so there is one for the process, which does nothing while no door is closed.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from harness.data.dataset import Dataset

NETWORK = {
    "socket.connect": "a connection to",
    "socket.sendto": "a message to",
    "socket.getaddrinfo": "the address of",
    "socket.gethostbyname": "the address of",
    "socket.gethostbyaddr": "the name of",
}
Door = Callable[[str, tuple[Any, ...]], None]

_closed: list[Door] = []
_hooked: list[bool] = []


class Refused(OSError):
    """What a method gets where a door is closed."""


@contextmanager
def _closing(door: Door) -> Iterator[None]:
    if not _hooked:
        sys.addaudithook(lambda event, values: [door(event, values) for door in _closed] and None)
        _hooked.append(True)
    _closed.append(door)
    try:
        yield
    finally:
        _closed.remove(door)


@contextmanager
def network(place: Path | None, refused: list[str]) -> Iterator[None]:
    """No connection to another machine and no question for a name; `refused` takes what was asked for, with its line
    below `place`."""

    def door(event: str, values: tuple[Any, ...]) -> None:
        if event not in NETWORK:
            return
        address = values[1] if event in ("socket.connect", "socket.sendto") else values[0]
        if event in ("socket.connect", "socket.sendto") and not isinstance(address, tuple):
            return  # of this machine alone: a socket of the file system
        host = address[0] if isinstance(address, tuple) else address
        refused.append(f"{NETWORK[event]} {_text(host)}{asked_from(place)}")
        raise Refused("the network is closed while a method is checked")

    with _closing(door):
        yield


@contextmanager
def test_split(files: tuple[Path, ...], place: Path | None) -> Iterator[list[str]]:
    """No test part of any data set, also of one that a method loads by itself, and none of these files and folders."""
    refused: list[str] = []
    roots = tuple(str(path.resolve()) for path in files)
    opened = Dataset.open_test

    def refuse(what: str) -> None:
        refused.append(f"{what}{asked_from(place)}")
        raise Refused(f"{what}: closed while a method is checked")

    def door(event: str, values: tuple[Any, ...]) -> None:
        if event == "open" and roots and isinstance(values[0], str | bytes):
            path = os.path.realpath(_text(values[0]))
            if any(path == root or path.startswith(root + os.sep) for root in roots):
                refuse(f"the file {os.path.basename(path)} of the data set")

    Dataset.open_test = lambda self, by: refuse(f"the test part of {self.spec.name}")
    try:
        with _closing(door):
            yield refused
    finally:
        Dataset.open_test = opened


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def asked_from(place: Path | None) -> str:
    """` (method.py:57)`: the innermost line below `place` of the calls under way; nothing where there is none."""
    frame = sys._getframe(1) if place is not None else None
    while frame is not None:
        if is_below(frame.f_code.co_filename, place):
            return f" ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"
        frame = frame.f_back
    return ""


@contextmanager
def lines_that_change(look: Callable[[], Any], place: Path) -> Iterator[list[str]]:
    """`method.py:57, in view`: each line below `place` after which `look` gives something else than before it."""
    found: dict[str, None] = {}  # in order
    seen, last = look(), ""

    def step(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen, last
        if not is_below(frame.f_code.co_filename, place):
            return None
        if (now := look()) != seen:
            seen = now
            found[last] = None
        last = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}, in {frame.f_code.co_name}"
        return step

    lines: list[str] = []
    before = sys.gettrace()
    sys.settrace(step)
    try:
        yield lines
    finally:
        sys.settrace(before)
        lines += filter(None, found)


def raised_from(error: Exception, place: Path | None) -> str:
    """` (method.py:57, in pretrain)`: the innermost of the error's lines below `place`; nothing where there is none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if place and is_below(f.filename, place)]
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""


def is_below(file: str, place: Path) -> bool:
    return file.startswith(str(place) + os.sep)
