"""Any timm image model as an encoder: its pooled features, and the mean of the maps along its depth.

From a name on the hub (`timm:NAME`), a folder as timm saves it (config.json and weights, also what `harness export
--to timm` writes), or a bare file of weights whose architecture is named: `timm.model=vit_base_patch16_224`.

Shapes: B images, C channels, S side, D width.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.config import override, plain
from harness.errors import HarnessError, said
from harness.method import DataSpec, Method, Tap, require_taps
from harness.released import files
from harness.rng import Rng

if TYPE_CHECKING:
    from harness.released.formats import Asked, Loaded

DEPTHS = (3, 2)  # quarters of the depth at which maps are read, beside the last


@dataclass(frozen=True)
class Config:
    model: str = ""  # timm's name of the architecture; a hub name and a folder tell it themselves
    args: dict[str, Any] = field(default_factory=dict)  # of its constructor: {"img_size": 32, "patch_size": 4}
    mean: tuple[float, ...] = ()  # of the input's channels over [0, 1]; what timm's config of the model says
    std: tuple[float, ...] = ()


class TimmModel(Method):
    """`network` as timm made it; images in [-1, 1] are brought to the range it was trained on."""

    Config = Config

    def __init__(self, config: Config, data: DataSpec, network: nn.Module) -> None:
        super().__init__()
        self.config, self.data, self.network = config, data, network
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)
        stages = len(getattr(network, "feature_info", ())) if hasattr(network, "forward_intermediates") else 0
        self._depths = list(dict.fromkeys(max(1, stages * quarters // 4) for quarters in DEPTHS)) if stages else []

    def taps(self) -> list[Tap]:
        """What the model's own head sees, the mean of the last map, and of maps at 3/4 and 1/2 of the depth."""
        return [Tap("pooled"), Tap("mean"), *(Tap(f"stage{depth}") for depth in self._depths)]

    def maps(self) -> list[Tap]:
        return [tap for tap in self.taps() if tap.layer != "pooled"]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        if dense and any(tap.layer == "pooled" for tap in taps):
            raise HarnessError("the pooled features have no place in the image", "a map: mean or stageN")
        x = ((images + 1) / 2 - self.mean) / self.std
        wanted = [int(tap.layer.removeprefix("stage")) for tap in taps if tap.layer.startswith("stage")]
        last, maps = self._pass(x, sorted(set(wanted)))
        found = []
        for tap in taps:
            if tap.layer == "pooled":
                found.append(self.network.forward_head(last, pre_logits=True).flatten(1).float())
                continue
            grid = self._as_map(last) if tap.layer == "mean" else maps[int(tap.layer.removeprefix("stage"))]
            found.append(grid.float() if dense else grid.float().mean(dim=(2, 3)))
        return found

    def _pass(self, x: Tensor, stages: list[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """What `forward_features` gives, and maps [B, D, h, w] of the stages (from 1), in one pass."""
        if not stages:
            return self.network.forward_features(x), {}
        last, maps = self.network.forward_intermediates(x, indices=[s - 1 for s in stages], output_fmt="NCHW")
        return last, dict(zip(stages, maps, strict=True))

    def _as_map(self, last: Tensor) -> Tensor:
        """Tokens [B, N, D] without those that have no place, or a map [B, D, h, w], as a map."""
        if last.ndim == 3:
            tokens = last[:, getattr(self.network, "num_prefix_tokens", 0) :]
            side = round(tokens.shape[1] ** 0.5)
            return tokens.mT.unflatten(2, (side, -1))
        channels = getattr(self.network, "num_features", last.shape[1])
        return last if last.shape[1] == channels else last.permute(0, 3, 1, 2)  # some models keep channels last


def load(asked: Asked) -> Loaded:
    """The model with its weights. Raises HarnessError where neither a hub nor a local copy has them."""
    from harness.released.formats import Loaded, first

    config = override(Config(), asked.settings.get("timm", {}), "timm")
    hub = asked.checkpoint.startswith("timm:")
    if config.model and (hub or Path(asked.checkpoint).is_dir()):
        raise HarnessError(f"timm.model={config.model} for {asked.checkpoint}, which names its own", "none")
    if hub and asked.weights is not None:
        raise HarnessError(f"--weights {asked.weights} for {asked.checkpoint}", "nothing: it has one set of weights")
    if hub:
        file, entry, kind, unexpected = asked.checkpoint, "", "raw", []
        network = _from_hub(file.removeprefix("timm:"), config)
        sha256 = files.sha256_of_tensors(network.state_dict())
        classes, described = network.pretrained_cfg.get("num_classes") or 0, ""
    else:
        path = Path(asked.checkpoint)
        weights = files.read(_weights_in(path) if path.is_dir() else path)
        chosen = files.choose(weights, asked.weights)
        network, unexpected, classes = _from_disk(path, chosen, config, asked.allow_unexpected)
        described = files.sha256_of(path / "config.json") if path.is_dir() else ""
        file, sha256 = (path.name if path.is_dir() else weights.name), weights.sha256
        entry, kind = chosen.entry, chosen.kind
    config, spec = _described(network, config)
    notes = [_on_labels(classes)]
    notes += [f"left out of the file, as allowed: {first(unexpected)}"] if unexpected else []
    method = TimmModel(config, spec, network)
    about = {"entry": entry, "kind": kind, "config": plain(config), "unexpected": unexpected, "notes": notes}
    about |= {"classes": classes, "described": described}
    return Loaded(method, "timm", draws=False, file=file, sha256=sha256, format="timm", **about)


def _on_labels(classes: int) -> str:
    if classes:
        return f"its head of {classes} outputs is left out, and it is taken to have seen labels"
    return (
        "no head came with it; timm's models differ in what they were trained on, and whether on labels its page says"
    )


def _described(network: nn.Module, config: Config) -> tuple[Config, DataSpec]:
    """The config with what timm says of the model, and the images that it takes."""
    from timm.data import resolve_model_data_config

    said = resolve_model_data_config(network)
    channels, side, _ = said["input_size"]
    grid = getattr(getattr(network, "patch_embed", None), "img_size", None)
    if grid is not None:
        side = grid[0] if isinstance(grid, tuple) else grid
    cfg = getattr(network, "pretrained_cfg", {})
    config = dataclasses.replace(
        config,
        model=config.model or cfg.get("architecture", type(network).__name__),
        mean=config.mean or tuple(said["mean"]),
        std=config.std or tuple(said["std"]),
    )
    if len(config.mean) != channels or len(config.std) != channels:
        raise HarnessError(
            f"a mean of {len(config.mean)} and a deviation of {len(config.std)} numbers for {channels} channels",
            "one number a channel",
            "timm.mean=0.5,0.5,0.5 timm.std=0.5,0.5,0.5 is our [-1, 1]",
        )
    return config, DataSpec("released", channels, side, 0)


def _from_hub(name: str, config: Config) -> nn.Module:
    import timm

    at_hub = _hub_name(name)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **config.args)
    except Exception as error:  # the hub's client raises errors of many kinds, offline too
        raise HarnessError(
            f"timm's {name!r} cannot be had: {said(error)}",
            "timm.create_model(NAME, pretrained=True) to find its weights, on the hub or in the cache ($HF_HOME)",
            f"where there is a network: hf download {at_hub} --local-dir FOLDER; then, with none: "
            "--checkpoint FOLDER --format timm",
        ) from error


def _hub_name(name: str) -> str:
    """The repository that timm keeps the weights in: a name without a tag has a usual one."""
    import timm

    if ":" in name:  # hf-hub:NAME and the like
        return name.partition(":")[2]
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that the architecture has not
        cfg = None
    if cfg is None or not cfg.has_weights:
        near = difflib.get_close_matches(name, timm.list_pretrained(), n=5)
        listed = f"one of timm's own, like {', '.join(near)}" if near else "one of timm's own"
        raise HarnessError(f"timm has no weights called {name!r}", listed, "timm.list_pretrained() lists them")
    return cfg.hf_hub_id or name


def _from_disk(path: Path, chosen: files.Chosen, config: Config, allow: bool) -> tuple[nn.Module, list[str], int]:
    """The model with the tensors of a folder or a file, those without a place, and its classifier's classes."""
    import timm

    from harness.released.formats import require_whole

    source = f"local-dir:{path}" if path.is_dir() else config.model
    if not source:
        raise HarnessError(
            f"{path} holds weights and does not say of which architecture",
            "timm.model=NAME, or a folder with timm's config.json",
            'for example: timm.model=vit_tiny_patch16_224 timm.args=\'{"img_size": 32, "patch_size": 4}\'',
        )
    try:
        network = timm.create_model(source, pretrained=False, num_classes=0, **config.args)
    except Exception as error:
        raise HarnessError(f"timm cannot build {source}: {said(error)}", "a model that timm knows") from error
    missing, unexpected, classes = _fill(network, chosen, path)
    require_whole(path.name, missing, (), [] if allow else unexpected)
    return network, unexpected, classes


def _fill(network: nn.Module, chosen: files.Chosen, path: Path) -> tuple[list[str], list[str], int]:
    """Put the tensors in place; what is missing, and what is left over beside a classifier, of how many classes."""
    from harness.released.formats import fill

    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    state = {name: value for name, value in chosen.state.items() if not name.startswith(heads)}
    classes = max((len(v) for n, v in chosen.state.items() if n.startswith(heads) and v.ndim), default=0)
    missing, unexpected = fill(
        network,
        state,
        f"{path} does not fit the architecture",
        "the architecture that the weights are of",
        "timm.model=NAME and timm.args={...} name another",
    )
    return missing, sorted([*unexpected, *chosen.strange]), classes


def _weights_in(folder: Path) -> Path:
    found = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not found:
        raise HarnessError(f"no weights in {folder}", "model.safetensors or pytorch_model.bin beside config.json")
    return found[0]
