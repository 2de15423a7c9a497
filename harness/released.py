"""Released weights: what an official checkpoint says about itself, in a method's own terms.

Each method with released weights has `methods/<name>/weights.py` with `from_official(state) -> Official`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Official:
    """An official state dict, mapped: build `Method(config, data)` and load `state` with `strict=False`.

    Nothing is dropped in silence: `missing` names the tensors of the method that the file does not hold (a decoder, a
    label table), `unexpected` the tensors of the file that the method has no place for, each under its own side's name.
    """

    config: Any  # the method's `Config`
    channels: int  # of the images
    image_size: int  # px, square
    classes: int  # labels that the weights know of; 0 where they know of none
    state: dict[str, Tensor]  # for `Method.load_state_dict`
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # sentences for the user, as on what was taken by convention
