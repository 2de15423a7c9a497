"""A digest of all code that an answer worked out of a method may rest on, found without importing any of it.

Every file of our packages, wherever they have parts, and of the packages that bring plugins; the name and version of
every installed distribution, as its folder says. What is not seen: code that neither is part of a plugin's package nor
is installed, edits of an installed distribution in its place, and environment variables that code reads.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path

from harness.plugins import eval_plugins, method_plugins

PACKAGES = ("backbones", "evals", "harness", "methods")
LIBRARIES = ("torch", "torchvision", "timm", "diffusers")  # where they lie, too: one on PYTHONPATH has no version
READ_BYTES = 1 << 20  # larger files, which no code is, count by size and time
INSTALLED = (".dist-info", ".egg-info")


def digest() -> str:
    """16 hex digits that change with the code."""
    total = hashlib.sha256(sys.version.encode())
    for place in _places():
        total.update(f"\n{place}".encode())
        for path in _files(place):
            total.update(f"\n{path} ".encode())
            with suppress(OSError):  # gone meanwhile, as an editor's own files are
                stat = path.stat()
                large = stat.st_size > READ_BYTES
                total.update(f"{stat.st_size} {stat.st_mtime_ns}".encode() if large else path.read_bytes())
    total.update("\n".join(_installed()).encode())
    return total.hexdigest()[:16]


def imported() -> bool:
    """Whether code of a method runs in this process already; it may be older than its file."""
    return any(plugin.module in sys.modules for plugin in method_plugins().values())


def _places() -> list[Path]:
    plugins = [*method_plugins().values(), *eval_plugins().values()]
    others = {plugin.module.partition(".")[0] for plugin in plugins} - {*PACKAGES}
    return [place for name in (*PACKAGES, *sorted(others)) for place in _of(name)]


def _of(name: str) -> list[Path]:
    """The folders of a top-level package, or the file of a module; nothing where there is none."""
    spec, parts = _spec(name), getattr(sys.modules.get(name), "__path__", None)  # which may have been given more parts
    parts = parts or (spec.submodule_search_locations if spec else None)
    if parts is not None:
        return [Path(part) for part in parts]
    return [Path(spec.origin)] if spec and spec.has_location and spec.origin else []


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module that was made and not found
        return None


def _files(place: Path) -> Iterator[Path]:
    while not place.exists():  # inside an archive
        place = place.parent
    if place.is_file():
        yield place
    for parent, folders, files in os.walk(place):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def _installed() -> Iterator[str]:
    """`timm-1.0.19.dist-info` and so on, in the order in which Python looks; and where the libraries lie."""
    for folder in dict.fromkeys(sys.path):
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:  # not there, or an archive
            continue
        yield from (name for name in names if name.endswith(INSTALLED))
    for name in LIBRARIES:
        spec = _spec(name)
        yield str(spec.origin if spec else None)
