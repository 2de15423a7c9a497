"""Records: what a run or an eval leaves behind. Plain JSON with a schema version, validated on reading.

Tables and pages are pure functions of these; anything a fair reader needs stands here (design.md). A field is added
with a default, so that old records still load; a changed meaning raises SCHEMA and gets an upgrade in `read`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1
State = Literal["queued", "running", "interrupted", "finished", "diverged", "failed"]
ENDED = ("finished", "diverged")  # what is not tried again


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Cell(Model):
    """One point of a study."""

    method: str
    dataset: str
    size: str
    budget: str
    seed: int

    @property
    def label(self) -> str:
        return f"{self.method} {self.dataset} {self.size} {self.budget} seed {self.seed}"


class Environment(Model):
    """Where a run ran."""

    device: str  # model name of the device
    devices: int
    cpu_threads: int
    precision: str
    compiled: bool = False
    versions: dict[str, str]
    commit: str | None = None


class Cost(Model):
    """Size and price of the method's network, measured."""

    parameters: int  # trained in pre-training
    parameters_features: int  # that the default features pass through
    parameters_frozen: int = 0  # borrowed or prepared (a VAE)
    flop_train_img: float | None  # forward and backward per image, mean over the budget; None: trained elsewhere
    flop_features_img: float  # forward of the default features per image
    img_s: float | None = None  # images per second of train time
    mfu: float | None = None  # share of `peak_flop_s` that forward and backward used in train time
    peak_flop_s: float | None = None  # of all devices together, in the run's precision; None: nobody states it
    peak_memory_bytes: int | None = None
    energy_j: float | None = None  # of charged time, gross; None where any part of it was not readable
    energy_source: str | None = None  # the counters it is the sum of
    outside_share: float | None = None  # of charged time outside forward, backward, optimizer step


class Spend(Model):
    """The meter at the record's moment, and how it stands to the budget."""

    wall_s: float = 0.0
    device_s: float = 0.0
    flop: float = 0.0
    img: float = 0.0
    epoch: float = 0.0
    step: float = 0.0
    share: float = 0.0  # spent / budget


class Borrowed(Model):
    """Compute spent elsewhere that a method starts from."""

    what: str
    parameters: int | None = None
    cost: str | None = None  # as far as its makers state it


class Released(Model):
    """Weights that were trained elsewhere, on no budget of ours."""

    file: str  # its name without a folder, or the name on a hub
    sha256: str  # of the file; of the tensors where they are no single file here
    format: str
    entry: str = ""  # of the file that was taken; "" is the file itself
    weights: Literal["ema", "raw"] = "raw"
    channels: int  # of the network's images
    image_size: int  # px of the network's images
    classes: int = 0  # labels that the weights know of; 0 also where the file cannot say
    missing: list[str] = []  # tensors of the method that the file does not hold
    unexpected: list[str] = []  # and those of the file that the method has no place for


class Spec(Model):
    """The images that a method was built for: a `DataSpec` without the name, which the cell has."""

    channels: int
    size: int  # px
    classes: int


class RunRecord(Model):
    kind: Literal["run"] = "run"
    schema_version: Literal[1] = 1
    key: str
    cell: Cell
    config: dict[str, Any]  # the method's, resolved
    train: dict[str, Any]  # the training settings, resolved
    data_revision: str
    spec: Spec | None = None  # None: a record of before this was written down, or released weights
    state: State
    message: str | None = None
    attempts: int = 1
    spend: Spend = Spend()
    snapshots: dict[str, Spend] = {}  # by share of the budget: the meter when the snapshot was taken
    ledger: dict[str, float] = {}
    cost: Cost | None = None
    environment: Environment | None = None
    borrowed: list[Borrowed] = []
    saw_labels: bool = False  # in pre-training; what is trained with labels afterwards is evaluation
    final_loss: float | None = None
    shared: str | None = None  # key of the run that did this pre-training; what it spent stands here in full
    notes: list[str] = []  # footnotes for tables, from the method's card
    released: Released | None = None  # None: pre-trained by the harness


class Number(Model):
    """One named result, self-describing, so that tables need not know the eval that made it."""

    value: float  # the mean where the eval was repeated
    title: str  # the column, for example "linear top-1 %"
    table: Literal["representation", "finetune", "transfer", "dense", "generation", "cost"]
    better: Literal["higher", "lower"]
    n: int  # test images or samples behind it
    values: list[float] = []  # one for each of the eval's own seeds; a single one where nothing in it is random
    half: float | None = None  # half-width of their 95 % t-interval; None for a single one
    digits: int = 1  # decimals that the n supports
    note: str | None = None
    hits: str | None = None  # of an accuracy: which test images were guessed right (harness/hits.py)


class TestOpened(Model):
    by: str
    at: str  # ISO 8601, UTC


class EvalRecord(Model):
    kind: Literal["eval"] = "eval"
    schema_version: Literal[1] = 1
    eval: str
    protocol: int  # the eval's own
    common: int | None = None  # of the protocol that all evals share; None: from before it had a version
    dataset: str
    data_revision: str
    others: dict[str, str] = {}  # revisions of further data sets that it read, by name (transfer)
    key: str | None = None  # the run's, None for a reference row
    cell: Cell | None = None
    reference: str | None = None  # "raw pixels", "real images": rows that are no run
    size: str | None = None  # of a reference row: the size whose eval settings it has
    share: float | None = None  # of the budget at which the snapshot was taken; 0 is the untrained network
    cheap: bool = False  # a quick subset for the anytime curve, never shown beside full evals
    weights: Literal["ema", "raw", "none"] = "none"
    snapshot: str | None = None  # the evaluated file, whose name carries its checksum
    config: dict[str, Any]
    seed: int
    numbers: dict[str, Number]
    chosen: dict[str, Any] = {}  # what was selected, on the select part
    trials: int = 1  # how many candidates it was selected from
    test_opened: list[TestOpened] = []
    pictures: list[str] = []  # files beside the record
    shared: str | None = None  # key of the run it was evaluated on: the same weights, read in the same way
    ledger: dict[str, float] = {}  # seconds: select, evaluate, sample
    notes: list[str] = []
    environment: Environment | None = None


class StudyRecord(Model):
    """What a `run` command asked for, and the runs that answer it."""

    kind: Literal["study"] = "study"
    schema_version: Literal[1] = 1
    request: dict[str, Any]
    keys: list[str]


Record = Annotated[RunRecord | EvalRecord, Field(discriminator="kind")]


def state_line(record: RunRecord) -> str:
    """How a run ended: `finished at 99.98% of budget, loss 0.1234`."""
    if record.state != "finished":
        return f"{record.state}: {record.message}"
    return f"finished at {record.spend.share:.2%} of budget, loss {record.final_loss:.4f}"
