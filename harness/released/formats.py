"""The formats that weights come in, and the way from each to a method that evals can read.

A method's own module maps its official tensors (see the package's docstring); our own files, timm, diffusers and ADM
are read here.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, unknown
from harness.plugins import Plugin, load_method, method_plugins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.method import Method
    from harness.released.files import Chosen

HUBS = ("timm", "diffusers")  # formats that may come from a hub, as FORMAT:NAME
WRAPPED = (*HUBS, "adm")  # formats that are no method of ours
OWN = "harness"  # of files that `harness export --to safetensors` writes
LISTED = 40  # names in an error; the record of an allowed run has all of them


@dataclass(frozen=True)
class Asked:
    """What a command says of a checkpoint."""

    checkpoint: str  # a path, or timm:NAME, diffusers:NAME
    format: str | None = None
    weights: str | None = None  # "ema" or "raw"; None takes the average where there is one
    allow_unexpected: bool = False
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by section: a method's, or the format's


@dataclass
class Loaded:
    """Released weights in a method, and what a record must say of them."""

    method: Method
    name: str  # of the method, or of the format that wraps it
    draws: bool
    file: str  # or the name on a hub
    sha256: str
    format: str
    described: str = ""  # sha256 of what the file does not hold and the numbers hang on: a folder's configs
    entry: str = ""
    kind: str = "raw"
    config: dict[str, Any] = field(default_factory=dict)
    classes: int = 0  # labels that the weights know of
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recipe: str | None = None  # what the weights cost elsewhere, as their makers state it
    complete: Callable[..., None] | None = None  # what drawing needs beside the file, see the package's docstring
    trained: int = 0  # parameters that came with the file
    frozen: int = 0  # parameters of a part that is borrowed by itself (a VAE)

    def __post_init__(self) -> None:
        named = dict(self.method.named_parameters())
        absent = set(self.missing)
        self.trained = sum(p.numel() for name, p in named.items() if p.requires_grad and name not in absent)
        self.frozen = sum(p.numel() for p in named.values() if not p.requires_grad)


def of_methods() -> dict[str, tuple[Plugin, str]]:
    """Formats that methods bring along: the plugin, and the module to import."""
    found = {}
    for plugin in method_plugins().values():
        for file in sorted(plugin.folder.glob("weights*.py")) if plugin.folder else ():
            name = plugin.name if file.stem == "weights" else file.stem.removeprefix("weights_")
            found.setdefault(name, (plugin, f"{plugin.module.rpartition('.')[0]}.{file.stem}"))
    return found


def known() -> list[str]:
    return [*sorted(of_methods()), *WRAPPED, OWN]


def load(asked: Asked) -> Loaded:
    """The checkpoint's weights in the method that they are of.

    Raises HarnessError for a format that is unknown or cannot be told, a file that is refused (`files.read`), and
    tensors that are missing or left over.
    """
    format = _format(asked)
    if format in WRAPPED:
        module = importlib.import_module(f"harness.released.{format}_model")
        return module.load(asked)
    path = Path(asked.checkpoint)
    if format == OWN:
        from harness.released import own

        return own.load(path, asked.weights, asked.settings)
    return _official(format, path, asked)


def section(asked: Asked) -> str:
    """The name whose settings (`NAME.KEY=VALUE`) reach the network."""
    format = _format(asked)
    if format == OWN:
        from harness.released import own

        return own.method_of(Path(asked.checkpoint))
    return of_methods()[format][0].name if format in of_methods() else format


def _format(asked: Asked) -> str:
    """The format asked for, or the one that the file or its name tells."""
    prefix = asked.checkpoint.partition(":")[0]
    format = asked.format or (prefix if prefix in HUBS else _told(Path(asked.checkpoint)))
    if format is None:
        raise HarnessError(
            f"{asked.checkpoint} does not say what it holds", f"--format {'|'.join(known())}", "--format mae, say"
        )
    if format not in known():
        raise unknown("format", format, known(), "methods/NAME/weights.py adds one")
    if prefix in HUBS and format != prefix:
        raise HarnessError(f"--format {format} for {asked.checkpoint}", f"--format {prefix}, or none")
    return format


def _told(path: Path) -> str | None:
    """What a file or a folder says of itself: our own header, timm's config, a pipeline's."""
    from harness.released.files import metadata_of

    if OWN in metadata_of(path):
        return OWN
    if (path / "model_index.json").is_file():
        return "diffusers"
    try:
        words = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return next(
        (format for key, format in (("architecture", "timm"), ("_class_name", "diffusers")) if key in words), None
    )


# -- official state dicts ------------------------------------------------------------------------------------------


def _official(format: str, path: Path, asked: Asked) -> Loaded:
    from harness.config import plain
    from harness.evaluation import can
    from harness.released import files

    plugin, name = of_methods()[format]
    mapping = _import(name, plugin)
    weights = files.read(path)
    chosen = files.choose(weights, asked.weights)
    official = mapping.from_official(chosen.state)
    method = _built(plugin.name, official, asked.settings.get(plugin.name, {}))
    missing, unexpected = _leftovers(method, official, chosen)
    drawing = tuple(getattr(mapping, "DRAWING", ()))
    require_whole(weights.name, missing, drawing, [] if asked.allow_unexpected else unexpected)
    only_drawing = [name for name in missing if name.startswith(drawing)]
    notes = [*official.notes, *_by_hand(method.config, official.config, plugin.name)]
    draws, complete = can(method, "sample") and not only_drawing, getattr(mapping, "complete", None)
    if only_drawing:
        notes.append(f"cannot draw: {len(only_drawing)} tensors that only drawing needs are not in the file")
    elif draws and complete:
        notes.append("what drawing needs beside the file is estimated on training images of this data set, no gradient")
    notes += [f"left out of the file, as allowed: {first(unexpected)}"] if unexpected else []
    return Loaded(
        method,
        plugin.name,
        draws=draws,
        file=weights.name,
        sha256=weights.sha256,
        format=format,
        entry=chosen.entry,
        kind=chosen.kind,
        config=plain(method.config),
        classes=official.classes,
        missing=missing,
        unexpected=unexpected,
        notes=notes,
        recipe=stated(mapping.RECIPE) if hasattr(mapping, "RECIPE") else None,
        complete=complete,
    )


def _by_hand(config: Any, found: Any, name: str) -> list[str]:
    """A note on the settings that are not as the file or convention has them."""
    from harness.config import plain

    ours, theirs = plain(config), plain(found)
    changed = [f"{name}.{key}={value}" for key, value in ours.items() if value != theirs[key]]
    return [f"set by hand, whatever is said here of conventions: {', '.join(changed)}"] if changed else []


def stated(recipe: str) -> str:
    """What the published weights cost. Whether a file is one of those, its tensors do not tell."""
    return f"not declared; if these are the published weights, as their makers state it, {recipe}"


def _import(name: str, plugin: Plugin) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise HarnessError(
            f"the mapping of the method {plugin.name!r} cannot be imported: {type(error).__name__}: {error}",
            f"importing {name} to work",
        ) from error


def _built(name: str, official: Any, settings: dict[str, Any]) -> Method:
    """The method with the settings laid over what the file says, its tensors not yet in place."""
    from harness.config import override
    from harness.method import DataSpec

    config = override(official.config, settings, name)
    for key in official.kept:
        ours, theirs = attrgetter(key)(config), attrgetter(key)(official.config)
        if ours != theirs:
            raise HarnessError(
                f"{name}.{key}={ours} for tensors that were cut at {theirs}", "the file's own", "leave it out"
            )
    spec = DataSpec("released", official.channels, official.image_size, official.classes)
    try:
        method = load_method(name).create(config, spec)
    except HarnessError as error:
        if getattr(config, "vae", None) is None:
            raise
        raise HarnessError(
            error.found,
            error.expected,
            f"{name}.vae=FOLDER, a diffusers AutoencoderKL that makes the latents these weights were trained on",
        ) from error
    if method.preparation() is not None:
        raise HarnessError(
            f"{name}.vae={config.vae} is trained within a budget, and nothing is trained here",
            "the VAE that the weights were trained on",
            f"{name}.vae=FOLDER of a diffusers AutoencoderKL",
        )
    return method


def _leftovers(method: Method, official: Any, chosen: Chosen) -> tuple[list[str], list[str]]:
    """What the method lacks and what the file has too much, after the tensors are in place.

    Buffers that the file does not hold and the mapping does not miss are constants of the method. A frozen part (a
    VAE) has weights of its own.
    """
    lacking, strange = fill(method, official.state, "the tensors do not fit the settings", "the settings of the file")
    trained = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    missing = {*official.missing, *(trained & set(lacking))}
    return sorted(missing), sorted({*official.unexpected, *strange, *chosen.strange})


def fill(
    network: nn.Module, state: Mapping[str, Tensor], found: str, expected: str, next_step: str = ""
) -> tuple[list[str], list[str]]:
    """Put tensors in place; the names that are missing and those left over, sorted.

    Raises HarnessError with these words, torch's own after `found`, where a tensor has another shape than its place.
    """
    try:
        keys = network.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise HarnessError(f"{found}: {str(error).splitlines()[-1].strip()}", expected, next_step) from None
    return sorted(keys.missing_keys), sorted(keys.unexpected_keys)


def require_whole(file: str, missing: list[str], drawing: tuple[str, ...], unexpected: list[str]) -> None:
    lacking = [name for name in missing if not name.startswith(drawing)]
    if lacking:
        raise HarnessError(
            f"{file} lacks {len(lacking)} tensor(s) of the method: {first(lacking, LISTED)}",
            "all of them; only what is needed for drawing alone may be absent",
        )
    if unexpected:
        raise HarnessError(
            f"{file} has {len(unexpected)} tensor(s) that the method has no place for: {first(unexpected, LISTED)}",
            "none",
            "--allow-unexpected leaves them out and says so in the record",
        )


def first(names: list[str], count: int = 4) -> str:
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
