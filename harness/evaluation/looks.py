"""Looks at the test part whose eval has not come to its end: kept beside the records, so that none is forgotten.

An eval that is killed or fails after it opened the test part leaves no record; the attempt that succeeds takes its
looks into its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.files import write_atomic
from harness.records import TestOpened

LOOKS = "looks.jsonl"


@dataclass(frozen=True)
class Looks:
    """Those of the evals of one checkpoint, one a line of a file in `place`, the folder of their records."""

    place: Path

    def add(self, look: TestOpened) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(look.model_dump_json() + "\n")

    def of(self, name: str) -> list[TestOpened]:
        """Those of the eval `name`, of attempts before this one."""
        return [look for look in self._pending() if _is_of(look, name)]

    def recorded(self, looks: Sequence[TestOpened]) -> None:
        """These stand in a record now. Another process may have opened the test part for the same eval meanwhile."""
        left = [look for look in self._pending() if look not in looks]
        if left:
            write_atomic(self._path, "".join(look.model_dump_json() + "\n" for look in left))
        else:
            self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.place / LOOKS

    def _pending(self) -> list[TestOpened]:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return [TestOpened.model_validate_json(line) for line in lines]


def _is_of(look: TestOpened, name: str) -> bool:
    return look.by.startswith(f"{name} of ")
