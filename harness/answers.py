"""Answers that code gave, kept between commands: a plan that was made before need not import the methods again.

An answer is plain JSON. Its file is named by its question and lies in a folder named by the code that gave it
(sources.py), so that a changed file, library or setting asks anew. A file that is damaged or cannot be read is asked
anew too; the folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import sources
from harness.data.catalog import cache_home
from harness.errors import CannotWrite
from harness.files import write_atomic

VERSIONS = 8  # of the code whose answers are kept, the newest: a day's work leaves dozens
log = logging.getLogger(__name__)


class Answers:
    """Those of the code as it is now. To be made before any method is imported."""

    def __init__(self) -> None:
        # Code that runs already may be older than its file, and importing is paid for: nothing is read or kept then.
        self._code = None if sources.imported() else sources.digest()
        self._given: dict[str, Any] = {}

    @property
    def folder(self) -> Path | None:
        """$HARNESS_CACHE/answers/CODE, or the same below ~/.cache/recognise-and-draw. None: nothing is kept."""
        return None if self._code is None else cache_home() / "answers" / self._code

    def ask(
        self, question: dict[str, Any], work_out: Callable[[], Any], holds: Callable[[Any], bool] = lambda answer: True
    ) -> Any:
        """The answer kept for `question`, where it `holds` in this command; else what `work_out` gives, which is kept.

        What `work_out` raises is not kept. No question comes here whose answer hangs on more than code, settings and
        what the question itself says; `holds` is for the rest.
        """
        asked = _text(question)
        if asked in self._given:
            return self._given[asked]
        held = self._read(asked)
        if held is not None and holds(held["answer"]):
            self._given[asked] = held["answer"]
        else:
            self._given[asked] = work_out()
            self._keep(asked, self._given[asked])
        return self._given[asked]

    def _path(self, asked: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{_digest(asked)[:32]}.json"

    def _read(self, asked: str) -> dict[str, Any] | None:
        path = self._path(asked)
        try:
            held = json.loads(path.read_bytes()) if path else None
            whole = held is not None and (held["asked"], held["digest"]) == (asked, _digest(_text(held["answer"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return held if whole else None

    def _keep(self, asked: str, answer: Any) -> None:
        path = self._path(asked)
        if path is None or sources.digest() != self._code:  # edited meanwhile: whose answer it is cannot be told
            return
        held = {"asked": asked, "answer": answer, "digest": _digest(_text(answer))}
        new = not path.parent.exists()
        try:
            write_atomic(path, json.dumps(held))
            if new:
                _forget(path.parent)
        except (OSError, CannotWrite) as error:
            log.info("answers are not kept in %s: %s", path.parent, error)


def _forget(newest: Path) -> None:
    """Delete the answers of all but the newest few versions of the code."""
    folders = sorted(newest.parent.iterdir(), key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
    for old in folders[VERSIONS:]:
        shutil.rmtree(old, ignore_errors=True)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
