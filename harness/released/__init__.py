"""Released weights: checkpoints trained elsewhere, put through our evals (`harness eval --checkpoint`).

A method with released weights has `methods/<name>/weights.py`, which gives the format `<name>`; a file
`methods/<name>/weights_<format>.py` gives one of another name. Either has

    from_official(state) -> Official    tensors by name, as the file has them, in the method's own terms
    DRAWING                             prefixes of the method's tensors that only drawing needs: a file may lack them
    RECIPE                              one line: what the published weights cost, as their makers state it
    complete(method, batches, rng)      estimates, from training images and without a gradient, what drawing needs and
                                        no file holds

of which all but the first may be left out. What is no method of ours is wrapped here, in `timm_model.py`,
`diffusers_model.py` and `adm_model.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    notes: list[str] = field(default_factory=list)  # for the user: what was taken by convention
    kept: tuple[str, ...] = ()  # settings by which the tensors were cut, so that another value would fit and be wrong
