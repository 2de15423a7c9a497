"""Data sets stored as whole arrays: scikit-learn's digits, idx files (Fashion-MNIST), CIFAR, SVHN, STL-10."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from harness.data import stored
from harness.data.catalog import CIFAR10_FILES, Found, how_to_get
from harness.data.packed import TEST, TRAIN
from harness.data.stored import Split
from harness.errors import HarnessError

# SHA-256 of the unpacked idx files, so that gzipped and unpacked copies are checked alike.
IDX_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read(found: Found) -> dict[str, Split]:
    """The splits of a data set stored as arrays. Raises HarnessError for a wrong or damaged file."""
    return READERS[found.entry.source if found.entry.source != "embedded" else found.entry.name](found)


def digits_file() -> Path:
    """What sklearn.datasets.load_digits reads: importing it would cost every process two seconds."""
    return Path(find_spec("sklearn").origin).parent / "datasets/data/digits.csv.gz"


def _digits(found: Found) -> dict[str, Split]:
    file = digits_file()
    try:
        table = np.loadtxt(file, delimiter=",")
    except (OSError, ValueError) as error:
        next_step = "install scikit-learn anew"
        raise HarnessError(f"cannot read {file}: {error}", "scikit-learn's digits", next_step) from None
    pixels = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    key = hashlib.sha256(pixels.tobytes()).hexdigest()
    return {TRAIN: stored.split(table[:, -1].astype(int), lambda: pixels, key, "scikit-learn's digits")}


def idx_bytes(folder: Path, name: str) -> bytes:
    """An idx file, unpacked and with its checksum compared."""
    path = folder / name if (folder / name).exists() else folder / f"{name}.gz"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise HarnessError(f"cannot read {path}: {error}", "a whole idx file", "copy or fetch it again") from None
    digest, known = hashlib.sha256(content).hexdigest(), IDX_SHA256[name]
    if digest != known:
        raise HarnessError(
            f"wrong checksum of {path}: SHA-256 {digest[:16]}... unpacked", f"{known[:16]}...", "copy or fetch it again"
        )
    return content


def _fashion(found: Found) -> dict[str, Split]:
    folder = _folder(found)

    def part(prefix: str) -> Split:
        images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        numbers = np.frombuffer(idx_bytes(folder, labels), np.uint8, offset=8)

        def pixels() -> np.ndarray:
            return np.frombuffer(idx_bytes(folder, images), np.uint8, offset=16).reshape(-1, 1, 28, 28)

        # The known checksums identify both files; the images themselves stay closed until they are asked for.
        key = stored.text_digest([IDX_SHA256[images], IDX_SHA256[labels]])
        return stored.split(numbers, pixels, key, str(folder / images))

    return {TRAIN: part("train"), TEST: part("t10k")}


def _cifar(name: str, files: dict[str, tuple[str, ...]]) -> Callable[[Found], dict[str, Split]]:
    def read_splits(found: Found) -> dict[str, Split]:
        import torchvision.datasets

        folder = _folder(found)

        def whole(which: str) -> object:
            with checked(found):
                return getattr(torchvision.datasets, name)(folder.parent, train=which == TRAIN)

        def part(which: str) -> Split:
            def pixels() -> np.ndarray:
                return whole(which).data.transpose(0, 3, 1, 2)  # type: ignore[attr-defined]

            key = stored.file_digest([folder / file for file in files[which]])
            return stored.split(whole(which).targets, pixels, key, f"{folder} ({which})")  # type: ignore[attr-defined]

        return {TRAIN: part(TRAIN), TEST: part(TEST)}

    return read_splits


def _svhn(found: Found) -> dict[str, Split]:
    import torchvision.datasets

    folder = _folder(found)

    def part(which: str) -> Split:
        def whole() -> torchvision.datasets.SVHN:
            with checked(found):
                return torchvision.datasets.SVHN(folder, split=which)

        path = folder / f"{which}_32x32.mat"
        return stored.split(whole().labels, lambda: whole().data, stored.file_digest([path]), str(path))

    return {TRAIN: part(TRAIN), TEST: part(TEST)}


def _stl10(found: Found) -> dict[str, Split]:
    """Read here and not by torchvision, which wants the 2.6 GB of unlabelled images too."""
    folder = _folder(found)

    def part(which: str) -> Split:
        images, labels = folder / f"{which}_X.bin", folder / f"{which}_y.bin"
        numbers = np.fromfile(labels, np.uint8).astype(np.int64) - 1
        if images.stat().st_size != len(numbers) * 3 * 96 * 96:
            raise HarnessError(
                f"{images} has {images.stat().st_size} bytes", f"{len(numbers)} images of 3 x 96 x 96", "fetch it again"
            )

        def pixels() -> np.ndarray:
            return np.fromfile(images, np.uint8).reshape(-1, 3, 96, 96).swapaxes(2, 3)

        return stored.split(numbers, pixels, stored.file_digest([images, labels]), str(images))

    return {TRAIN: part(TRAIN), TEST: part(TEST)}


def _folder(found: Found) -> Path:
    assert found.where is not None, found.entry.name
    return found.where


class checked:
    """Turns what torchvision or scipy say of a checksum or a broken file into an error that says what to do."""

    def __init__(self, found: Found) -> None:
        self.found = found

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from scipy.io.matlab import MatReadError

        if isinstance(error, RuntimeError | OSError | ValueError | EOFError | LookupError | TypeError | MatReadError):
            raise HarnessError(
                f"wrong checksum or damaged file in {self.found.where} ({error})",
                f"{self.found.entry.title} as torchvision fetches it",
                self.found.entry.by_hand or f"delete that folder and type: {how_to_get(self.found.entry)}",
            ) from error


READERS: dict[str, Callable[[Found], dict[str, Split]]] = {
    "digits": _digits,
    "torchvision:FashionMNIST": _fashion,
    "torchvision:CIFAR10": _cifar("CIFAR10", {TRAIN: CIFAR10_FILES[:5], TEST: CIFAR10_FILES[5:6]}),
    "torchvision:CIFAR100": _cifar("CIFAR100", {TRAIN: ("train",), TEST: ("test",)}),
    "torchvision:SVHN": _svhn,
    "torchvision:STL10": _stl10,
}
