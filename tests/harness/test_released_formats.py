"""The formats that weights come in: official state dicts and diffusers; each gives what its own library gives."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.heads import Measures
from harness.config import parse_words
from harness.errors import HarnessError
from harness.fitted import FittedDrawing
from harness.method import DataSpec, Tap
from harness.released.formats import Asked, load
from harness.rng import Rng
from harness.store import Study
from tests.backbones import adm_twin
from tests.harness.released import QUICK, Malicious
from tests.methods import masked
from tests.methods.test_dit_reference import official as dit_official
from tests.methods.test_umd import golden_params

# -- official formats -----------------------------------------------------------------------------------------------

MAE = {"width": 96, "narrow": 64, "side": 4, "channels": 3, "patch": 4}


def narrow(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in state.items()}


def vae(folder: Path) -> Path:
    """A diffusers VAE of Stable Diffusion's measures: 3 channels in, 4 latent ones of an 8th of the side."""
    from diffusers import AutoencoderKL

    levels = 4
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=8,
    ).save_pretrained(folder)
    return folder


def test_official_mae_weights_draw_with_statistics_of_the_data(saved):
    path = saved({"model": narrow(masked.official(**MAE))})
    found = load(Asked(str(path), "mae"))
    assert (found.name, found.draws, found.missing, found.unexpected) == ("mae", True, [], [])
    assert found.config["encoder"] == [96, 2, 3] and "800 or 1600 epochs" in found.recipe
    data = DataSpec("colours", channels=3, size=8, classes=2)
    train = Rng(0).integers("train", 256, (64, 3, 8, 8)).to(torch.uint8)
    weights = {name: value.clone() for name, value in found.method.state_dict().items()}
    fitted = FittedDrawing(found.method.eval(), data, found.complete, train)
    samples = fitted.sample(3, Rng(0), steps=2)
    assert samples.shape == (3, 3, 8, 8) and samples.abs().max() <= 1 and samples.std() > 0.05
    state = found.method.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items()), "a weight was moved"


def test_an_official_encoder_alone_does_not_draw_and_its_decoder_is_not_counted(saved):
    state = narrow(masked.official(**MAE))
    encoder = {k: v for k, v in state.items() if not k.startswith(("decoder", "mask_token"))}
    found = load(Asked(str(saved(encoder)), "mae"))
    assert not found.draws and "core.mask_token" in found.missing
    assert found.trained == sum(v.numel() for k, v in encoder.items() if k != "pos_embed")
    with pytest.raises(HarnessError, match=r"lacks 1 tensor\(s\) of the method: core.norm.bias"):
        load(Asked(str(saved({k: v for k, v in encoder.items() if k != "norm.bias"})), "mae"))


def test_half_precision_keeps_the_fixed_position_code(saved):
    path = saved({"model": {name: value.half() for name, value in masked.official(**MAE).items()}})
    assert not any("pos_embed" in note for note in load(Asked(str(path), "mae")).notes)


def test_a_fine_tuned_mae_is_marked_or_sent_to_timm(saved):
    """MAE's own code fine-tunes at the class token, or with a norm after the pooling in the place of the last one."""
    state = narrow(masked.official(**MAE))
    encoder = {k: v for k, v in state.items() if not k.startswith(("decoder", "mask_token"))}
    head = {"head.weight": torch.ones(7, 96), "head.bias": torch.ones(7)}
    found = load(Asked(str(saved(encoder | head)), "mae", allow_unexpected=True))
    assert found.classes == 7 and found.unexpected == ["head.bias", "head.weight"]
    pooled = {k.replace("norm.", "fc_norm.") if k.startswith("norm.") else k: v for k, v in (encoder | head).items()}
    with pytest.raises(HarnessError, match="fine-tuned with pooled tokens") as refused:
        load(Asked(str(saved(pooled)), "mae"))
    words = shlex.split(refused.value.next_step.partition(": ")[2])
    assert words[:2] == ["--format", "timm"]
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 96, "depth": 2, "num_heads": 3}
    settings = parse_words(words[2:])
    settings["timm"]["args"] |= args
    found = load(Asked(str(saved(pooled)), words[1], settings=settings))
    assert found.classes == 7 and found.config["mean"] == [0.485, 0.456, 0.406]
    assert found.method.network.fc_norm.weight.shape == (96,)


def test_the_names_of_another_library_are_no_official_ones(saved):
    path = saved({"vit.embeddings.cls_token": torch.zeros(1, 1, 96)})
    with pytest.raises(HarnessError, match=r"no 'patch_embed.proj.weight' among the tensors") as refused:
        load(Asked(str(path), "mae"))
    assert "another --format" in refused.value.next_step


def test_latents_need_their_vae(tmp_path, saved):
    state = narrow(masked.official(**MAE | {"channels": 4, "side": 1}))
    path = saved({"model": state})
    with pytest.raises(HarnessError, match=r"lmd.vae=FOLDER, a diffusers AutoencoderKL that makes the latents"):
        load(Asked(str(path), "lmd"))
    with pytest.raises(HarnessError, match="trained within a budget, and nothing is trained here"):
        load(Asked(str(path), "lmd", settings={"lmd": {"vae": "train"}}))
    found = load(Asked(str(path), "lmd", settings={"lmd": {"vae": str(vae(tmp_path / "vae"))}}))
    assert found.frozen == sum(p.numel() for p in found.method.vae.parameters())
    assert found.trained == sum(v.numel() for k, v in state.items() if "pos_embed" not in k)
    assert found.method.data.size == 32 and len(found.method.borrowed()) == 1


def test_an_official_dit_names_what_it_saw(tmp_path, saved):
    found = load(Asked(str(saved({"ema": narrow(dit_official(width=96))})), "dit", settings=_dit(tmp_path)))
    assert (found.entry, found.classes, found.draws) == ("ema", 10, True)
    assert any("trained with labels" in note for note in found.notes)
    fitted = FittedDrawing(found.method.eval(), DataSpec("colours", channels=3, size=16, classes=2))
    assert fitted.sample(2, Rng(0), steps=2).shape == (2, 3, 16, 16)
    assert "samples of 64 px are resized to 16 px" in fitted.remarks()


def _dit(folder: Path) -> dict:
    return {"dit": {"vae": str(vae(folder / "vae"))}}


def test_official_umd_arrays_are_read(tmp_path):
    """Flax parameters by path, as `numpy.savez` writes them; once the averaged tree of a training state."""
    arrays = {name: np.asarray(value) for name, value in golden_params().items()}
    trees = {f"{tree}/{name}": value for tree in ("params", "ema_params") for name, value in arrays.items()}
    np.savez(tmp_path / "umd.npz", **trees, step=np.array(7))
    found = load(Asked(str(tmp_path / "umd.npz"), "umd"))
    assert (found.draws, found.classes, found.missing, found.unexpected) == (True, 10, [], [])
    assert (found.entry, found.kind) == ("ema_params", "ema")
    assert found.config["heads"] == 4 and "800 epochs" in found.recipe and found.method.data.size == 16
    np.savez(tmp_path / "more.npz", **arrays, other=np.zeros(3))
    with pytest.raises(HarnessError, match=r"1 tensor\(s\) that the method has no place for: other"):
        load(Asked(str(tmp_path / "more.npz"), "umd"))


# -- ADM ------------------------------------------------------------------------------------------------------------


def adm() -> dict[str, torch.Tensor]:
    """The golden twin's state dict in guided-diffusion's names, three levels for 32 px."""
    net = adm_twin.TWIN
    shapes = adm_twin.official(net.width, (1, 1, 2), net.blocks, (2,))
    return {k: Rng(0).normal(k, v) * 0.05 + (len(v) == 1 and k.endswith("weight")) for k, v in shapes.items()}


def test_an_adm_is_read_at_its_blocks_and_draws(saved):
    path = saved(adm(), "adm.pt")
    found = load(Asked(str(path), "adm", settings={"adm": {"head": 32}}))
    method = found.method
    assert method.data == DataSpec("released", 3, 32, 0) and found.draws and not found.missing
    images = Rng(1).uniform("images", (2, 3, 32, 32)) * 2 - 1
    usual, clean = method.taps()[0], Tap(method.taps()[0].layer, None)
    noised, plain_ = method.features(images, [usual, clean], Rng(0))
    noise = Rng(0).at("tap", usual.noise).normal("noise", images.shape)
    level = torch.full((2,), usual.noise)
    block = int(usual.layer.removeprefix("block"))
    with torch.no_grad():
        wanted = method.network.read(method.diffusion.noised(images, level, noise), level, [block])[block]
    torch.testing.assert_close(noised, wanted.mean(dim=(2, 3)))
    assert noised.shape == plain_.shape and not torch.allclose(noised, plain_)
    assert all(len(level) == 3 and set(level) <= set(method.taps()) for level in method.fusion())
    fitted = FittedDrawing(method, DataSpec("digits", channels=1, size=8, classes=10))
    samples = fitted.sample(2, Rng(0), steps=2)
    assert samples.shape == (2, 1, 8, 8) and samples.std() > 0.05


def test_an_adm_can_be_fed_back_into(saved):
    method = load(Asked(str(saved(adm(), "adm.pt")), "adm", settings={"adm": {"head": 32}})).method
    method.requires_grad_(False)
    data = DataSpec("digits", channels=1, size=8, classes=10)
    head = FittedDrawing(method, data).feedback_head(10, Measures(16, 1, 2, 4))
    head(Rng(1).uniform("images", (3, 1, 8, 8)), Rng(0)).sum().backward()
    assert all(p.grad is not None for p in head.parameters()) and all(p.grad is None for p in method.parameters())


def test_what_is_no_unconditional_adm_is_refused(saved):
    state = adm()
    with pytest.raises(HarnessError, match="an ADM with labels"):
        load(Asked(str(saved(state | {"label_emb.weight": torch.zeros(10, 128)})), "adm"))
    with pytest.raises(HarnessError, match=r"lacks 2 tensor\(s\) of the method: network.unet.conv_in.bias, "):
        lacking = {k: v for k, v in state.items() if k not in ("input_blocks.0.0.bias", "out.0.bias")}
        load(Asked(str(saved(lacking)), "adm", settings={"adm": {"head": 32}}))


# -- diffusers ------------------------------------------------------------------------------------------------------


def pipeline(folder: Path, scheduler: str = "DDIMScheduler", **changes) -> Path:
    """A pipeline of diffusers' own with a tiny U-Net for 8 px."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
        )
    of = {"DDIMScheduler": diffusers.DDIMPipeline, "DDPMScheduler": diffusers.DDPMPipeline}
    of[scheduler](unet, getattr(diffusers, scheduler)(**changes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler"])
def test_a_diffusers_pipeline_draws_what_diffusers_draws(tmp_path, monkeypatch, scheduler):
    import diffusers

    found = load(Asked(str(pipeline(tmp_path / "pipe", scheduler)), "diffusers"))
    assert found.draws and found.method.data == DataSpec("released", 1, 8, 0)
    samples = found.method.eval().sample(2, Rng(0), steps=5)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    start = Rng(0).normal("start", (2, 1, 8, 8))
    module = sys.modules[type(pipe).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: start)
    theirs = pipe(batch_size=2, num_inference_steps=5, generator=Rng(0).generator("steps"), output_type="np")
    torch.testing.assert_close((samples / 2 + 0.5).permute(0, 2, 3, 1), torch.from_numpy(theirs.images))


def test_decoder_levels_are_read_at_their_noise(tmp_path):
    found = load(Asked(str(pipeline(tmp_path / "pipe")), "diffusers"))
    method = found.method.eval()
    images = Rng(1).uniform("images", (3, 1, 8, 8)) * 2 - 1
    taps = [Tap("up1"), Tap("up2", 40), Tap("up3", 40)]
    assert method.taps()[:2] == [Tap("up1"), Tap("up1", 40)] and set(taps) <= set(method.taps())
    seen = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in method.unet.up_blocks]
    clean, noised, last = method.features(images, taps, Rng(0))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 6, "one pass for each noise"
    noise = Rng(0).at("tap", 40).normal("noise", images.shape)
    alpha = method.scheduler.alphas_cumprod[40]
    method.unet.up_blocks[2].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        method.unet(alpha.sqrt() * images + (1 - alpha).sqrt() * noise, 40)
    torch.testing.assert_close(last, seen[-1].mean(dim=(2, 3)))
    assert clean.shape == (3, 16) and noised.shape == last.shape == (3, 8)


def test_a_diffusers_folder_through_the_evals(tmp_path, harness):
    path = pipeline(tmp_path / "my-pipe")
    words = [*QUICK, "diffusers.steps=3", "--name", "s", "--out", tmp_path]
    status, out, _ = harness("eval", "--checkpoint", path, *words)
    assert status == 0 and "diffusers, released weights my-pipe" in out
    (run,) = Study(tmp_path / "s").runs()
    assert run.config == {"steps": 3, "size": 0, "scheduler": "DDIMScheduler"}
    status, out, _ = harness("eval", "--checkpoint", path / "unet", *words)
    assert status == 0 and "cannot draw: no scheduler beside the U-Net" in " ".join(out.split())


def test_what_is_no_plain_pipeline_is_refused(tmp_path, harness):
    def complaint(path: Path) -> str:
        status, _, err = harness("eval", "--checkpoint", path, "--format", "diffusers", "--out", tmp_path / "runs")
        assert status == 2
        return err

    assert "no config.json in" in complaint(tmp_path)
    (tmp_path / "file.pth").touch()
    assert "no config.json in" in complaint(tmp_path / "file.pth")
    assert "holds AutoencoderKL" in complaint(vae(tmp_path / "vae"))
    path = pipeline(tmp_path / "pipe")
    config = json.loads((path / "scheduler/scheduler_config.json").read_text())
    (path / "scheduler/scheduler_config.json").write_text(json.dumps(config | {"_class_name": "os.system"}))
    assert "the scheduler 'os.system'" in complaint(path)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/pipeline.py").touch()
    assert "with code of its own" in complaint(tmp_path / "ours")
    marker = tmp_path / "ran"
    (path / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"a": Malicious(marker)}, path / "unet/diffusion_pytorch_model.bin")
    assert "holds more than tensors" in complaint(path) and not marker.exists()
    torch.save({"conv_in.weight": torch.zeros(8, 1, 3, 3)}, path / "unet/diffusion_pytorch_model.bin")
    assert "lacks" in complaint(path) and "conv_in.bias" in complaint(path)
    torch.save({"conv_in.weight": torch.zeros(8, 3, 3, 3)}, path / "unet/diffusion_pytorch_model.bin")
    assert "diffusers cannot load" in complaint(path) and "size mismatch for conv_in.weight" in complaint(path)


def test_another_schedule_beside_the_same_weights_is_another_row(tmp_path):
    one, same = (load(Asked(str(pipeline(tmp_path / name)))) for name in ("a", "b"))
    other = load(Asked(str(pipeline(tmp_path / "c", beta_end=0.03))))
    assert one.sha256 == same.sha256 == other.sha256
    assert one.described == same.described != other.described
