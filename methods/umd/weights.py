"""Official UMD weights (JAX/Flax, philippe-eecs/small-vision) in our terms: parameters by Flax path.

The reference's layouts (card umd, section 11): dense kernels are (in, out); attention keeps heads apart, (D,
heads, hd) on the way in and (heads, hd, D) on the way out; the layers of a stack are one leading axis; a
transposed convolution's kernel is flipped in space against torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from backbones.official import settle, shape_of, square
from backbones.umd_vit import UmdVit
from harness.errors import HarnessError
from harness.released import Official
from methods.umd.method import Config

RECIPE = "UMD: 800 epochs of ImageNet-1k at batch 1024, drawing after 50 more with labels; hours not stated"
WHAT = "UMD: Flax parameters, their paths joined by '/'"
TREES = ("params/", "ema_params/")  # of a training state, of which one at a time can be read


class Rule(NamedTuple):
    """How one of our tensors is made of some of theirs."""

    paths: tuple[str, ...]
    make: Callable[..., Tensor]


def from_official(state: Mapping[str, Tensor]) -> Official:
    """Every measure from the shapes, heads too; HarnessError where they are no pixel UMD's with adaLN.

    `state` has the parameters by path ("Encoder/encoder_norm/bias"), as they come or all under "params/".
    """
    state = _one_tree(state)
    shape_of(state, "embedding/kernel", 4, WHAT)  # of anything else this is the error to read first
    stacks = {trunk: _stack(state, trunk) for trunk in ("Encoder", "Decoder")}
    config, channels, side = _measures(state, stacks)
    c = config
    notes = ["noise goes by the cosine schedule, as the code has it for pixels"]
    if c.classes:
        notes.append("fine-tuned with labels; features are read without one")

    def build() -> UmdVit:
        measures = (c.patch, c.width, c.depth, c.decoder_depth, c.heads, c.class_tokens)
        return UmdVit(side, channels, *measures, classes=c.classes)

    return Official(c, channels, side, c.classes, *settle(build, "network.", _mapped(state, stacks, c)), notes)


def _measures(state: Mapping[str, Tensor], stacks: Mapping[str, str]) -> tuple[Config, int, int]:
    """The config, the channels and the side in px."""
    patch, _, channels, width = shape_of(state, "embedding/kernel", 4, WHAT)
    if channels not in (1, 3):
        raise HarnessError(f"a UMD on {channels} channels", "pixels: 1 or 3 channels; latents are not supported")
    side = patch * square(shape_of(state, "pos_embedding", 3, WHAT)[1], "positions")
    depths = {}
    for trunk, stack in stacks.items():
        depths[trunk], _, heads, _ = shape_of(state, f"{stack}/MultiHeadDotProductAttention_0/query/kernel", 4, WHAT)
        shape_of(state, f"{stack}/Dense_0/kernel", 3, "UMD with adaLN (the code's MAE baseline has none)")
    labelled = "label_emb/embedding/embedding" in state
    config = Config(
        width=width,
        depth=depths["Encoder"],
        heads=heads,
        decoder_depth=depths["Decoder"],
        patch=patch,
        class_tokens=shape_of(state, "cls", 3, WHAT)[1],
        classes=shape_of(state, "label_emb/embedding/embedding", 2, WHAT)[0] - 1 if labelled else 0,
    )
    return config, channels, side


def _mapped(state: Mapping[str, Tensor], stacks: Mapping[str, str], config: Config) -> dict[str, tuple[str, Tensor]]:
    """Our tensors by our names, each with the path it is called by in an error; the paths of no use by themselves."""
    mapped, used = {}, set()
    for ours, rule in _rules(stacks, {"Encoder": config.depth, "Decoder": config.decoder_depth}, config.classes):
        if not all(path in state for path in rule.paths):
            continue
        theirs = [state[path] for path in rule.paths]
        try:
            mapped[ours] = rule.paths[0], rule.make(*theirs)
        except (RuntimeError, IndexError) as error:
            raise HarnessError(f"{rule.paths[0]!r} has the shape {list(theirs[0].shape)}", WHAT) from error
        used |= set(rule.paths)
    return mapped | {path: (path, state[path]) for path in state.keys() - used}


def _one_tree(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for tree in TREES:
        if all(path.startswith(tree) for path in state):
            return {path.removeprefix(tree): value for path, value in state.items()}
    if any(path.startswith(TREES) for path in state):
        raise HarnessError("a whole training state", "its parameters alone, or its averaged parameters (ema_params)")
    return dict(state)


def _stack(state: Mapping[str, Tensor], trunk: str) -> str:
    """The path of a trunk's stacked blocks; its last part is made by Flax from the wrappers in use."""
    paths = {path.split("/")[1] for path in state if path.startswith(f"{trunk}/")} - {"encoder_norm"}
    if len(paths) != 1:
        raise HarnessError(f"{trunk} holds {sorted(paths)}", "one stack of blocks (scan over layers) and a norm")
    return f"{trunk}/{paths.pop()}"


def _rules(stacks: Mapping[str, str], depths: Mapping[str, int], classes: int) -> Iterator[tuple[str, Rule]]:
    """Our names, and how each is made."""
    yield "embed.weight", Rule(("embedding/kernel",), lambda k: k.flatten(0, 2).T)
    yield "embed.bias", Rule(("embedding/bias",), _as_it_is)
    yield "position", Rule(("pos_embedding",), lambda x: x.squeeze(0))
    yield "decoder_position", Rule(("dec_pos_embedding",), lambda x: x.squeeze(0))
    yield "cls", Rule(("cls",), lambda x: x.squeeze(0))
    yield "mask_token", Rule(("image_mask_embedding",), lambda x: x.flatten())
    yield "head.weight", Rule(("final_conv/kernel",), lambda k: k.flip(0, 1).mT.flatten(0, 2))  # [p, p, D, 2C]
    yield "head_bias", Rule(("final_conv/bias",), lambda b: b.unflatten(0, (2, -1)))
    yield from _linear("final_modulation", "final_modulation")
    trunks = [("time_mlp", "time_trunk")]
    if classes:
        yield "label_table.weight", Rule(("label_emb/embedding/embedding",), _as_it_is)
        trunks.append(("label_mlp", "label_trunk"))
    for ours, theirs in trunks:
        yield from _linear(f"{ours}.0", f"{theirs}/Dense_0")
        yield from _linear(f"{ours}.2", f"{theirs}/Dense_1")
    for ours, theirs in (("encoder", "Encoder"), ("decoder", "Decoder")):
        yield from _norm(f"{ours}_norm", f"{theirs}/encoder_norm")
        for layer in range(depths[theirs]):
            for name, rule in _block(stacks[theirs]):
                yield f"{ours}.{layer}.{name}", _of_layer(rule, layer)


def _block(stack: str) -> Iterator[tuple[str, Rule]]:
    """One layer's tensors, made of its slices of the stacked ones."""
    yield from _linear("modulation", f"{stack}/Dense_0")
    for i in (0, 1):
        yield from _norm(f"norm{i + 1}", f"{stack}/LayerNorm_{i}")
        yield from _linear(f"mlp.fc{i + 1}", f"{stack}/MlpBlock_0/Dense_{i}")
    attention = f"{stack}/MultiHeadDotProductAttention_0"
    paths = [f"{attention}/{part}" for part in ("query", "key", "value")]
    kernels, biases = tuple(f"{p}/kernel" for p in paths), tuple(f"{p}/bias" for p in paths)
    yield "attn.qkv.weight", Rule(kernels, lambda *k: torch.cat([part.flatten(1).T for part in k]))  # [3 D, D]
    yield "attn.qkv.bias", Rule(biases, lambda *b: torch.cat([part.flatten() for part in b]))
    yield "attn.proj.weight", Rule((f"{attention}/out/kernel",), lambda k: k.flatten(0, 1).T)
    yield "attn.proj.bias", Rule((f"{attention}/out/bias",), _as_it_is)


def _linear(ours: str, theirs: str) -> Iterator[tuple[str, Rule]]:
    yield f"{ours}.weight", Rule((f"{theirs}/kernel",), lambda kernel: kernel.T)
    yield f"{ours}.bias", Rule((f"{theirs}/bias",), _as_it_is)


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, Rule]]:
    yield f"{ours}.weight", Rule((f"{theirs}/scale",), _as_it_is)
    yield f"{ours}.bias", Rule((f"{theirs}/bias",), _as_it_is)


def _of_layer(rule: Rule, layer: int) -> Rule:
    return Rule(rule.paths, lambda *stacked: rule.make(*(part[layer] for part in stacked)))


def _as_it_is(x: Tensor) -> Tensor:
    return x
