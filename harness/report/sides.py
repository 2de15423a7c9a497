"""What `harness diff` compares: a study's folder as it lies there, or as a git revision had it: `PATH@REVISION`."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.errors import HarnessError
from harness.records import EvalRecord, RunRecord
from harness.store import Study

NEXT = "python -m harness diff runs/A runs/B, or runs/A@HEAD~1 runs/A"


@dataclass
class Side:
    """The records of the runs that a study asks for, and what it asked."""

    name: str
    request: dict[str, object] = field(default_factory=dict)
    runs: list[RunRecord] = field(default_factory=list)
    evals: list[EvalRecord] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)  # the tables that lie beside them, by their file's name


def read(word: str) -> Side:
    """The side that a word of the command line names. Raises HarnessError where there is no such study."""
    path, at, revision = word.rpartition("@")
    if Path(word).exists() or not at:
        return _of_folder(word, Path(word))
    with _checked_out(Path(path), revision, word) as folder:
        return _of_folder(word, folder)


def _of_folder(name: str, folder: Path) -> Side:
    if not (folder / "study.json").is_file():
        raise HarnessError(f"no study in {name}", "the folder of a study, which has a study.json", NEXT)
    study = Study(folder)
    asked = study.asked()
    keys = set(asked.keys)
    runs, evals = study.records()
    return Side(
        name,
        asked.request,
        [run for run in runs if run.key in keys],
        [record for record in evals if record.key is None or record.key in keys],
        {path.name: path.read_bytes() for path in sorted(study.tables().glob("tables.*"))},
    )


@contextmanager
def _checked_out(path: Path, revision: str, word: str) -> Iterator[Path]:
    """A folder with the records and tables that `path` had at that revision of the repository it lies in."""
    here = path.absolute()
    nearest = next(folder for folder in (here, *here.parents) if folder.is_dir())  # it may be gone today
    top = Path(_git(nearest, word, "rev-parse", "--show-toplevel").decode().strip())
    inside = Path(os.path.relpath(here.resolve(), top.resolve())).as_posix()
    packed = _git(top, word, "archive", "--format=tar", f"{revision}:{inside}" if inside != "." else revision)
    with TemporaryDirectory() as name, tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            wanted = member.name.endswith(".json") or member.name.startswith("tables/tables.")
            content = archive.extractfile(member) if wanted else None
            if content:
                target = Path(name) / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
        yield Path(name)


def _git(folder: Path, word: str, *words: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True)
    except FileNotFoundError:
        raise HarnessError(f"git is not installed, and {word} names a revision", "git, or two folders", NEXT) from None
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["git failed"])[0]
        raise HarnessError(f"no study at {word}: {said}", "a folder of a git repository, @, and a revision of it", NEXT)
    return done.stdout
