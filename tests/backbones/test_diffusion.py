"""Schedules, noising and DDIM against the reference's numbers, and one step against diffusers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.diffusion import SCHEDULES, Diffusion, T
from harness.errors import HarnessError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "umd.json").read_text())
PRINTED = 1e-9  # relative; the golden numbers have ten to twelve digits


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def waves(scale: float, rate: float, phase: float, n: int, wave=np.sin) -> torch.Tensor:
    """The golden inputs [n, 3, 16, 16]: filled with channels last, in C order."""
    values = scale * wave(rate * np.arange(n * 768) + phase)
    return torch.from_numpy(values.reshape(n, 16, 16, 3)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_alpha_bar_equals_the_reference(name):
    table = SCHEDULES[name]()
    assert table.shape == (T,) and table.dtype == np.float64
    assert np.all(np.diff(table) < 0)
    for k, value in GOLDEN["alpha_bar"][name].items():
        assert table[int(k)] == pytest.approx(value, rel=1e-11)


def test_noised_equals_the_reference(float64):
    x, eps = waves(0.8, 0.11, 0.5, 2), waves(1.3, 0.23, 0.1, 2, np.cos)
    noised = Diffusion("cosine").noised(x, torch.tensor([40, 700]), eps)
    assert noised[0, :, 0, 0].tolist() == pytest.approx(GOLDEN["noised"], rel=PRINTED)


def test_ddim_step_equals_the_reference(float64):
    golden, diffusion = GOLDEN["ddim_500_492"], Diffusion("cosine")
    x = 1.5 * waves(0.8, 0.11, 0.5, 2)
    clipped, free = (diffusion.ddim_step(x, 0.3 * x + 0.1, 500, 492, None, 0.0, clip) for clip in (True, False))
    assert clipped[0, :, 0, 0].tolist() == pytest.approx(golden["clipped"], rel=PRINTED)
    assert clipped.abs().mean().item() == pytest.approx(golden["mean_abs_clipped"], rel=PRINTED)
    assert free.abs().mean().item() == pytest.approx(golden["mean_abs_unclipped"], rel=PRINTED)
    assert diffusion.sigma(500, 492, eta=1.0) == pytest.approx(golden["sigma_eta_1"], rel=PRINTED)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_step_equals_diffusers(float64, eta, clip):
    """diffusers re-derives eps from the clipped estimate only with `use_clipped_model_output`."""
    from diffusers import DDIMScheduler

    diffusion = Diffusion("cosine")
    theirs = DDIMScheduler(clip_sample=clip)
    theirs.alphas_cumprod = torch.from_numpy(diffusion.alpha_bar)  # its own is float32
    theirs.set_timesteps(125)  # a stride of 8
    x, eps, noise = 1.5 * waves(0.8, 0.11, 0.5, 2), waves(1.3, 0.23, 0.1, 2), waves(1.0, 0.7, 0.0, 2)
    ours = diffusion.ddim_step(x, eps, 500, 492, noise if eta else None, eta, clip)
    step = theirs.step(eps, 500, x, eta=eta, use_clipped_model_output=True, variance_noise=noise)
    torch.testing.assert_close(ours, step.prev_sample, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("steps", "stride", "visits"), [(125, 8, 126), (250, 4, 251), (50, 20, 51), (62, 17, 60)])
def test_grid_is_the_references(steps, stride, visits):
    """Pitfall 6 of the card: 62 steps visit 60 levels, and nothing is visited twice."""
    grid = Diffusion().grid(steps)
    assert grid[:2] == [999, 999 - stride] and grid[-1] == 0
    assert len(grid) == len(set(grid)) == visits
    assert set(np.diff(grid[:-1])) == {-stride}


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_grid_refuses(steps):
    with pytest.raises(HarnessError, match="sampling steps"):
        Diffusion().grid(steps)


def test_ddim_runs_steps_plus_one_times_and_finds_a_known_image(float64):
    """With the true eps of one image as denoiser, deterministic DDIM ends on that image."""
    diffusion, target, visited = Diffusion("cosine"), waves(0.8, 0.11, 0.5, 2), []

    def denoise(x, k):
        visited.append(k)
        return (x - diffusion.signal[k] * target) / diffusion.spread[k]

    start = waves(1.0, 1.7, 0.3, 2)
    levels = diffusion.grid(25)
    out = diffusion.ddim(denoise, start, levels, noise=lambda i: pytest.fail("eta 0 draws no noise"), eta=0.0)
    assert visited == levels and len(visited) == 26
    torch.testing.assert_close(out, target, rtol=0, atol=1e-9)


def test_ancestral_ddim_uses_each_steps_noise_once():
    diffusion, drawn = Diffusion("linear"), []

    def noise(step):
        drawn.append(step)
        return torch.full((1, 1, 2, 2), 0.1)

    out = diffusion.ddim(lambda x, k: 0.5 * x, torch.ones(1, 1, 2, 2), diffusion.grid(10), noise=noise)
    assert drawn == list(range(10))
    assert out.abs().max() <= 1


def test_tables_follow_the_module_and_stay_out_of_checkpoints():
    diffusion = Diffusion("linear")
    assert diffusion.state_dict() == {}
    assert diffusion.to("meta").signal.device.type == "meta"


def test_unknown_schedule_gets_a_suggestion():
    with pytest.raises(HarnessError, match="did you mean 'cosine'"):
        Diffusion("cosin")
