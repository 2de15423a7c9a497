"""Configuration: frozen dataclasses, overridden by `key=value` words or a TOML table; unknown keys get a suggestion."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypeVar, get_origin, get_type_hints

from harness.errors import HarnessError, unknown

T = TypeVar("T")


def override(config: T, values: dict[str, Any], prefix: str = "") -> T:
    """`config` (a frozen dataclass) with `values` laid over it, each checked against its field's type.

    A table is laid over the dataclass in its field; a tuple may be written with commas, `0.9,0.95`.
    Raises HarnessError for an unknown key (with the nearest known one) or a value of the wrong type.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if not values:
        return config
    hints = get_type_hints(type(config))
    known = {f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    checked = {}
    for key, value in values.items():
        label = f"{prefix}.{key}" if prefix else key
        if key not in known:
            raise unknown("setting", label, (f"{prefix}.{k}" if prefix else k for k in known))
        kind = hints[key]
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            checked[key] = override(getattr(config, key), value, label)
            continue
        try:
            settings = None if dataclasses.is_dataclass(kind) else ConfigDict(strict=False)
            checked[key] = TypeAdapter(kind, config=settings).validate_python(_listed(kind, value))
        except ValidationError as error:
            name = getattr(kind, "__name__", str(kind))
            reason = error.errors()[0]["msg"]
            raise HarnessError(
                f"{label}={value!r} does not fit: {reason}",
                f"a value of type {name}; it is {getattr(config, key)!r} by default",
            ) from None
    try:
        return dataclasses.replace(config, **checked)  # type: ignore[type-var]
    except ValueError as error:
        dotted = f"{prefix}." if prefix else ""
        label = ", ".join(f"{dotted}{k}={v!r}" for k, v in checked.items())
        raise HarnessError(f"{label}: {error}") from None


def _listed(kind: Any, value: Any) -> Any:
    """A tuple's values, where they came as one text with commas."""
    return value.split(",") if get_origin(kind) is tuple and isinstance(value, str) else value


def parse_words(words: list[str]) -> dict[str, Any]:
    """`["umd.mask_ratio=0.6", "train.batch_size=512"]` as nested tables; values are JSON where they parse as JSON."""
    table: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise HarnessError(
                f"cannot read {word!r} as a setting", "SECTION.KEY=VALUE", "for example: train.batch_size=256"
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *sections, last = key.split(".")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise HarnessError(f"{word!r} sets a part of {section!r}, which another word set as a whole")
        place[last] = value
    return table


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as JSON-ready values, in field order."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
