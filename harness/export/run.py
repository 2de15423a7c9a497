"""A run's folder as a method with its weights, and the command that writes it in a form that others load."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import checkpoint, machine, store
from harness.config import override
from harness.data.catalog import ENTRIES, find_entry
from harness.errors import HarnessError, unknown
from harness.method import DataSpec, Method, Tap
from harness.plugins import find, load_method
from harness.records import RunRecord
from harness.store import RunFolder

FORMS = ("safetensors", "timm", "diffusers")


@dataclass(frozen=True)
class Exported:
    """What was written, and how it is loaded: lines to show."""

    path: Path
    lines: list[str]


def export_run(run: Path, to: str, out: Path | None = None, share: float = 1.0, tap: str | None = None) -> Exported:
    """Write the weights of the run in the folder `run` (or of the one run of a study) in the form `to`.

    Raises HarnessError where the run is not there, or cannot be written so.
    """
    if to not in FORMS:
        raise unknown("form", to, FORMS, "for example: --to timm")
    if tap is not None and to != "timm":
        raise HarnessError(f"--tap {tap} for {to}", "a tap for --to timm only", "leave it out")
    folder = _folder(run)
    record = store.read_as(RunRecord, folder.record)
    method = restored(folder, record, share)
    place = out or Path(f"{record.key}.safetensors" if to == "safetensors" else f"{record.key}-{to}")
    if to == "safetensors":
        from harness.released import own

        if place.suffix != ".safetensors":
            raise HarnessError(
                f"--out {place} for safetensors", "a name by which it is known", f"--out {place}.safetensors"
            )
        if place.exists():
            raise HarnessError(f"{place} is there already", "a file to be made", "remove it, or --out ANOTHER")
        own.write(place, method, record.cell.method, _about(record, share))
        return Exported(
            place, [f"python -m harness eval --checkpoint {shlex.quote(str(place))} --dataset {record.cell.dataset}"]
        )
    if place.exists():
        raise HarnessError(f"{place} is there already", "a folder to be made", f"remove it, or --out ANOTHER for {to}")
    write = _writer(record.cell.method, method, f"to_{to}")
    if to == "timm":
        from harness.export.to_timm import write_timm

        return Exported(place, write_timm(place, method, _tap(method, tap), write, _about(record, share)))
    from harness.export.to_diffusers import write_diffusers

    return Exported(place, write_diffusers(place, method, write))


def restored(folder: RunFolder, record: RunRecord, share: float) -> Method:
    """The run's method with its weights at a share of the budget, in eval mode."""
    if record.released:
        raise HarnessError(
            f"{record.key} are released weights: nothing of them is kept here", "a run", "their own file"
        )
    path = checkpoint.find_snapshot(folder.snapshots, share)
    if path is None:
        kept = sorted(p.name.partition("-")[0] for p in folder.snapshots.glob("*.safetensors"))
        raise HarnessError(
            f"the run {record.key} ({record.state}) has no weights at {share:g} of its budget",
            f"a share among {', '.join(kept) or 'none: nothing is kept yet'}",
            "--share SHARE",
        )
    kind = load_method(record.cell.method)
    method = kind.create(override(kind.Config(), record.config, record.cell.method), _spec(record))
    method.load_state_dict(checkpoint.load_snapshot(path))
    return method.requires_grad_(False).eval()


def _spec(record: RunRecord) -> DataSpec:
    """The images that the run was trained on; an old record has the data set's name only."""
    dataset = record.cell.dataset
    if record.spec is not None:
        return DataSpec(dataset, **record.spec.model_dump())
    if dataset not in ENTRIES:
        raise HarnessError(
            f"the run was trained on {dataset}, and its record does not say of which size and how many classes",
            f"a record that does, or one of the data sets {', '.join(ENTRIES)}",
        )
    entry = find_entry(dataset)
    return DataSpec(entry.name, entry.channels, entry.size, entry.classes)


def _folder(path: Path) -> RunFolder:
    """The run's folder, or that of a study's one run."""
    if (path / "run.json").is_file():
        return RunFolder(path)
    runs = sorted(record.parent for record in path.glob("runs/*/run.json"))
    if len(runs) == 1:
        return RunFolder(runs[0])
    found = f"{len(runs)} runs in {path}: {', '.join(p.name for p in runs)}" if runs else f"no run in {path}"
    raise HarnessError(
        found, "one run's folder", f"for example: {runs[0]}" if runs else "STUDY/runs/KEY, as `run` made it"
    )


def _about(record: RunRecord, share: float) -> dict[str, Any]:
    """Where the weights come from, for the header of what is written."""
    cell = record.cell
    at = "" if share == 1.0 else f", at {share:g} of it"
    return {
        "run": record.key,
        "share": share,
        "weights": "ema" if record.train.get("ema") else "raw",
        "commit": machine.commit(),
        "cost": f"a run of this harness: {cell.budget} on {cell.dataset}, seed {cell.seed}{at}",
        "notes": record.notes,
    }


def _writer(name: str, method: Method, what: str) -> Callable[..., Any]:
    """The method's own way to the other form."""
    form = what.removeprefix("to_")
    if form == "timm" and getattr(method, "vae", None) is not None:
        raise HarnessError(
            f"this {name} reads the latents of a VAE, and a timm encoder reads pixels", "a method on pixels"
        )
    plugin = find("method", method.pretrained_as or name)  # who reads a pre-training has the network of its source
    module = f"{plugin.module.rpartition('.')[0]}.export"
    has = plugin.folder is not None and (plugin.folder / "export.py").is_file()
    write = getattr(importlib.import_module(module), what, None) if has else None
    if write is None:
        raise HarnessError(
            f"{name} cannot be written for {form}",
            f"{what} in methods/{name}/export.py",
            "--to safetensors always works",
        )
    return write


def _tap(method: Method, name: str | None) -> Tap:
    clean = [tap for tap in method.taps() if tap.noise is None]
    if not clean:
        raise HarnessError("every tap of this method is at a noise level, which a timm encoder has not", "a clean tap")
    if name is None:
        return clean[0]
    for tap in clean:
        if str(tap) == name:
            return tap
    raise unknown("tap", name, map(str, clean), "taps with a noise level cannot be a timm encoder")
