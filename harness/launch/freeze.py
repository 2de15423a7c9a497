"""The copy of the code that jobs run: frozen at submission, so that editing a file changes no job in the queue."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from harness import machine
from harness.files import explain

LEFT_OUT = ("__pycache__", "*.pyc", "*.tmp", ".*")  # an editor's links to nowhere begin with a dot


def freeze(folder: Path, plugins: Iterable[str] = ()) -> Path:
    """Copy the project's packages, and those that the modules `plugins` belong to, to a folder for PYTHONPATH.

    The folder is named by the content, so that equal code is one copy. Raises CannotWrite.
    """
    sources = dict(_sources(plugins))
    place = folder / _digest(sources)
    if place.exists():
        return place
    making = folder / f".{place.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        for name, roots in sources.items():
            for root in reversed(roots):  # Python imports the first of equal names: it is laid over the others
                if root.is_file():
                    making.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(root, making / name)
                else:
                    shutil.copytree(root, making / name, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        (making / machine.COMMIT_FILE).write_text(machine.commit() or "")
        os.rename(making, place)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        if not place.exists():  # else another command froze the same code meanwhile
            raise explain(_first(error), place) from error
    return place


def _first(error: OSError) -> OSError:
    """Of the errors that copytree collects the first one, of which it keeps no more than the text."""
    if not isinstance(error, shutil.Error):
        return error
    text = error.args[0][0][2]
    found = re.search(r"\[Errno (\d+)\]", text)
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else OSError(text)


def _sources(plugins: Iterable[str]) -> Iterable[tuple[str, list[Path]]]:
    """The name in the copy of each package or single module, and the folders (or file) that make it up."""
    for name in dict.fromkeys([*machine.PACKAGES, *(module.partition(".")[0] for module in plugins)]):
        spec = None
        with suppress(ImportError, ValueError):  # a plugin that cannot be found is told when it is loaded
            spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        # Of a package that is imported its own path, which may have grown; `import` looks there, too.
        roots = getattr(sys.modules.get(name), "__path__", None) or spec.submodule_search_locations
        if roots:
            yield name, [Path(root) for root in roots if Path(root).is_dir()]
        elif spec.origin:
            yield Path(spec.origin).name, [Path(spec.origin)]


def _digest(sources: dict[str, list[Path]]) -> str:
    digest = hashlib.sha256()
    for name, roots in sources.items():
        for root in roots:
            files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
            for path in files:
                place = path.relative_to(root)
                if not any(fnmatch(part, pattern) for part in place.parts for pattern in LEFT_OUT):
                    digest.update(f"{name}/{place}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
