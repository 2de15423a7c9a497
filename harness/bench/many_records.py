"""A made-up study as large as a lab's year: every method, several data sets, sizes, budgets and seeds.

Each run has the records that `run` leaves today. Equal counts give equal bytes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from harness.ledger import ACCOUNTS
from harness.records import Cell, Cost, Environment, EvalRecord, Number, RunRecord, Spec, Spend, StudyRecord
from harness.records import TestOpened as Opened
from harness.store import Study

METHODS = ("umd", "lmd", "mae", "dit", "ddae", "difformer", "diffeed")
DATASETS = ("cifar10", "cifar100", "tiny-imagenet")
SIZES = ("nano", "s", "b")
BUDGETS = ("1gpu-h", "10gpu-h", "100gpu-h")
SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
TEST, QUICK, SAMPLES = 10_000, 2_000, 50_000
FULL = ("linear", "knn", "attentive", "finetune", "generation")
UNTRAINED = ("linear", "knn")
RECORDS_OF_A_RUN = 1 + len(FULL) + len(UNTRAINED) * (1 + len(SHARES))
REVISION = "f0a958a6ff46222c"
VERSIONS = dict.fromkeys(
    ("python", "torch", "torchvision", "timm", "diffusers", "accelerate", "numpy", "scipy"), "1.2.3"
)
MACHINE = Environment(
    device="Example GPU", devices=4, cpu_threads=16, precision="bf16", compiled=True, versions=VERSIONS, commit="5319b4"
)
COLUMNS = {  # title, table, better, digits of each eval's numbers, by their keys
    "linear": {"linear_top1": ("linear probe top-1 %", "representation", "higher", 1)},
    "knn": {
        "knn_top1": ("kNN top-1 %", "representation", "higher", 1),
        "knn_centred_top1": ("kNN (centred) top-1 %", "representation", "higher", 1),
    },
    "attentive": {
        f"{head}_top1": (f"{head} head top-1 %", "representation", "higher", 1)
        for head in ("linear", "attention", "fusion")
    },
    "finetune": {"finetune_top1": ("fine-tune top-1 %", "finetune", "higher", 1)},
    "generation": {
        "frechet_train": ("FID (inception, n=50000, train)", "generation", "lower", 2),
        "kernel_train": ("KD x1000 (inception, n=50000, train)", "generation", "lower", 2),
    },
}


def write_study(folder: Path, records: int) -> tuple[Study, int]:
    """Write at least `records` of them, whole seeds of all cells; the study and how many there are."""
    runs = len(_cells())
    return write_runs(folder, runs * -(-records // (runs * RECORDS_OF_A_RUN)))


def write_runs(folder: Path, runs: int) -> tuple[Study, int]:
    """Write that many, every method of a place before the next place, and all of a seed before the next.

    The study and how many records it has, with those of the references.
    """
    cells = _cells()
    study, rng, keys, count = Study(folder), np.random.default_rng(0), [], 0
    for i in range(runs):
        seed, at = divmod(i, len(cells))
        dataset, size, budget, method = cells[at]
        run = made_run(Cell(method=method, dataset=dataset, size=size, budget=budget, seed=seed))
        place = study.run(run.key)
        _write(place.record, run)
        for record in made_evals(run, rng):
            _write(place.evals(record.share or 0.0, record.cheap) / f"{record.eval}.json", record)
            count += 1
        keys.append(run.key)
    for dataset, size in dict.fromkeys((dataset, size) for dataset, size, *_ in cells[:runs]):
        for record in made_references(dataset, size, rng):
            where = study.reference(record.dataset, record.reference or "", record.size)
            _write(where / f"{record.eval}.json", record)
            count += 1
    request = {"seeds": -(-runs // len(cells))}
    (folder / "study.json").write_text(StudyRecord(request=request, keys=keys).model_dump_json())
    return study, count + len(keys)


def _cells() -> list[tuple[str, str, str, str]]:
    """Data set, size, budget and method of each cell, but for the seed."""
    return list(product(DATASETS, SIZES, BUDGETS, METHODS))


def made_run(cell: Cell) -> RunRecord:
    scale = (1 + SIZES.index(cell.size)) * float(cell.budget.removesuffix("gpu-h"))
    spend = Spend(
        wall_s=900 * scale,
        device_s=3600 * scale,
        flop=1e17 * scale,
        img=1e6 * scale,
        epoch=20 * scale,
        step=1e4 * scale,
    )
    parts = {f"{share:.4f}": Spend(**{k: v * share for k, v in spend.model_dump().items()}) for share in SHARES}
    config = {name: {f"option_{i}": i / 7 for i in range(10)} for name in ("net", "objective", "sampler")}
    return RunRecord(
        key=f"{cell.method}-{cell.dataset}-{cell.size}-{cell.budget}-s{cell.seed}-5df46d85",
        cell=cell,
        config=config | {"lr": 1.5e-4, "betas": [0.9, 0.95], "weight_decay": 0.05, "warmup": 0.05, "clip_norm": 1.0},
        train={"batch_size": 1024, "precision": "auto", "compile": True, "ema": True, "snapshots": list(SHARES[1:-1])},
        data_revision=REVISION,
        spec=Spec(channels=3, size=32, classes=10),
        state="finished",
        spend=spend.model_copy(update={"share": 0.9997}),
        snapshots=parts,
        ledger=dict.fromkeys(ACCOUNTS, 0.0) | {"train": 900 * scale, "compile": 41.5, "checkpoint": 3.25},
        cost=Cost(
            parameters=86_123_456, parameters_features=80_123_456, flop_train_img=5e10, flop_features_img=1e10,
            img_s=4321.5, mfu=0.41, peak_flop_s=4e15, peak_memory_bytes=30 * 2**30, outside_share=0.02,
        ),
        environment=MACHINE,
        final_loss=0.31,
        notes=[f"{cell.method}'s sampler is not from its paper."],
    )  # fmt: skip


def made_evals(run: RunRecord, rng: np.random.Generator) -> Iterator[EvalRecord]:
    """All full evals of the end, the cheap ones of every snapshot, and those of the untrained network."""
    for name in FULL:
        yield _eval(run, name, 1.0, False, rng)
    for name in UNTRAINED:
        yield _eval(run, name, 0.0, False, rng)
    for name, share in product(UNTRAINED, SHARES):
        yield _eval(run, name, share, True, rng)


def made_references(dataset: str, size: str, rng: np.random.Generator) -> Iterator[EvalRecord]:
    for name in FULL:
        reference = "real images" if name == "generation" else "raw pixels"
        yield _record(name, dataset, 30.0, False, rng, reference=reference, size=size)


def _eval(run: RunRecord, name: str, share: float, cheap: bool, rng: np.random.Generator) -> EvalRecord:
    level = 30 + 4 * METHODS.index(run.cell.method) + 20 * share + float(rng.normal())
    snapshot = f"{share:.4f}-e50d4cf56d7f009b.safetensors"
    about = {"key": run.key, "cell": run.cell, "share": share, "weights": "ema", "snapshot": snapshot}
    return _record(name, run.cell.dataset, level, cheap, rng, **about)


def _record(
    name: str, dataset: str, level: float, cheap: bool, rng: np.random.Generator, **about: object
) -> EvalRecord:
    n = SAMPLES if name == "generation" else QUICK if cheap else TEST
    opened = (
        [] if cheap or name == "generation" else [Opened(by=f"{name} on {dataset}", at="2025-01-02T03:04:05+00:00")]
    )
    return EvalRecord(
        eval=name,
        protocol=3,
        common=2,
        dataset=dataset,
        data_revision=REVISION,
        cheap=cheap,
        config={"taps": 4, "candidates": [1e-3, 1e-2, 1e-1], "chunk": 250},
        seed=0,
        numbers={key: _number(level, n, *column, rng) for key, column in COLUMNS[name].items()},
        chosen={"tap": "block3", "tap_scores": {f"block{i}": level - i for i in range(4)}},
        trials=14,
        test_opened=opened,
        pictures=["samples.png"] if name == "generation" else [],
        ledger={"select": 95.264, "evaluate": 9.992, "sample": 0.0},
        environment=MACHINE,
        **about,
    )


def _number(level: float, n: int, title: str, table: str, better: str, digits: int, rng: np.random.Generator) -> Number:
    """A number near `level`; of an accuracy also which images were right, so that it is their share."""
    about = {
        "title": title,
        "table": table,
        "better": better,
        "n": n,
        "digits": digits,
        "note": "chosen on held-out train",
    }
    if table == "generation":
        return Number(value=100 - level, **about)
    right = rng.random(n) < level / 100
    hits = base64.b64encode(np.packbits(right).tobytes()).decode()
    return Number(value=100 * float(right.mean()), hits=hits, **about)


def _write(path: Path, record: RunRecord | EvalRecord) -> None:
    """The bytes of `store.write` without its syncs: what a power cut does to made-up records is no matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record.model_dump(mode="json"), indent=1) + "\n")
