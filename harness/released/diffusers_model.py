"""An unconditional diffusers U-Net as a method: features from its decoder at light noise, samples by its scheduler.

From a pipeline's folder (`unet/`, `scheduler/`), a folder of the U-Net alone, or a name on the hub (`diffusers:NAME`).
The parts are read one by one: nothing that a folder names but a U-Net and a scheduler of diffusers' own is loaded.

Shapes: B images, C channels, S side, D width of a block.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
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

NOISES = (None, 10, 40, 80, 120)  # timesteps that features are read at; None is the clean image at timestep 0
KIND = "UNet2DModel"
CONFIG, SCHEDULE = "config.json", "scheduler/scheduler_config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


@dataclass(frozen=True)
class Config:
    steps: int = 0  # sampling steps; 0 is what diffusers' own pipelines take: all of DDPM's, 50 of any other
    size: int = 0  # px; 0 is what the network's config says

    def __post_init__(self) -> None:
        if min(self.steps, self.size) < 0:
            raise ValueError("steps and size are positive, or 0")


class DiffusersUnet(Method):
    """`unet` and `scheduler` as diffusers made them; images are in [-1, 1], as diffusers' pipelines have them."""

    Config = Config

    def __init__(self, config: Config, data: DataSpec, unet: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.config, self.data, self.unet, self.scheduler = config, data, unet, scheduler

    # -- recognise ------------------------------------------------------------------------------------------------

    def taps(self) -> list[Tap]:
        """The mean of any level of the decoder, clean or at four light noises; the usual optimum comes first."""
        levels = len(self.unet.up_blocks)
        middle = max(1, levels // 2)
        later = min(levels, middle + 1)
        usual = [(middle, None), (middle, 40), (later, None), (later, 40)]
        every = [(level, noise) for level in range(1, levels + 1) for noise in NOISES]
        return [Tap(f"up{level}", noise) for level, noise in dict.fromkeys([*usual, *every])]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        passes = {noise: self._read(images, noise, rng) for noise in dict.fromkeys(tap.noise for tap in taps)}
        maps = [passes[tap.noise][int(tap.layer.removeprefix("up")) - 1].float() for tap in taps]
        return maps if dense else [found.mean(dim=(2, 3)) for found in maps]

    def _read(self, images: Tensor, noise: int | None, rng: Rng) -> list[Tensor]:
        """The maps [B, D, h, w] that leave each level of the decoder, from one pass."""
        level = torch.full((len(images),), noise or 0, device=images.device, dtype=torch.long)
        if noise is not None:
            images = self.scheduler.add_noise(images, rng.at("tap", noise).normal("noise", images.shape), level)
        seen: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in self.unet.up_blocks]
        try:
            self.unet(images, level)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    # -- draw -----------------------------------------------------------------------------------------------------

    def sampler(self, steps: int | None = None) -> str:
        count = steps or self.config.steps or self._usual_steps()
        return f"{type(self.scheduler).__name__}, {count} steps"

    @torch.no_grad()
    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        """As diffusers' pipelines do it, from noise that `rng` gives."""
        if labels is not None:
            raise HarnessError("labels given to an unconditional diffusers U-Net", "no labels")
        scheduler = self.scheduler
        scheduler.set_timesteps(steps or self.config.steps or self._usual_steps())
        x = rng.normal("start", (n, self.data.channels, self.data.size, self.data.size))
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        words = {"generator": rng.generator("steps")} if _takes_generator(scheduler) else {}
        for t in scheduler.timesteps:
            found = self.unet(scheduler.scale_model_input(x, t), t).sample.float()
            if found.shape[1] > x.shape[1] and not _learned(scheduler):
                found = found[:, : x.shape[1]]
            x = scheduler.step(found, t, x, **words).prev_sample
        return x.clamp(-1, 1)

    def _usual_steps(self) -> int:
        is_ddpm = type(self.scheduler).__name__ == "DDPMScheduler"
        return self.scheduler.config.num_train_timesteps if is_ddpm else 50


def _takes_generator(scheduler: Any) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters


def _learned(scheduler: Any) -> bool:
    return getattr(scheduler.config, "variance_type", None) in ("learned", "learned_range")


# -- reading -----------------------------------------------------------------------------------------------------------


def load(asked: Asked) -> Loaded:
    """The U-Net with its weights. Raises HarnessError where neither a hub nor a local copy has it."""
    from harness.released.formats import Loaded, require_whole

    if asked.weights is not None:
        raise HarnessError(f"--weights {asked.weights} for a diffusers folder", "nothing: it has one set of weights")
    config = override(Config(), asked.settings.get("diffusers", {}), "diffusers")
    hub = asked.checkpoint.startswith("diffusers:")
    root = _from_hub(asked.checkpoint.removeprefix("diffusers:")) if hub else Path(asked.checkpoint)
    folder = _unet_folder(root)
    weights = files.read(_weights_in(folder))  # refuses what is no tensor, before diffusers opens it
    unet, missing, unexpected = _unet(folder)
    require_whole(weights.name, missing, (), [] if asked.allow_unexpected else unexpected)
    scheduler, note = _scheduler(root)
    size = config.size or unet.config.sample_size
    if not isinstance(size, int):
        raise HarnessError(f"the U-Net's sample_size is {size}", "one side of square images", "diffusers.size=SIDE")
    spec = DataSpec("released", unet.config.in_channels, size, 0)
    return Loaded(
        DiffusersUnet(config, spec, unet, scheduler),
        "diffusers",
        draws=note is None,
        file=asked.checkpoint if hub else root.resolve().name,
        sha256=weights.sha256,
        described=files.sha256_of(*[path for path in (folder / CONFIG, root / SCHEDULE) if path.is_file()]),
        format="diffusers",
        config=plain(config) | {"scheduler": type(scheduler).__name__},
        unexpected=unexpected,
        notes=[] if note is None else [note],
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except Exception as error:  # the hub's client raises errors of many kinds, offline too
        raise HarnessError(
            f"{name!r} cannot be had from the hub: {said(error)}",
            "a network, or a copy in the cache ($HF_HOME)",
            f"where there is a network: hf download {name} --local-dir FOLDER; then, with none: "
            "--checkpoint FOLDER --format diffusers",
        ) from error


def _described(folder: Path, file: str) -> dict[str, Any]:
    try:
        return json.loads((folder / file).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise HarnessError(f"no {file} in {folder}", f"a folder of a diffusers pipeline, or of a {KIND}") from None
    except ValueError as error:
        raise HarnessError(f"{folder / file} is no JSON: {error}", "the file as diffusers wrote it") from None


def _unet_folder(root: Path) -> Path:
    """The U-Net's own folder in a pipeline's, or `root` itself."""
    if (root / "pipeline.py").is_file():
        raise HarnessError(
            f"{root} is a pipeline with code of its own, which is not run",
            f"an unconditional {KIND} on pixels",
            "for a run of ours: harness export --to safetensors writes what eval reads again",
        )
    folder = root / "unet" if (root / "unet").is_dir() else root
    found = _described(folder, CONFIG).get("_class_name")
    conditional = [n for n in ("text_encoder", "vae", "vqvae", "transformer") if (root / n).is_dir()]
    if found != KIND or conditional:
        parts = f"{found}" + (f" beside {', '.join(conditional)}" if conditional else "")
        raise HarnessError(f"{root} holds {parts}", f"an unconditional {KIND} on pixels")
    return folder


def _weights_in(folder: Path) -> Path:
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise HarnessError(f"no weights in {folder}", f"{' or '.join(WEIGHTS)}, in one file")
    return found[0]


def _unet(folder: Path) -> tuple[nn.Module, list[str], list[str]]:
    """The network, and the tensors that it or the file lacks."""
    import diffusers

    words = {"local_files_only": True, "output_loading_info": True, "low_cpu_mem_usage": False}
    try:
        unet, told = getattr(diffusers, KIND).from_pretrained(folder, torch_dtype=torch.float32, **words)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = next((line for line in lines if "mismatch" in line), (lines or [type(error).__name__])[0])
        raise HarnessError(
            f"diffusers cannot load {folder}: {what}", "weights and the config.json that they were saved with"
        ) from error
    return unet.eval(), sorted(told["missing_keys"]), sorted(told["unexpected_keys"])


def _scheduler(root: Path) -> tuple[Any, str | None]:
    """The pipeline's scheduler; for a U-Net alone DDPM's usual one, with a note that it cannot draw."""
    import diffusers

    if not (root / "scheduler").is_dir():
        return diffusers.DDPMScheduler(), "cannot draw: no scheduler beside the U-Net; noise as in DDPM (linear)"
    name = _described(root, SCHEDULE).get("_class_name", "")
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise HarnessError(f"the scheduler {name!r} in {root}", "one of diffusers' own")
    scheduler = kind.from_pretrained(root / "scheduler", local_files_only=True)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise HarnessError(f"the scheduler {name} has no discrete noise levels", "one in the manner of DDPM or DDIM")
    return scheduler, None
