"""Our own files: a method's state dict in safetensors, with everything in its header that builds the method again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config import override, plain
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.method import DataSpec, Method
from harness.plugins import load_method
from harness.released import files
from harness.released.formats import OWN, Loaded, fill

LAYOUT = 1  # of the header


def write(path: Path, method: Method, name: str, about: dict[str, Any]) -> None:
    """`method`'s tensors and how to build it; `about` is where the weights come from: run, share, weights, cost."""
    from safetensors.torch import save

    from harness.checkpoint import apart

    head = {
        "layout": LAYOUT,
        "method": name,
        "config": plain(method.config),
        "data": vars(method.data),
        **about,
    }
    write_atomic(path, save(apart(method.state_dict()), {OWN: json.dumps(head)}))


def load(path: Path, wanted: str | None, settings: dict[str, dict[str, Any]]) -> Loaded:
    """The method as it was exported. Raises HarnessError for a file that is not ours or does not fit this version."""
    from harness.evaluation import can

    weights = files.read(path)
    head = _head(weights.metadata, weights.name)
    name, holds = head["method"], head.get("weights", "raw")
    if wanted not in (None, holds):
        raise HarnessError(
            f"--weights {wanted} for {weights.name}, which holds the {holds} ones", "none", "leave it out"
        )
    kind = load_method(name)
    config = override(override(kind.Config(), head["config"], name), settings.get(name, {}), name)
    method = kind.create(config, DataSpec(**head["data"]))
    _fill(method, weights)
    return Loaded(
        method,
        name,
        draws=can(method, "sample"),
        file=weights.name,
        sha256=weights.sha256,
        format=OWN,
        kind=holds,
        config=plain(config),
        notes=list(head.get("notes", [])),
        recipe=head.get("cost"),
    )


def method_of(path: Path) -> str:
    """The method of an exported file, by its header alone."""
    return _head(files.metadata_of(path), path.name)["method"]


def _head(metadata: Mapping[str, str], file: str) -> dict[str, Any]:
    text = metadata.get(OWN)
    if text is None:
        raise HarnessError(
            f"{file} was not written by harness export", "its header", "another --format, or harness export RUN"
        )
    head = json.loads(text)
    if head.get("layout") != LAYOUT:
        raise HarnessError(f"{file} has the layout {head.get('layout')}", f"layout {LAYOUT}", "a newer harness")
    return head


def _fill(method: Method, weights: files.Weights) -> None:
    missing, unexpected = fill(
        method,
        weights.content,
        f"{weights.name} does not fit its own config",
        "the file as harness export wrote it, and the method's code of then",
    )
    if missing or unexpected:
        lacking, strange = (", ".join(names) or "nothing" for names in (missing, unexpected))
        raise HarnessError(
            f"{weights.name} lacks {lacking}, and has too much: {strange}",
            "the tensors of the method, as its code was at the export",
        )
