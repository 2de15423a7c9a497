"""What an eval may see: one checkpoint, the parts of the data, and the door to the test split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.evaluation.choose import Choice, best, ridge_top1
from harness.evaluation.features import Features, Images
from harness.evaluation.kept import InFiles
from harness.fitted import Fitted
from harness.ledger import Ledger
from harness.method import Method, Tap
from harness.protocol import COMMON
from harness.rng import Rng

if TYPE_CHECKING:
    from harness.data.dataset import Dataset, Part
    from harness.records import RunRecord, TestOpened

PartName = Literal["fit", "select", "train", "test"]

CHEAP = dict(COMMON.quick)  # images at most, on snapshots; their "test" is held-out train


class Context:
    """One checkpoint under evaluation; all its evals share one context, and so one extraction of features.

    Everything chosen is chosen inside `choosing()`, on the fit and select parts; the test part comes through
    `open_test()` only, after which nothing can be chosen by the eval that opened it. A cheap context, for snapshots,
    never touches the test split: it chooses on a third of select, and the rest stands for test.
    """

    def __init__(
        self,
        method: Method,
        data: Dataset,
        rng: Rng,
        *,
        pictures: Path,
        cache: Path,
        device: torch.device | str = "cpu",
        cheap: bool = False,
        precision: Literal["fp32", "bf16"] = "fp32",
        ledger: Ledger | None = None,
        run: RunRecord | None = None,
        load: Callable[[str], Dataset] | None = None,
        data_dir: Path | None = None,
        kept: Path | None = None,
        told: Callable[[TestOpened], None] = lambda look: None,
    ) -> None:
        if method.training:
            raise ValueError("the method is in training mode; call .eval() before evaluating it")
        self.method, self.data, self.rng = method, data, rng.to(device)
        self.pictures, self.cache = pictures, cache
        self.device, self.cheap, self.precision = torch.device(device), cheap, precision
        self.ledger = ledger or Ledger()
        self.run = run  # whose weights they are; None for a reference row
        self._load = load
        self.data_dir = data_dir  # where data are looked for; None: the usual places
        self._by = "nobody"
        self._door: list[Images] = []  # the test part once it is open; shared by all repeats
        self._looks_before = len(data.opened)
        self._others: dict[str, Context] = {}
        self._repeats: dict[int, Context] = {}
        self._loans: dict[str, Loan] = {}
        self._parts: dict[str, Images] = {}
        self._choices: dict[int, Choice] = {}
        self.kept = kept  # the folder of features, so that a killed evaluation goes on; None keeps them in memory
        self._told = told  # of every look at a test part, as it happens
        self._features = self._extractor(None)

    def begin(self, by: str) -> None:
        """A new eval starts; `by` is the name under which it opens the test split."""
        self._by, self._looks_before = by, len(self.data.opened)
        self._door.clear()
        for other in self.others():
            other.begin(by)
        for again in self._repeats.values():  # the door is theirs too
            again._by = by

    def repeat(self, number: int) -> Context:
        """This context under the eval's seed `number`: other noise, the same parts and choices. 0 is this one."""
        if number == 0:
            return self
        if number not in self._repeats:
            other = copy.copy(self)
            other.rng = self.rng.at("repeat", number)
            other._features = other._extractor(f"repeat-{number}")
            self._repeats[number] = other
        return self._repeats[number]

    def again(self) -> Context:
        """This context for a further reading within one eval, which chooses anew; its looks are recorded too."""
        other = copy.copy(self)
        other._door, other._repeats = [], {}
        return other

    def repeats(self, seeds: int, taps: Sequence[Tap]) -> list[Context]:
        """A context for each of an eval's `seeds`; this one alone where `taps` have no noise, or when cheap."""
        random = any(tap.noise is not None for tap in taps)
        return [self.repeat(number) for number in range(seeds if random and not self.cheap else 1)]

    def on(self, name: str) -> Context:
        """The same checkpoint on another data set, whose images are resized to the network's; made once.

        Raises HarnessError for a data set that is not here, or of other channels.
        """
        if name not in self._others:
            if self._load is None:
                raise HarnessError(f"no way to read {name!r} here", "a context that was made with `load`")
            data = self._load(name)
            other = Context(
                Fitted(self.method, data.spec).eval(),
                data,
                self.rng.at("on", data.spec.name),
                pictures=self.pictures,
                cache=self.cache,
                device=self.device,
                cheap=self.cheap,
                precision=self.precision,
                ledger=self.ledger,
                run=self.run,
                told=self._told,
                kept=self.kept and self.kept / f"on-{data.spec.name}-{data.revision[:16]}",
            )
            other.begin(self._by)
            self._others[name] = other
        return self._others[name]

    def borrow(self, data: Any) -> Loan:
        """Data of another kind than labelled images (masks, boxes), with `spec.name`, `revision`, `opened` and
        `open_test(by)`: what the record says of them, and their test part. Made once for each data set.
        """
        name = data.spec.name
        if name not in self._loans or self._loans[name].data is not data:
            if name in self._loans and self._loans[name].looks():
                raise HarnessError(f"two data sets are named {name!r}", "different names, as records go by them")
            self._loans[name] = Loan(data, self._by, self._told)
        return self._loans[name]

    def looks(self) -> list[TestOpened]:
        """How the eval that began last opened the test split."""
        return self.data.opened[self._looks_before :]

    def others(self) -> list[Context | Loan]:
        """The contexts of the other data sets that were asked for so far, and the data that were borrowed."""
        return [*self._others.values(), *self._loans.values()]

    def _extractor(self, below: str | None) -> Features:
        kept = self.kept and InFiles(self.kept / below if below else self.kept)
        return Features(self.method, self.rng, self.autocast, kept)

    # -- data ---------------------------------------------------------------------------------------------------

    def part(self, name: PartName) -> Images:
        """A part of the data in a fixed random order, a fixed subset of it when the context is cheap."""
        if name == "test":
            return self.open_test()
        if name not in self._parts:
            # What a cheap context is scored on is no part of its train.
            whole = self.data.fit if self.cheap and name == "train" else getattr(self.data, name)
            self._parts[name] = self._ordered(name, whole)
        return self._parts[name]

    def open_test(self) -> Images:
        """The test part. The first call of each eval goes through the data set's door, which records it.

        In a cheap context: the images of select that no choice was made on.
        """
        if not self._door:
            held_out = self.data.select if self.cheap else self.data.open_test(by=self._by)
            if not self.cheap:
                self._told(self.data.opened[-1])
            self._door.append(self._ordered("test", held_out))
        return self._door[0]

    def labels(self, part: PartName, limit: int | None = None) -> Tensor:
        """int64 [n], in the order of `features`."""
        return self.part(part).first(limit).labels

    def _ordered(self, name: str, part: Part) -> Images:
        # The key is fixed and not the run's: every method and seed sees the same subset in the same order.
        shared = self.cheap and name in ("select", "test")  # two ends of one order
        order = Rng(0).at("evaluation", "select" if shared else name).permutation("order", len(part.labels))
        if shared:
            border = round(COMMON.quick_choice * len(order))
            order = order[:border] if name == "select" else order[border:]
        limit = CHEAP.get(name) if self.cheap else None
        return Images(part.images, part.labels, order[:limit], self.device)

    # -- features -----------------------------------------------------------------------------------------------

    def features(self, taps: Sequence[Tap], part: PartName, limit: int | None = None) -> dict[Tap, Tensor]:
        """[n, D] float32 on the CPU per tap, for the first `limit` images of `part` (all for None).

        Raises HarnessError for features that are not finite or not [n, D].
        """
        return self._features.of(taps, part, self.part(part).first(limit))

    def maps(
        self, taps: Sequence[Tap], part: PartName, side: int, limit: int | None = None
    ) -> Iterator[dict[Tap, Tensor]]:
        """Chunk by chunk, [B, D, S, S] float16 on the CPU per tap with S at most `side`, in the order of `labels`.

        Not kept: maps of a whole part can be gigabytes.
        """
        return self._features.maps(taps, part, self.part(part).first(limit), side)

    def train_features(self, tap: Tap) -> tuple[Tensor, Tensor]:
        """Features [n, D] and labels [n] of fit and select together: all of train; less in a cheap context."""
        parts = ("fit", "select")
        whole, seen = None, 0
        for part in parts:
            images = self.part(part)
            for rows in self._features.chunks([tap], part, images):
                if whole is None:  # filled as it comes: two halves put together would take twice the memory
                    whole = torch.empty(sum(self.part(p).n for p in parts), rows[tap].shape[1])
                whole[seen : seen + len(rows[tap])] = rows[tap]
                seen += len(rows[tap])
        return whole, torch.cat([self.labels(part) for part in parts])

    # -- choosing -----------------------------------------------------------------------------------------------

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Time spent on a choice, booked to `select`. Raises HarnessError once this eval has opened the test split."""
        if self._door or any(loan.looks() for loan in self._loans.values()):
            raise HarnessError(
                f"{self._by}: a choice after the test split was opened",
                "every choice before the one test evaluation",
                "choose on context.part('select') and open the test split last",
            )
        with self.ledger.account("select"):
            yield

    def choose_tap(self, candidates: int = COMMON.candidates) -> Choice:
        """The best of the method's first `candidates` taps (0: of all) by ridge on select; made once, for all evals."""
        if candidates not in self._choices:
            taps = self.method.taps()[: candidates or None]
            with self.choosing():
                self._choices[candidates] = best(taps, self._scores(taps))
        return self._choices[candidates]

    def _scores(self, taps: Sequence[Tap]) -> list[float]:
        """Top-1 % on select per tap; a single candidate is scored too, so that every record shows the number."""
        keep = len(taps) <= COMMON.candidates  # a grid passes by, and only the tap that it chose is read again
        fit, select = self.part("fit").first(COMMON.choice_images), self.part("select")
        return ridge_top1(
            taps,
            self._features.chunks(taps, "fit", fit, keep),
            fit.labels,
            self._features.chunks(taps, "select", select, keep),
            select.labels,
            self.data.spec.classes,
        )

    # -- running ------------------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager:
        """Mixed precision for feature extraction and sampling, where the run asked for it."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


class Loan:
    """Data of another kind that an eval reads beside its own; their test part comes through `open_test` alone."""

    def __init__(self, data: Any, by: str, told: Callable[[TestOpened], None]) -> None:
        self.data, self._told = data, told
        self.begin(by)

    def begin(self, by: str) -> None:
        """A new eval starts, as for a context."""
        self._by, self._looks_before = by, len(self.data.opened)

    def open_test(self) -> Any:
        """The test part, through the data's own door."""
        test = self.data.open_test(by=self._by)
        self._told(self.data.opened[-1])
        return test

    def looks(self) -> list[TestOpened]:
        """How the eval that began last opened the test part."""
        return self.data.opened[self._looks_before :]
