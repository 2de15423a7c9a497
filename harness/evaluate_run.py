"""Evaluating a finished run's snapshots, and the reference rows that stand in every table.

The final weights and the untrained ones (share 0) get the full evals; every snapshot gets the cheap ones, which make
the anytime curve. What has a record with the same settings and protocol is not done again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import checkpoint, machine, store
from harness.config import plain
from harness.data.dataset import Dataset
from harness.display import Display
from harness.errors import HarnessError
from harness.evaluation import Context, Subject, can, evaluate
from harness.ledger import Ledger
from harness.method import Method
from harness.plugins import load_eval
from harness.records import EvalRecord
from harness.resolve import Job, eval_config
from harness.rng import Rng
from harness.store import RunFolder
from harness.study import Study

FULL = (0.0, 1.0)


def evaluate_run(job: Job, study: Study, study_folder: store.Study, display: Display) -> None:
    """Whatever evals of the study this run lacks."""
    folder = study_folder.run(job.key)
    configs = {name: eval_config(study, name, job.cell.size) for name in study.evals}
    shares = sorted({*FULL, *job.train.snapshots})
    for share, cheap in [(s, False) for s in FULL] + [(s, True) for s in shares]:
        place = folder.evals(share, cheap)
        missing = [name for name in configs if not _is_done(place / f"{name}.json", name, configs[name])]
        missing = [name for name in missing if _applies(name, job.method_class, share, cheap)]
        if not missing:
            continue
        display.phase(
            job.label,
            f"evaluating {', '.join(missing)} at {share:g} of budget" + (" (quick)" if cheap else ""),
        )
        method = _load(job, folder, share)
        context = _context(method, job.data, job.cell.seed, place, study_folder.cache(), cheap)
        subject = Subject(job.cell, job.key, None, share, "ema" if job.train.ema else "raw")
        for name in missing:
            _run_eval(name, context, configs[name], subject, place)


def _applies(name: str, method: type[Method], share: float, cheap: bool) -> bool:
    """An untrained network is compared in recognition only, and a snapshot is too short of samples to be drawn from."""
    needs = load_eval(name).NEEDS
    return needs == "features" or (share == 1.0 and not cheap and callable(getattr(method, needs, None)))


def _is_done(path: Path, name: str, config: Any) -> bool:
    """Whether a record of the same settings and protocol is there."""
    if not path.exists():
        return False
    found = store.read_as(EvalRecord, path)
    return found.config == plain(config) and found.protocol == load_eval(name).PROTOCOL


def _load(job: Job, folder: RunFolder, share: float) -> Method:
    """The method with a snapshot's weights, ready to be evaluated."""
    path = checkpoint.find_snapshot(folder.snapshots, share)
    if path is None:
        raise HarnessError(
            f"the run {job.key} has no snapshot at {share:g} of its budget",
            f"a file {share:.4f}-*.safetensors in {folder.snapshots}",
            f"delete {folder.path} and repeat the command",
        )
    method = job.build()
    method.load_state_dict(checkpoint.load_snapshot(path))
    return method.requires_grad_(False).eval().to(machine.device())


def _context(method: Method, data: Dataset, seed: int, place: Path, cache: Path, cheap: bool) -> Context:
    device = machine.device()
    return Context(
        method,
        data,
        Rng(seed).at("evaluate"),
        pictures=place,
        cache=cache,
        device=device,
        cheap=cheap,
        precision="bf16" if device.type == "cuda" else "fp32",
        ledger=Ledger(),
    )


def _run_eval(name: str, context: Context, config: Any, subject: Subject, place: Path) -> None:
    environment = machine.environment(context.precision, compiled=False)
    record = evaluate(name, context, config, subject=subject, environment=environment)
    if record is not None:
        store.write(place / f"{name}.json", record)


def evaluate_references(data: Dataset, study: Study, place: store.Study, display: Display) -> None:
    """The rows every table needs beside the methods: raw pixels, and real images drawn instead of samples."""
    from evals._references import REFERENCES

    for title, reference in REFERENCES.items():
        folder = place.reference(data.spec.name, title)
        configs = {n: eval_config(study, n, study.size[0]) for n in study.evals if can(reference, load_eval(n).NEEDS)}
        missing = {n: c for n, c in configs.items() if not _is_done(folder / f"{n}.json", n, c)}
        if not missing:
            continue
        display.phase(f"{title} {data.spec.name}", f"evaluating {', '.join(missing)}")
        method = reference(data).eval().to(machine.device())
        context = _context(method, data, 0, folder, place.cache(), cheap=False)
        for name, config in missing.items():
            _run_eval(name, context, config, Subject(reference=title), folder)
