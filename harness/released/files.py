"""Reading a checkpoint that others made: tensors only, and which of the networks in it is meant.

Nothing in a file is ever run. torch files are read with `weights_only`, arrays without pickles; what holds more than
tensors is refused, with lines that convert it where its maker is trusted.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from harness.errors import HarnessError

# Where training scripts keep a network, the average of its weights first.
EMA = ("ema", "EMA", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema_params")
RAW = ("model", "MODEL", "state_dict", "model_state_dict", "module", "net", "network", "params")
NO_CHECKPOINT = {
    b"<": "it is a web page",
    b"version https://git-lfs": "it is a Git LFS pointer, which stands for a file that was not fetched",
}
WRAPPERS = ("module.", "_orig_mod.")  # put before every name by data parallel and by torch.compile
CHOICES = ("ema", "raw")

SNIPPET = """\
import torch
def tensors(x):
    x = x.state_dict() if isinstance(x, torch.nn.Module) else x
    if isinstance(x, dict):
        kept = {k: tensors(v) for k, v in x.items() if k not in ("optimizer", "opt", "scaler")}
        return {k: v for k, v in kept.items() if v is not None}
    return x if isinstance(x, torch.Tensor) else None
whole = torch.load(%r, map_location="cpu", weights_only=False)  # runs whatever code the file holds
torch.save(tensors(whole), %r)
"""


@dataclass(frozen=True)
class Weights:
    """What a file holds: tensors by name, or a table of such tables."""

    name: str  # the file's, without its folder
    sha256: str
    content: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors file


def read(path: Path) -> Weights:
    """The tensors in `path` (safetensors, npz, or a torch file), on the CPU.

    Raises HarnessError for a file that is absent, damaged, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not there"
        raise HarnessError(f"the checkpoint {path} is {kind}", "a file of tensors (.safetensors, .pt, .pth, .npz)")
    readers = {".safetensors": _safetensors, ".npz": _arrays}
    content, metadata = readers.get(path.suffix, _torch)(path)
    return Weights(path.name, sha256_of(path), content, metadata)


def sha256_of(*paths: Path) -> str:
    """Over the bytes of the files, one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: total)
    return total.hexdigest()


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """For weights that are no single file here: over names, shapes, kinds and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def metadata_of(path: Path) -> dict[str, str]:
    """A safetensors file's own words, without its tensors; {} for any other file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with open(path, "rb") as file:
        try:
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            return dict(head.get("__metadata__", {}))
        except (ValueError, OverflowError, MemoryError):
            return {}  # `read` says what is wrong with it


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path), metadata_of(path)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _arrays(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    import numpy as np

    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            return {name: torch.from_numpy(np.array(found[name])) for name in found.files}, {}
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise _damaged(path, error) from None
        raise HarnessError(
            f"{path} holds Python objects beside its arrays; they are code when they are read, so it is not opened",
            "an .npz of plain arrays",
            "numpy.savez(NEW, **{name: array}) of the arrays alone, where you trust the file's maker",
        ) from None
    except (TypeError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise _damaged(path, error) from None


def _torch(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        foreign = _foreign(path, str(error))
        if foreign is None:
            raise _damaged(path, error) from None
        raise _refused(path, foreign) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from None
    if not isinstance(found, Mapping):
        raise HarnessError(f"{path} holds one {type(found).__name__}", "tensors by name")
    return found, {}


def _foreign(path: Path, message: str) -> str | None:
    """What in the file is no tensor, by name, without running it; None when it is the file that is broken."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of the older format, or of none
        reason = message.partition("WeightsUnpickler error:")[2]
        names = re.findall(r"(?:GLOBAL|class|function) ([A-Za-z_][\w.]*)", reason)
    return ", ".join(sorted(set(names))) or None


def _refused(path: Path, foreign: str) -> HarnessError:
    safe = str(path.with_name(f"{path.stem}-tensors.pth"))
    lines = "".join(f"    {line}\n" for line in SNIPPET.splitlines()) % (str(path), safe)
    return HarnessError(
        f"{path} holds more than tensors ({foreign}): opening it would run code from the file, so it stays closed",
        "tensors and plain values only",
        f"where you trust its maker, keep the tensors alone, and evaluate {safe}; in Python:\n{lines}",
    )


def _damaged(path: Path, error: Exception) -> HarnessError:
    """The reader's own words, or what the file is instead; torch's advice to open it with code is not passed on."""
    with open(path, "rb") as file:
        head = file.read(64).lstrip().lower()
    first = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
    what = next((said for start, said in NO_CHECKPOINT.items() if head.startswith(start)), first)
    return HarnessError(
        f"{path} cannot be read as a checkpoint: {what if head else 'it is empty'}",
        "a whole .safetensors, .pt, .pth or .npz",
        "fetch it again, and compare its size or checksum with what its makers state",
    )


# -- which network -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """One network's tensors out of a file, and where in it they were."""

    state: dict[str, Tensor]
    entry: str  # "" where the file is the state dict itself
    kind: Literal["ema", "raw"]  # "raw" also where the file does not say
    strange: list[str]  # names beside the tensors whose values are none


def choose(weights: Weights, wanted: str | None = None) -> Chosen:
    """The averaged weights where the file has them, else the raw ones; or the kind that is `wanted`.

    Raises HarnessError when there is none of that kind.
    """
    if wanted not in (None, *CHOICES):
        raise HarnessError(f"--weights {wanted}", f"one of {', '.join(CHOICES)}")
    content = _trees(weights.content)
    found = {"ema": _entry(content, EMA), "raw": _entry(content, RAW)}
    if found["ema"] is found["raw"] is None and any(isinstance(value, Tensor) for value in content.values()):
        found["raw"] = "", content
    kind = wanted or next((kind for kind in CHOICES if found[kind]), None)
    if kind is None or found[kind] is None:
        entries = ", ".join(map(str, list(content)[:8])) or "nothing"
        said = f"no {kind} weights" if kind else "no network"
        raise HarnessError(
            f"{said} in {weights.name}, which holds: {entries}", f"tensors by name, or under one of {', '.join(RAW)}"
        )
    entry, inner = found[kind]
    state = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    return Chosen(_unwrapped(state), entry, kind, sorted(map(str, inner.keys() - state.keys())))


def _trees(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Names that are paths, as of a Flax training state, as a table for each tree; anything else as it is."""
    if not {str(name).partition("/")[0] for name in content} & {"params", "ema_params"}:
        return content
    trees: dict[str, Any] = {}
    for name, value in content.items():
        tree, slash, rest = str(name).partition("/")
        if slash:
            trees.setdefault(tree, {})[rest] = value
        else:
            trees[tree] = value
    return trees


def _entry(content: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Mapping[str, Any]] | None:
    for name in names:
        inner = content.get(name)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return name, inner
    return None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
