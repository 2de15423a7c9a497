"""The grid: all taps stream through the choice, one pass a noise level, and the best one meets the test part."""

from __future__ import annotations

import pytest
import torch

from evals import grid, linear
from harness.evaluation import Subject, evaluate
from harness.evaluation.features import CHUNK
from harness.method import Tap
from tests.evals.kit import Toy, context

WHO = Subject(reference="toy")


class Gridded(Toy):
    """Six layers at two noise levels; the fifth layer, which the common rule never looks at, knows most."""

    def taps(self):
        return [Tap(f"block{k}", noise) for k in range(1, 7) for noise in (3, 20)]

    def features(self, images, taps, rng, dense=False):
        self.passes.append(tuple(taps))
        columns = images.mean(dim=(1, 2))
        noise = rng.at("tap", taps[0].noise).normal("noise", (6, *columns.shape))
        return [
            columns + noise[int(tap.layer[-1]) - 1] * tap.noise * (0.003 if tap.layer == "block5" else 0.05)
            for tap in taps
        ]


def test_the_best_of_all_taps_is_found_in_one_pass_a_noise_level(tmp_path):
    method = Gridded()
    where = context(tmp_path, method)
    record = evaluate("grid", where, grid.Config(probe=linear.Config(taps=0, seeds=1)), subject=WHO)
    assert record.chosen["tap"] == "block5@3" and len(record.chosen["tap_scores"]) == 12
    assert record.numbers["grid_top1"].value > 60
    chunks = {part: -(-where.part(part).n // CHUNK) for part in ("fit", "select", "test")}
    # Two levels of the grid on fit and select, and the chosen tap, which the grid did not keep, on all three.
    assert len(method.passes) == 3 * (chunks["fit"] + chunks["select"]) + chunks["test"]
    assert (where.pictures / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_a_grid_keeps_no_features(tmp_path):
    where = context(tmp_path, Gridded(), kept=tmp_path / "kept")
    choice = where.choose_tap(0)
    assert choice.trials == 12 and not (tmp_path / "kept").exists()
    assert where.choose_tap(4).trials == 4
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 8  # four taps on fit and select


def test_streaming_finds_what_whole_features_would(tmp_path):
    where = context(tmp_path, Gridded())
    streamed = where.choose_tap(0).scores
    whole = context(tmp_path, Gridded())
    for tap in whole.method.taps():
        fit, select = whole.features([tap], "fit")[tap].double(), whole.features([tap], "select")[tap].double()
        mean, scale = fit.mean(0), fit.std(0, correction=0)
        x, targets = (fit - mean) / scale, torch.eye(3).double()[whole.labels("fit")]
        gram = x.T @ x / len(x) + 1e-2 * torch.eye(x.shape[1]).double()
        weights = torch.linalg.solve(gram, x.T @ (targets - targets.mean(0)) / len(x))
        guess = ((select - mean) / scale @ weights + targets.mean(0)).argmax(1)
        top1 = 100 * (guess == whole.labels("select")).double().mean().item()
        assert streamed[str(tap)] == pytest.approx(top1, abs=1e-3)


def test_a_shortened_grid_is_refused():
    with pytest.raises(ValueError, match="a grid is all taps"):
        grid.Config(probe=linear.Config(taps=4))
