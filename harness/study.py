"""A study: what one `run` command asks for, read from words or a TOML file and checked before any work.

Reading and checking names imports no torch, so a typing mistake is answered at once.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.budget import parse_budget
from harness.config import override, plain
from harness.data.catalog import ENTRIES
from harness.errors import HarnessError, unknown
from harness.plugins import eval_plugins, method_plugins
from harness.records import Cell
from harness.train.settings import BATCH, TrainConfig

EVALS = ("linear", "knn", "generation")
ALIASES = {"evals": {"fid": "generation"}}  # names that the field says, and what they are here
LISTS = ("methods", "dataset", "size", "budget", "evals")
OWN = (*LISTS, "seeds", "name", "train")
RELEASED = "released weights"  # stands where a run's budget stands: trained elsewhere, on none of ours


@dataclass(frozen=True)
class Study:
    """The cells asked for and their settings. `overrides` holds the sections named after a method or an eval."""

    methods: tuple[str, ...]
    budget: tuple[str, ...]
    dataset: tuple[str, ...] = ("digits",)
    size: tuple[str, ...] = ("nano",)
    seeds: int = 1
    evals: tuple[str, ...] = EVALS
    name: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)

    def cells(self) -> Iterator[Cell]:
        """Every cell, methods innermost, so that the first comparison is whole as early as possible."""
        for dataset, size, budget, seed, method in itertools.product(
            self.dataset, self.size, self.budget, range(self.seeds), self.methods
        ):
            yield Cell(method=method, dataset=dataset, size=size, budget=str(parse_budget(budget)), seed=seed)

    def asked(self) -> dict[str, Any]:
        """The nested plain values that `build` makes this study from."""
        values = plain(self)
        return values | values.pop("overrides")

    def folder_name(self) -> str:
        """The study's folder: by default what all its cells share, so that more seeds or methods join the old ones."""
        if self.name:
            return self.name
        return slug("-".join([*self.dataset, *self.size, *self.budget]))


def slug(text: str) -> str:
    """`text` as a file name: letters, digits, dot and dash."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in text).strip("-.")[:120]


def build(asked: dict[str, Any]) -> Study:
    """A study from nested plain values (a TOML file, the command line). Raises HarnessError for anything unknown."""
    asked = _listed(asked)
    if not asked.get("methods"):
        raise HarnessError("no methods asked for", "at least one method", "for example: --methods umd,lmd,mae")
    if not asked.get("budget"):
        raise HarnessError("no budget asked for", "an amount and a unit", "for example: --budget 1min")
    sections = {k: v for k, v in asked.items() if k not in OWN}
    _check_names(asked, sections)
    # One spelling of a budget, so that `60 min` and `60min` are one cell in one folder.
    asked["budget"] = tuple(dict.fromkeys(str(parse_budget(text)) for text in asked["budget"]))
    study = _overridden(Study(methods=asked["methods"], budget=asked["budget"], overrides=sections), asked)
    if study.seeds < 1:
        raise HarnessError(f"seeds={study.seeds}", "at least 1 seed", "--seeds 3")
    return replace(study, train=override(study.train, _table("train", asked.get("train", {})), "train"))


def build_released(asked: dict[str, Any], section: str) -> Study:
    """A study of released weights: nothing is trained, so it has no methods and no budget. `section` is the network's.

    Raises HarnessError for anything unknown, and for settings of training.
    """
    asked = _listed(asked)
    sections = {k: v for k, v in asked.items() if k not in OWN}
    names = [*eval_plugins(), section]
    for name in [*sections, *(k for k in ("train", "seeds") if k in asked)]:
        if name not in names:
            raise unknown("setting", name, names, "nothing is trained here; settings are SECTION.KEY=VALUE")
        _table(name, sections[name])
    _check_names(asked | {"methods": (), "budget": ()}, {})
    return _overridden(Study(methods=(), budget=(RELEASED,), overrides=sections), asked)


def _listed(asked: dict[str, Any]) -> dict[str, Any]:
    asked = {k: v for k, v in asked.items() if v is not None}
    return asked | {key: _names(key, asked[key]) for key in LISTS if key in asked}


def _overridden(study: Study, asked: dict[str, Any]) -> Study:
    return override(study, {k: v for k, v in asked.items() if k in OWN and k not in ("methods", "budget", "train")})


def _names(key: str, value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Iterable) or not all(isinstance(p, str) for p in parts):
        raise HarnessError(f"{key}={value!r}", "names separated by commas", f"for example: {key}=a,b")
    known = ALIASES.get(key, {})
    return tuple(dict.fromkeys(known.get(name, name) for p in parts if (name := p.strip())))


def _table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HarnessError(f"{name}={value!r} is no section", f"{name}.KEY=VALUE")
    return value


def _check_names(asked: dict[str, Any], sections: dict[str, Any]) -> None:
    methods, evals = method_plugins(), eval_plugins()
    for name in asked["methods"]:
        if name not in methods:
            raise unknown("method", name, methods, "python -m harness list")
    for name in asked.get("evals", ()):
        if name not in evals:
            raise unknown("eval", name, evals, "python -m harness list")
    for name in asked.get("dataset", ()):
        if name not in ENTRIES and not name.startswith("folder:"):
            raise unknown("data set", name, [*ENTRIES, "folder:PATH"], "python -m harness data")
    for name in asked.get("size", ()):
        if name not in BATCH:
            raise unknown("size", name, BATCH)
    for text in asked["budget"]:
        parse_budget(text)
    for name, table in sections.items():
        if name not in methods and name not in evals:
            raise unknown("setting", name, [*OWN, *methods, *evals], "settings are SECTION.KEY=VALUE")
        _table(name, table)


def read_file(path: Path) -> dict[str, Any]:
    """A study file's values. Raises HarnessError when it is missing or is no TOML."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise HarnessError(f"no study file at {path}", "a TOML file", "see the README for an example") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path} is no TOML: {error}", 'lines like methods = ["umd", "mae"]') from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` laid over it, section by section."""
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged
