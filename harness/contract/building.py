"""What a method promises of its construction: any size on any images, the same from the same seed, plain state."""

from __future__ import annotations

import io
import pickle

import torch
from torch import Tensor

from harness.contract.subject import Broken, Subject, listed
from harness.method import SIZES, DataSpec

SHAPES = (
    DataSpec("grey 8 px", channels=1, size=8, classes=10),
    DataSpec("grey 28 px", channels=1, size=28, classes=10),
    DataSpec("colour 32 px", channels=3, size=32, classes=10),
    DataSpec("colour 64 px", channels=3, size=64, classes=200),
)


def sizes(subject: Subject) -> str:
    """Every declared size is built for images of several shapes, without memory, and each is larger than the last."""
    declared = subject.cls.sizes
    if not declared or [size for size in SIZES if size in declared] != list(declared):
        raise Broken(f"{subject.kind}.sizes is {declared}", f"name some of {', '.join(SIZES)}, in that order")
    for spec in SHAPES:
        counts = [_parameters(subject, size, spec) for size in declared]
        if counts != sorted(set(counts)):
            raise Broken(
                f"trained parameters of {', '.join(declared)} on {spec.name} are {', '.join(map(str, counts))}",
                "let each size of `recipe` be larger than the one before it, or leave it out of `sizes`",
            )
    return f"{', '.join(declared)} on {len(SHAPES)} shapes of images"


def _parameters(subject: Subject, size: str, spec: DataSpec) -> int:
    try:
        with torch.device("meta"):
            method = subject.cls.create(subject.recipe(spec, size), spec)
    except Exception as error:
        raise Broken(
            f"size {size} cannot be built for {spec.name}: {type(error).__name__}: {error}",
            "let `recipe` choose what fits data.channels and data.size, and `__init__` touch no file, no device and no "
            "number of its tensors",
        ) from error
    return sum(p.numel() for p in method.parameters() if p.requires_grad)


def same_seed(subject: Subject) -> str:
    one, two = subject.build().state_dict(), subject.build().state_dict()
    if one.keys() != two.keys():
        raise Broken("two networks of one seed have different parts", "let `__init__` build the same at every call")
    unlike = [name for name in one if not torch.equal(one[name], two[name])]
    if unlike:
        raise Broken(
            f"two networks of one seed differ in {listed(unlike)}",
            "initialise from torch's global generator, which is seeded for construction, and from nothing else",
        )
    return f"{len(one)} tensors equal"


def weights_only(subject: Subject) -> str:
    """The state is tensors alone, loads with weights_only=True, and is taken back whole."""
    method = subject.build()
    state = method.state_dict()
    change = "keep tensors in buffers (register_buffer) and plain values in the config; return no extra state"
    odd = [f"{name} ({type(value).__name__})" for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise Broken(f"state_dict holds what is no tensor: {listed(odd)}", change)
    file = io.BytesIO()
    torch.save(state, file)
    try:
        read = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).partition("\n")[0]
        raise Broken(f"the state does not load with weights_only=True: {first}", change) from error
    other = subject.build(seed=1)
    other.load_state_dict(read)
    lost = [name for name, value in other.state_dict().items() if not torch.equal(value, state[name])]
    if lost:
        raise Broken(f"loading a state does not bring back {listed(lost)}", "leave load_state_dict as torch has it")
    return f"{len(state)} tensors, {len(file.getvalue()) / 2**20:.1f} MiB"
