"""Files that are whole or not there: written to a temporary name, synced, renamed."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from harness.errors import CannotWrite


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step; a reader sees the old file or the new one, never a part.

    Raises CannotWrite when the disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with suppress(OSError):  # where the folder itself is at fault, the first error says more
            temporary.unlink()


def link(path: Path, target: Path) -> None:
    """Make `target` the same file as `path` in one step: a hard link, or a copy where the file system has none."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.samefile(path):
            return  # two names of one file: renaming one to the other would leave both
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise explain(error, target) from error


def move(path: Path, target: Path) -> None:
    """Rename `path` to `target`, in place of what is there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    except OSError as error:
        raise explain(error, target) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain(error: OSError, path: Path) -> CannotWrite:
    """The error a user can act on for a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CannotWrite(
            f"no space left to write {path}",
            "free space on the disk (or quota) that holds it; what was finished is kept",
            "free some space and repeat the command, or choose another folder with --out",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CannotWrite(f"no permission to write {path}", "a folder you can write", "choose one with --out")
    return CannotWrite(f"cannot write {path}: {error.strerror or error}", "", "choose another folder with --out")
