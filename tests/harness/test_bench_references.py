"""The reference loops that are driven from here, over stand-in checkouts; nothing here asserts a time."""

from __future__ import annotations

import importlib.util
import sys
from collections import namedtuple
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import numpy as np
import pytest

from harness.bench import run_bench
from harness.bench.reference import SOURCES, require
from harness.errors import HarnessError
from tests.harness.test_bench import check_profile

# Modules with the references' names and signatures, doing next to nothing but asserting how they are used.
DIT = {
    "models.py": """
        import torch

        class DiT(torch.nn.Module):
            def __init__(self, input_size, hidden_size, num_classes, learn_sigma, **rest):
                super().__init__()
                assert num_classes == 1 and learn_sigma
                assert set(rest) == {"patch_size", "in_channels", "depth", "num_heads"}
                self.y_embedder = torch.nn.Embedding(2, hidden_size)
                self.line = torch.nn.Linear(input_size, 2 * input_size)

            def forward(self, x, t, y):
                assert self.training and not y.any() and x.min() >= -1 and x.min() < 0
                return self.line(x) + self.y_embedder(y).mean() + t.view(-1, 1, 1, 1) / 1000
    """,
    "train.py": """
        import torch

        def center_crop_arr(pil_image, image_size):
            assert pil_image.size == (image_size, image_size)
            return pil_image

        def requires_grad(model, flag=True):
            for p in model.parameters():
                p.requires_grad = flag

        @torch.no_grad()
        def update_ema(ema_model, model, decay=0.9999):
            for mine, theirs in zip(ema_model.parameters(), model.parameters(), strict=True):
                mine.mul_(decay).add_(theirs, alpha=1 - decay)
    """,
    "diffusion/__init__.py": """
        class Diffusion:
            num_timesteps = 1000

            def training_losses(self, model, x, t, model_kwargs):
                assert t.max() < 1000
                return {"loss": model(x, t, **model_kwargs).square().flatten(1).mean(dim=1)}

        def create_diffusion(timestep_respacing):
            assert timestep_respacing == ""
            return Diffusion()
    """,
    "diffusion/gaussian_diffusion.py": "",
}
DDAE = {
    "model/__init__.py": "",
    "model/models.py": """
        from .DDPM import DDPM
        from .unet import UNet

        def get_models_class(model_type, net_type):
            return {"DDPM": DDPM}[model_type], {"UNet": UNet}[net_type]
    """,
    "model/unet.py": """
        import torch
        from .block import GroupNorm32

        class UNet(torch.nn.Module):
            def __init__(self, image_shape, n_channels, ch_mults, is_attn, attn_channels_per_head, dropout, n_blocks,
                         use_res_for_updown):
                super().__init__()
                assert (image_shape, ch_mults, is_attn) == ([3, 8, 8], [1, 2], [False, True])
                assert (attn_channels_per_head, n_blocks, use_res_for_updown) == (None, 2, False)
                self.net = torch.nn.Sequential(
                    torch.nn.Conv2d(3, n_channels, 1), GroupNorm32(n_channels), torch.nn.Conv2d(n_channels, 3, 1)
                )
    """,
    "model/block.py": """
        import torch

        def GroupNorm32(channels):
            return torch.nn.GroupNorm(32, channels)
    """,
    "model/DDPM.py": """
        import torch

        class DDPM(torch.nn.Module):
            def __init__(self, nn_model, betas, n_T, device):
                super().__init__()
                print("noise that must not reach the answers")
                assert betas == (1e-4, 0.02) and n_T == 1000
                self.nn_model = nn_model

            def forward(self, x, use_amp=False):
                assert self.training and 0 <= x.min() and x.max() <= 1
                return self.nn_model.net(x).square().mean()
    """,
    "train.py": "raise SystemExit('its loop wants a GPU')",
    "utils.py": "",
    "ema_pytorch.py": """
        import copy
        import torch

        class EMA(torch.nn.Module):
            def __init__(self, model, beta, update_after_step, update_every):
                super().__init__()
                assert (beta, update_after_step, update_every) == (0.9999, 0, 1)
                self.kept = copy.deepcopy(model)

            def update(self):
                pass
    """,
}
Unet = namedtuple("Unet", "width mults blocks attention head resample dropout groups")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(dedent(text))
    return root


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)


def test_dit_runs_in_a_process_of_its_own_and_its_label_table_is_not_counted(tmp_path: Path, images) -> None:
    from harness.bench.side import Side, Spec

    checkout = write(tmp_path / "DiT", DIT)
    np.save(tmp_path / "images.npy", images)
    spec = Spec("dit", "nano", str(tmp_path / "images.npy"), batch_size=4, reference=str(require("dit", checkout)))
    with Side("reference", spec) as reference:
        assert reference.about == {"parameters": 9 * 16, "precision": "fp32"}
        for workers in (0, 1):
            check_profile(reference.ask(do="profile", warm=1, steps=2, workers=workers))


def test_ddae_takes_its_network_from_our_settings(tmp_path: Path, images, monkeypatch) -> None:
    """In this process: our own DDAE may not be installed, and the modules are gone again afterwards."""
    import torch

    from harness.bench.reference import load
    from harness.bench.side import serve

    checkout = write(tmp_path / "ddae", DDAE)
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = SimpleNamespace(lr=1.0, unet=Unet(16, (1, 2), 2, (1,), 0, "conv", 0.1, 8))
    try:
        loop = load("ddae", checkout, images, config, 4, torch.device("cpu"))
        assert loop.about() == {"parameters": 3 * 16 + 16 + 32 + 16 * 3 + 3, "precision": "fp32"}
        check_profile(serve(loop, do="profile", warm=1, steps=2))
        with pytest.raises(HarnessError, match="0 settings of a U-Net"):
            load("ddae", checkout, images, SimpleNamespace(lr=1.0), 4, torch.device("cpu"))
    finally:
        for name in set(sys.modules) - before:
            if name in ("model", "ema_pytorch") or name.startswith("model."):
                del sys.modules[name]


def test_what_a_reference_needs_besides_is_named_with_how_to_install_it(tmp_path: Path, monkeypatch) -> None:
    checkout = write(tmp_path / "ddae", DDAE)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ema_pytorch" else find_spec(name))
    with pytest.raises(
        HarnessError, match=r"imports ema_pytorch(.|\n)*pip install .*--target bench-packages ema-pytorch"
    ):
        require("ddae", checkout)


@pytest.mark.parametrize("method", sorted(SOURCES))
def test_each_reference_is_asked_for_by_its_repository(method: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=f"git clone {SOURCES[method].repository}"):
        run_bench("train", method=method)
    with pytest.raises(HarnessError, match="lacks"):
        require(method, tmp_path)


def test_a_method_without_a_reference_loop_and_an_unknown_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="did you mean 'dit'"):
        run_bench("train", method="bit")
    with pytest.raises(HarnessError, match="unknown size 'huge'"):
        run_bench("train", write(tmp_path, DIT), method="dit", sizes="huge")
