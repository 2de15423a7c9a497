"""Where the networks that generation is measured with have their weights: looked for, and not loaded.

Here, and not beside what loads them (_yardstick.py), because plans ask and have no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from harness.data import catalog
from harness.errors import HarnessError, unknown

ENVIRONMENT = "HARNESS_INCEPTION"  # path of the Inception weights, where the config names none
AUTO, INCEPTION, STAND_IN = "auto", "inception", "cnn64"
WEIGHTS = "weights"  # folder under a data folder in which a classifier is looked for by its name
FILE = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
UNSET = "set the eval's `inception` (or HARNESS_INCEPTION) to that file, or unset it for the stand-in"


def find(names: Iterable[str], inception: str | None, data_dir: Path | None) -> None:
    """Raise HarnessError where the file of a network is not here; none is loaded."""
    path = inception or os.environ.get(ENVIRONMENT)
    for name in names:
        require_weights(name, path)
        if name in (AUTO, INCEPTION) and path:
            require_file(Path(path))
        elif name not in (AUTO, INCEPTION, STAND_IN):
            classifier(name, data_dir)


def require_weights(name: str, inception: str | None) -> None:
    """Raise HarnessError where Inception is asked for and no path of its weights is known."""
    if name == INCEPTION and not inception:
        raise HarnessError(
            "the extractor 'inception' without weights",
            "a path in generation.inception or in HARNESS_INCEPTION",
            "generation.extractors=auto takes Inception where it can be had",
        )


def require_file(path: Path) -> None:
    """Raise HarnessError where there is no file of Inception's weights."""
    if not path.is_file():
        raise HarnessError(f"no Inception weights at {path}", FILE, UNSET)


def classifier(name: str, data_dir: Path | None) -> Path:
    """The file of a classifier: a path, or a name under weights/ of a data folder."""
    if name.endswith(".safetensors") or os.sep in name:
        return Path(name).expanduser()
    found = {
        path.stem: path
        for folder in catalog.data_folders(data_dir)
        for path in sorted((folder / WEIGHTS).glob("*resnet*"))
    }
    if name not in found:
        raise unknown("extractor", name, [AUTO, INCEPTION, STAND_IN, *found], "or the path of a .safetensors file")
    return found[name]
