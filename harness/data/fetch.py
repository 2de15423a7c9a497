"""Fetching and checking data sets. `fetch` is the only thing in the harness that downloads."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from harness.data import catalog
from harness.data.catalog import Entry, Found
from harness.errors import HarnessError

if TYPE_CHECKING:
    from rich.progress import Progress

TIMEOUT_S = 30
PIECE_BYTES = 1 << 18
ARCHIVES = (".tar.gz", ".tgz", ".zip")
# EuroSAT's stands inside torchvision's code. torchvision has no checksum of FGVC-Aircraft; this is other loaders'.
EUROSAT = (
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
    "c8fa014336c82ac7804f0398fcb19387",
)
AIRCRAFT_MD5 = "d4acdd33327262359767eeaa97a4f732"
TINY_IMAGENET = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")


class Available(NamedTuple):
    """One data set of the catalogue on this machine. `entry` is what stands in, where something does."""

    entry: Entry
    status: Literal["embedded", "found", "missing"]
    where: Path | None
    size_bytes: int | None  # of its files on disk; None for images in folders, which would take long to count


class Checked(NamedTuple):
    """A file whose checksum is as published."""

    file: Path
    digest: str


@dataclass(frozen=True)
class Remote:
    """A file to download: mirrors of it, its place below the data set's folder, its MD5."""

    urls: tuple[str, ...]
    path: str
    md5: str


def available(data_dir: Path | None = None) -> list[Available]:
    """Every entry of the catalogue, and where it was found."""
    rows = []
    for entry in catalog.ENTRIES.values():
        found = catalog.locate(entry, data_dir)
        if found is None:
            rows.append(Available(entry, "missing", None, None))
        elif found.where is None:
            rows.append(Available(found.entry, "embedded", None, None))
        else:
            rows.append(Available(found.entry, "found", found.where, _size_bytes(found)))
    return rows


def _size_bytes(found: Found) -> int | None:
    assert found.where is not None
    paths = [found.where / f for f in found.entry.files]
    if found.entry.source == "folder" or any(path.is_dir() for path in paths):
        return None
    return sum((p if p.exists() else p.with_name(f"{p.name}.gz")).stat().st_size for p in paths)


def fetch_folder(data_dir: Path | None = None) -> Path:
    """Where `fetch` puts data: the folder given, $HARNESS_DATA, ./data where there is one, else ~/.cache."""
    folders = catalog.data_folders(data_dir)
    named = data_dir is not None or bool(os.environ.get("HARNESS_DATA"))
    return folders[0] if named or folders[0].is_dir() else folders[-1]


def fetch(name: str, data_dir: Path | None = None, progress: Progress | None = None) -> Path | None:
    """Download a data set, compare its checksum, unpack it; the folder it then lies in (None: it is embedded).

    Nothing is downloaded where it is there already. Every file appears whole or not at all. `progress` is a started
    rich display, which gets a bar for each file.
    """
    entry = replace(catalog.find_entry(name), fallback=None)
    if found := catalog.locate(entry, data_dir):
        return found.where
    remotes = _remotes(entry)
    root = fetch_folder(data_dir) / entry.name
    for remote in remotes:
        _download(remote, root, entry, progress)
        if remote.path.endswith(ARCHIVES):
            _unpack(root / remote.path, (root / remote.path).parent)
    return catalog.resolve(name, fetch_folder(data_dir)).where


def _remotes(entry: Entry) -> list[Remote]:
    """What to download for the entry, with torchvision's addresses and checksums."""
    if entry.name == "tiny-imagenet":
        return [Remote((TINY_IMAGENET[0],), "tiny-imagenet-200.zip", TINY_IMAGENET[1])]
    kind, _, name = entry.source.partition(":")
    if kind != "torchvision" or entry.by_hand:
        found = f"{entry.name!r} cannot be downloaded"
        raise HarnessError(found, "a folder that holds it already", catalog.how_to_get(entry))
    import torchvision.datasets

    source = getattr(torchvision.datasets, name)
    if name == "SVHN":
        return [Remote((url,), file, md5) for url, file, md5 in (source.split_list[s] for s in ("train", "test"))]
    if name == "FashionMNIST":
        return [
            Remote(tuple(m + file for m in source.mirrors), f"FashionMNIST/raw/{file}", md5)
            for file, md5 in source.resources
        ]
    if name == "Flowers102":
        return [_of_makers(f"{source._download_url_prefix}{file}", md5, "flowers-102/")
                for file, md5 in source._file_dict.values()]  # fmt: skip
    if name == "OxfordIIITPet":
        return [_of_makers(url, md5, "oxford-iiit-pet/") for url, md5 in source._RESOURCES]
    if name == "EuroSAT":
        return [_of_makers(*EUROSAT)]
    if name in ("DTD", "Food101", "FGVCAircraft"):
        return [_of_makers(source._URL, getattr(source, "_MD5", AIRCRAFT_MD5))]
    return [Remote((source.url,), source.filename, source.tgz_md5)]


def _of_makers(url: str, md5: str, below: str = "") -> Remote:
    """A file that keeps its name, in the folder where torchvision's class looks for it."""
    return Remote((url,), below + url.rpartition("/")[2], md5)


def _download(remote: Remote, root: Path, entry: Entry, progress: Progress | None) -> None:
    """Fetch one file from the first mirror that answers; keep it only if its checksum is right."""
    target = root / remote.path
    if target.exists() and _md5(target) == remote.md5:
        return
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    failures = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for url in remote.urls:
            try:
                _receive(url, temporary, entry.title, progress)
            except (_Unreachable, http.client.HTTPException) as error:
                failures.append(f"{url}: {error}")
                continue
            if (md5 := _md5(temporary)) == remote.md5:
                os.replace(temporary, target)
                return
            failures.append(f"{url}: wrong checksum, MD5 {md5} instead of {remote.md5}")
    except OSError as error:
        raise HarnessError(
            f"cannot write {target}: {error.strerror or error}", "a folder with space", "choose one with --data-dir"
        ) from error
    finally:
        with suppress(OSError):  # its folder may be what cannot be made
            temporary.unlink()
    raise HarnessError(
        f"cannot fetch {entry.name}: {'; '.join(failures)}",
        "a machine that reaches the network (compute nodes often do not) and the file as published",
        f"fetch it where there is network, then copy its folder to {root}",
    )


class _Unreachable(Exception):
    """The network failed, as against the disk."""


def _receive(url: str, target: Path, title: str, progress: Progress | None) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "recognise-and-draw"})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except OSError as error:  # URLError and HTTPError among them
        raise _Unreachable(str(getattr(error, "reason", None) or error)) from error
    length = response.headers.get("Content-Length")
    with response, open(target, "wb") as file:
        task = progress.add_task(title, total=int(length) if length else None) if progress else None
        for piece in _pieces(response):
            file.write(piece)
            if progress is not None and task is not None:
                progress.advance(task, len(piece))


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            piece = response.read(PIECE_BYTES)
        except OSError as error:
            raise _Unreachable(str(error)) from error
        if not piece:
            return
        yield piece


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(archive: Path, root: Path) -> None:
    """Unpack beside the target and move into place, so that a killed fetch leaves no half data set."""
    from torchvision.datasets.utils import extract_archive

    staging = root / f".{archive.name}.{uuid.uuid4().hex[:8]}.unpack"
    try:
        extract_archive(str(archive), str(staging))
        for item in staging.iterdir():
            shutil.rmtree(root / item.name, ignore_errors=True)
            os.replace(item, root / item.name)
    except (OSError, EOFError) as error:
        raise HarnessError(f"cannot unpack {archive}: {error}", "a whole archive and space beside it") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def verify(name: str, data_dir: Path | None = None) -> list[Checked]:
    """Compare every file that has a published checksum. Empty where none has (image folders, digits).

    Of photographs only the archives have one, which lie there if they were fetched.
    Raises HarnessError at the first file that differs.
    """
    from harness.data import arrays, listed, packed

    found = catalog.resolve(name, data_dir)
    where, entry = found.where, found.entry
    if where is None or entry.source == "folder":
        return []
    if entry.source == "packed":
        return [Checked(where / f, packed.check(where / f)) for f in entry.files]
    if entry.name == "fashion-mnist":
        return [Checked(where / f, hashlib.sha256(arrays.idx_bytes(where, f)).hexdigest()) for f in entry.files]
    if entry.source in listed.READERS:
        remotes = [] if entry.by_hand else _remotes(entry)
        held = [(folder / r.path, r.md5) for r in remotes for folder in (where, where.parent)]
        return [_checked(file, md5, entry) for file, md5 in held if file.is_file()]
    return [_checked(where / file, md5, entry) for file, md5 in _published(entry)]


def _checked(path: Path, md5: str, entry: Entry) -> Checked:
    if (digest := _md5(path)) != md5:
        step = f"delete {path} and type: python -m harness data fetch {entry.name}"
        raise HarnessError(f"wrong checksum of {path}: MD5 {digest}", md5, step)
    return Checked(path, digest)


def _published(entry: Entry) -> list[tuple[str, str]]:
    """torchvision's (file, MD5) of the unpacked files that the harness reads."""
    import torchvision.datasets

    source = getattr(torchvision.datasets, entry.source.partition(":")[2])
    if entry.name == "svhn":
        return [tuple(source.split_list[s][1:3]) for s in ("train", "test")]
    return [(file, md5) for file, md5 in (*source.train_list, *source.test_list) if file in entry.files]
