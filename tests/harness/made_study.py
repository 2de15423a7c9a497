"""A made-up study: three methods, two seeds, one diverged and one running cell; and how tests read its tables."""

from __future__ import annotations

from pathlib import Path

from harness import store
from harness.files import write_atomic
from harness.ledger import ACCOUNTS
from harness.records import Borrowed, Cell, Cost, Environment, EvalRecord, Number, RunRecord, Spend, StudyRecord
from harness.records import TestOpened as Opened
from harness.report.layout import Section, Table
from harness.report.tables import build
from harness.store import Study

GOLDEN = Path(__file__).parents[1] / "golden" / "tables"
ENVIRONMENT = Environment(device="Example CPU", devices=1, cpu_threads=2, precision="fp32", versions={"torch": "2.11"})
COST = Cost(
    parameters=1_234_567,
    parameters_features=1_000_000,
    flop_train_img=123.4e6,
    flop_features_img=40.1e6,
    img_s=812.3,
    peak_memory_bytes=700 * 2**20,
    outside_share=0.021,
)


def made_run(method: str, seed: int, **changes: object) -> RunRecord:
    cell = Cell(method=method, dataset="digits", size="nano", budget="1min", seed=seed)
    ledger = dict.fromkeys(ACCOUNTS, 0.0) | {"train": 59.8, "checkpoint": 0.4, "compile": 3.25}
    run = RunRecord(
        key=f"{method}-{seed}",
        cell=cell,
        config={"mask_ratio": 0.75},
        train={"batch_size": 128},
        data_revision="1a2b3c",
        state="finished",
        spend=Spend(wall_s=59.8 + seed / 10, flop=6e12, img=48_000, share=0.9967 + seed / 600),
        snapshots={f"{s:.4f}": Spend(flop=6e12 * s, img=48_000 * s, share=s) for s in (0.0, 0.125, 0.25, 0.5, 1.0)},
        ledger=ledger,
        cost=COST,
        environment=ENVIRONMENT,
        final_loss=0.31,
    )
    return run.model_copy(update=changes)


def made_eval(run: RunRecord | None, name: str, value: float, share: float = 1.0, **changes: object) -> EvalRecord:
    numbers = {
        "linear": Number(value=value, title="linear top-1 %", table="representation", better="higher", n=360),
        "knn": Number(value=value, title="kNN top-1 %", table="representation", better="higher", n=360),
        "generation": Number(
            value=value,
            title="FD (small classifier, digits)",
            table="generation",
            better="lower",
            n=1024,
            digits=2,
            note="distance on a small classifier, no Inception weights",
        ),
    }
    record = EvalRecord(
        eval=name,
        protocol=1,
        dataset="digits",
        data_revision="1a2b3c",
        key=run.key if run else None,
        cell=run.cell if run else None,
        share=share if run else None,
        config={},
        seed=0,
        numbers={"value": numbers[name]},
        chosen={"tap": "block3"} if name != "generation" else {},
        trials=10 if name == "linear" else 1,
        test_opened=[Opened(by=name, at="2025-01-02T03:04:05Z")],
        pictures=["samples.png"] if name == "generation" and share == 1.0 else [],
        ledger={"evaluate": 1.5, "select": 2.25} if name == "linear" else {"evaluate": 0.5},
    )
    return record.model_copy(update=changes)


def made_study() -> tuple[list[RunRecord], list[EvalRecord]]:
    """UMD good, LMD with a diverged seed and a loan, MAE below raw pixels in kNN and with a running seed."""
    drawn = "sampling is not from the paper"
    loan = Borrowed(what="tiny VAE", parameters=2_445_063, cost="not stated")
    runs = [
        made_run("umd", 0),
        made_run("umd", 1),
        made_run("lmd", 0, borrowed=[loan], notes=[drawn]),
        made_run("lmd", 1, state="diverged", message="non-finite loss at step 12", cost=None),
        made_run("mae", 0, notes=[drawn]),
        made_run("mae", 1, state="running", spend=Spend(wall_s=24, share=0.4), cost=None),
    ]
    values = {"umd-0": (91.4, 93.1, 8.4), "umd-1": (92.6, 93.3, 8.1), "lmd-0": (88.2, 95.0, 21.7)}
    values["mae-0"] = (90.3, 89.9, 55.125)
    evals = []
    for run in runs:
        names = ("linear", "knn", "generation")
        for name, value in zip(names, values.get(run.key, ()), strict=False):
            evals.append(made_eval(run, name, value))
            if name != "generation":
                evals.append(made_eval(run, name, value - 30, share=0.0))
                evals += [made_eval(run, name, value * s - 5, share=s, cheap=True) for s in (0.125, 0.5, 1.0)]
    evals += [made_eval(None, "linear", 87.5, reference="raw pixels", chosen={})]
    evals += [made_eval(None, "knn", 94.2, reference="raw pixels", chosen={})]
    evals += [made_eval(None, "generation", 0.75, reference="real images", size="nano", pictures=["real.png"])]
    return runs, evals


def write_study(folder: Path, runs: list[RunRecord], evals: list[EvalRecord]) -> Study:
    study = Study(folder)
    for run in runs:
        store.write(study.run(run.key).record, run)
    for record in evals:
        store.write(study.holding(record) / f"{record.eval}.json", record)
    asked = StudyRecord(request={}, keys=[run.key for run in runs])
    write_atomic(folder / "study.json", asked.model_dump_json())
    return study


def texts(section: Section) -> dict[str, list[str]]:
    """Rows by label, without the label."""
    return {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in section.rows}


def cells(table: Table, label: str) -> dict[str, str]:
    """The one row of that label over all sections, by column."""
    found = [
        dict(zip([c.title for c in s.columns], [c.text for c in row.cells], strict=True))
        for s in table.sections
        for row in s.rows
        if row.cells[0].text == label
    ]
    assert len(found) == 1, (label, len(found))
    return found[0]


def table(title: str, runs: list[RunRecord], evals: list[EvalRecord]) -> Table:
    return next(t for t in build(runs, evals) if t.title == title)
