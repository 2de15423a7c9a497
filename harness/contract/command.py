"""`harness check`: the promises of one method, in a table, with what to change where one is broken."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError, unknown
from harness.plugins import card, find, load_method

if TYPE_CHECKING:
    from harness.contract.promises import Outcome, Promise
    from harness.contract.subject import Subject

STYLES = {"kept": "green", "broken": "bold red", "skipped": "yellow"}


def run(method: str, only: str | None, dataset: str, size: str, data_dir: Path | None) -> int:
    """Check and report. Returns 1 where a promise is broken. `method` is a name, or the folder of a method.

    Raises HarnessError for what cannot be checked: an unknown name, size, data set or promise.
    """
    from rich.console import Console

    from harness.contract.promises import PROMISES, check

    chosen = _chosen(only, PROMISES)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="check-") as out:
        subject = subject_of(named(method), dataset, size, data_dir, Path(out))
        outcomes = []
        with console.status("checking") as status:
            for promise in chosen:
                status.update(f"checking that {promise.title}")
                outcomes.append(check(promise, subject))
    console.print(_table(f"{subject.name} on {subject.spec.name} at {size}", outcomes))
    for same in _by_fault(outcomes):
        names = ", ".join(outcome.promise.name for outcome in same)
        console.print(f"\nBROKEN    {names}", style=STYLES["broken"], soft_wrap=True)
        for word, text in _told(same).items():
            text = text.replace("\n", "\n" + " " * 11)
            console.print(f"  {word + ':':<9}{text}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{_summary(outcomes)}", highlight=False)
    return int(any(outcome.state == "broken" for outcome in outcomes))


def _by_fault(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """The broken promises, those that one error of the method broke together."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.state == "broken":
            found.setdefault(outcome.fault or outcome.found, []).append(outcome)
    return list(found.values())


def _told(same: list[Outcome]) -> dict[str, str]:
    """What is said of promises that one error broke: the error once, as what each would have checked is not known."""
    first = next((outcome for outcome in same if outcome.promise.name == "loss"), same[0])  # the plainest to read
    if len(same) == 1:
        return {"promise": first.promise.title, "found": first.found, "change": first.change}
    return {
        "found": first.found,
        "change": f"{first.change}. It is one error: the {len(same)} promises are looked at when it is mended",
    }


def _chosen(only: str | None, promises: dict[str, Promise]) -> list[Promise]:
    names = list(promises) if only is None else [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in promises:
            raise unknown("promise", name, promises, "for example: --only loss,samples")
    if not names:
        raise HarnessError("--only names no promise", f"some of {', '.join(promises)}", "--only loss")
    return [promise for name, promise in promises.items() if name in names]


def named(method: str) -> str:
    """The name of a method; a folder that is none of the installed ones becomes one for this process."""
    import methods

    place = Path(method)
    if place.name == method and not (place / "method.py").is_file():
        return method
    if not (place / "method.py").is_file():
        raise HarnessError(f"no method.py in the folder {method}", "the folder of a method", "or its name alone")
    place = place.resolve()
    if not place.name.isidentifier():
        raise HarnessError(f"the folder {place.name} is no Python name", "a folder that can be imported", "rename it")
    if str(place.parent) not in methods.__path__:
        methods.__path__.append(str(place.parent))
    found = find("method", place.name).folder
    if found is None or found.resolve() != place:
        raise HarnessError(
            f"there is another method {place.name}, in {found}", "a name of its own", "rename the folder"
        )
    return place.name


def subject_of(name: str, dataset: str, size: str, data_dir: Path | None, out: Path) -> Subject:
    """The method, imported behind a closed network, with its data set."""
    plugin = find("method", name)
    from harness.contract import closed
    from harness.contract.subject import Subject
    from harness.data import dataset as data

    refused: list[str] = []
    with closed.network(plugin.folder, refused):
        cls, about = load_method(name), card(name)
    if size not in cls.sizes:
        raise HarnessError(
            f"{name} has no size {size!r}", f"one of {', '.join(cls.sizes)}", f"--size {(*cls.sizes, 'nano')[0]}"
        )
    return Subject(
        name, cls, about, plugin.folder, data.load(dataset, data_dir), out, size, _files(dataset, data_dir), refused
    )


def _files(dataset: str, data_dir: Path | None) -> tuple[Path, ...]:
    """Where the data set lies, to be closed while the method trains."""
    from harness.data import arrays, catalog

    where = catalog.resolve(dataset, data_dir).where
    return (arrays.digits_file() if where is None else where,)


def _table(title: str, outcomes: Sequence[Outcome]):
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    table.add_column("promise", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    table.add_column("s", justify="right", no_wrap=True)
    for o in outcomes:
        found = o.found if o.state != "broken" else "see below"
        table.add_row(o.promise.name, Text(o.state, STYLES[o.state]), Text(found), f"{o.seconds:.1f}")
    return table


def _summary(outcomes: Sequence[Outcome]) -> str:
    counts = {state: sum(o.state == state for o in outcomes) for state in STYLES}
    return f"{counts['kept']} kept, {counts['broken']} broken, {counts['skipped']} skipped as they do not apply"
