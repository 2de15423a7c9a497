"""What a method promises of its card: what tables need is there, and what it says is so."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from harness import sizes
from harness.config import override, parse_words
from harness.contract import closed
from harness.contract.building import SHAPES
from harness.contract.subject import Broken, NotApplicable, Subject, listed, prepared
from harness.errors import HarnessError, said
from harness.evaluation import can
from harness.plugins import load_method, method_plugins
from harness.records import Borrowed
from harness.report.format import count

NEEDED = {
    "title": str, "paper": str, "year": int, "arxiv": str, "idea": str, "space": str, "sampling": str, "notes": list,
    "capabilities": dict,
}  # fmt: skip
EMPTY = {str: '""', int: "2024", list: "[]", dict: "{}"}
NO_SAMPLER = "none"  # what `sampling` says of a method that cannot draw
PUBLISHED = {"model", "dataset", "metric", "value", "protocol", "source"}
VERBS = {"features": "features", "sample": "sample", "labels": "labelled"}
COSTS = ("parameters", "forward_flop", "features_flop")  # of sizes.Measure
RESOLUTION = 32  # px, colour
WITHIN = 0.02  # of what is measured
BORROWED = 0.1  # of the trained parameters: frozen ones beyond are no table of positions, but someone's network


def card(subject: Subject) -> str:
    about = subject.card
    wrong = {key: kind for key, kind in NEEDED.items() if not isinstance(about.get(key), kind)}
    if wrong:
        lines = "\n".join(f"{key} = {EMPTY[kind]}" for key, kind in wrong.items())
        raise Broken(
            f"the card lacks {', '.join(f'{key} ({kind.__name__})' for key, kind in wrong.items())}",
            f"write into card.toml, above its first [section], with what is so:\n{lines}",
        )
    if about["space"] not in ("pixels", "latents"):
        raise Broken(f'the card says space = "{about["space"]}"', 'write "pixels" or "latents"')
    able = {what: can(subject.cls, verb) for what, verb in VERBS.items()}
    if about["capabilities"] != able:
        lines = ", ".join(f"{what} = {str(value).lower()}" for what, value in able.items())
        raise Broken(
            f"the card's [capabilities] say {_toml(about['capabilities'])}, the code has {_toml(able)}",
            f"write under [capabilities]: {lines}; or write or remove the verb ({', '.join(VERBS.values())})",
        )
    if able["sample"] == (about["sampling"] == NO_SAMPLER):
        said, change = ("a", "say whose sampler it is") if able["sample"] else ("no", f'write "{NO_SAMPLER}"')
        raise Broken(
            f'the card says sampling = "{about["sampling"]}", the code has {said} `sample`',
            f"{change}; what `sampling_reason` and `notes` say of a sampler goes with it, as tables print the notes",
        )
    for entry in about.get("published", []):
        if lacking := PUBLISHED - entry.keys():
            raise Broken(
                f"a [[published]] number of the card lacks {listed(sorted(lacking))}",
                "add them: a number without its protocol cannot be compared",
            )
    _lends(about.get("borrowed", []))
    if subject.place is None or not (subject.place / "README.md").is_file():
        raise Broken("there is no README.md beside the card", "write one: the idea, departures and pitfalls")
    return f"{about['title']}: {_toml(able)}"


def _toml(table: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {str(value).lower()}" for key, value in table.items()) or "nothing"


def _lends(loans: list[Any]) -> None:
    for loan in loans:
        try:
            Borrowed(**loan)
        except (TypeError, ValidationError) as error:
            raise Broken(
                f"a [[borrowed]] entry of the card, {loan}, cannot be read: {str(error).splitlines()[0]}",
                "give it `what`, and where known `parameters` and `cost` (text)",
            ) from error


def settings(subject: Subject) -> str:
    """Departures say how to have the paper's way; what one says is accepted as it stands."""
    recipe, accepted = subject.recipe(SHAPES[2]), []
    for departure in subject.card.get("departures", []):
        text = f"{departure['what']} {departure['why']}"
        words = [word.rstrip(".,;") for word in re.findall(rf"\b{subject.name}\.\w+=\S+", text)]
        try:
            override(recipe, parse_words(words).get(subject.name, {}), subject.name)
        except HarnessError as error:
            raise Broken(
                f"the card names the setting {' '.join(words)}, which is refused: {error.found}",
                "name one that can be typed as it stands",
            ) from error
        accepted += words
    if not accepted:
        raise NotApplicable("the card names no setting")
    return listed(accepted)


def cost(subject: Subject) -> str:
    """Declared parameters and FLOPs are the measured ones, and what is borrowed is named."""
    _names_what_it_borrows(subject)
    measured = _measured(subject)
    found = {key: getattr(measured, key) for key in COSTS}
    declared = subject.card.get("cost", {}).get(subject.size)
    where = f"size {subject.size} on colour images of {RESOLUTION} px"
    if not isinstance(declared, dict) or not declared.keys() >= {*COSTS}:
        raise Broken(f"the card declares no {', '.join(COSTS)} of {where}", _paste(subject, found))
    off = [key for key in COSTS if abs(declared[key] - found[key]) > WITHIN * found[key]]
    if off:
        told = ", ".join(f"{key} {count(declared[key])} declared, {count(found[key])} measured" for key in off)
        raise Broken(
            f"the card's cost of {where} is not what is measured: {told}",
            f"{_paste(subject, found)}\nor mend the network",
        )
    return f"{count(measured.parameters)} parameters, {count(measured.forward_flop)}FLOP forward{_beside(measured)}"


def _measured(subject: Subject) -> sizes.Measure:
    """Counted without running it, or by running it where it reads numbers of its tensors."""
    asked = subject.name, subject.cls, subject.size, RESOLUTION
    with suppress(Exception):
        return sizes.measured(*asked)
    try:
        return sizes.measured(*asked, numbers=True)
    except Exception as error:
        raise Broken(
            f"its cost cannot be counted: size {subject.size} fails on colour images of {RESOLUTION} px: "
            f"{type(error).__name__}: {error}{closed.raised_from(error, subject.place)}",
            "let `recipe` choose what fits data.channels and data.size, and `pretrain` and `features` run with that",
        ) from error


def _paste(subject: Subject, found: dict[str, float]) -> str:
    """The lines to write, of every size that can be counted: a network that changed has changed at all of them."""
    lines = []
    for size in subject.cls.sizes:
        if size == subject.size:
            lines.append(line(size, found))
        else:
            with suppress(Exception):
                other = sizes.measured(subject.name, subject.cls, size, RESOLUTION)
                lines.append(line(size, {key: getattr(other, key) for key in COSTS}))
    return "\n".join(["write under [cost] in card.toml:", *lines])


def line(size: str, found: dict[str, float]) -> str:
    """A size's entry of a card's [cost]."""
    return f"{size} = {{ {', '.join(f'{key} = {_number(value)}' for key, value in found.items())} }}"


def _number(value: float) -> str:
    return f"{value:_}" if isinstance(value, int) else f"{value:.4g}".replace("e+0", "e").replace("e+", "e")


def _beside(measured: sizes.Measure) -> str:
    """How far it lies from the size's yardstick, for the reader of a comparison."""
    if sizes.YARDSTICK not in method_plugins():
        return ""
    try:
        if measured.size not in load_method(sizes.YARDSTICK).sizes:
            return ""
        yardstick = sizes.measure(sizes.YARDSTICK, measured.size, RESOLUTION)
    except Exception as error:  # the fault of another method than the one under check
        return f"; its yardstick {sizes.YARDSTICK} cannot be counted: {said(error)}"
    parameters, forward, _ = measured.off(yardstick)
    return f" ({parameters:+.0%} and {forward:+.0%} of {sizes.YARDSTICK}'s)"


def _names_what_it_borrows(subject: Subject) -> None:
    method = subject.build()
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    own = prepared(method)
    frozen = sum(p.numel() for p in method.parameters() if not p.requires_grad and id(p) not in own)
    loans = [*subject.card.get("borrowed", []), *method.borrowed()]
    _lends(loans)
    if frozen > BORROWED * trained and not loans:
        raise Broken(
            f"{frozen:,} parameters are frozen, beside {trained:,} trained ones, and nothing is named as borrowed",
            "name where they come from under [[borrowed]] in card.toml, or train them in `preparation`",
        )
