"""Released weights that are timm's: each model gives what timm gives, and says what it saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.errors import HarnessError
from harness.released.formats import Asked, load
from harness.rng import Rng
from harness.store import Study

ARGS = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2}


def timm_vit(classes: int = 0) -> torch.nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("vit_tiny_patch16_224", num_classes=classes, **ARGS).eval()


def test_a_timm_model_gives_what_timm_gives(saved):
    network = timm_vit(classes=10)
    settings = {"timm": {"model": "vit_tiny_patch16_224", "args": ARGS, "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3}}
    found = load(Asked(str(saved(network.state_dict())), "timm", settings=settings))
    method = found.method.eval()
    images = Rng(0).uniform("images", (3, 3, 8, 8)) * 2 - 1
    assert [str(tap) for tap in method.taps()] == ["pooled", "mean", "stage3", "stage2"]
    pooled, mean, three, _ = method.features(images, method.taps(), Rng(0))
    x = ((images + 1) / 2 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
    last = network.forward_features(x)
    torch.testing.assert_close(pooled, network.forward_head(last, pre_logits=True))
    torch.testing.assert_close(mean, last[:, 1:].mean(dim=1))
    torch.testing.assert_close(three, network.forward_intermediates(x, indices=[2])[1][0].mean(dim=(2, 3)))
    assert method.maps() == method.taps()[1:]
    (maps,) = method.features(images, method.taps()[2:3], Rng(0), dense=True)
    assert maps.shape == (3, 24, 2, 2)
    assert found.unexpected == [] and not found.draws


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_models_that_are_no_vit_are_read_alike(name, saved):
    import timm

    from harness.released.timm_model import Config, TimmModel, _described

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=0).eval()
    method = TimmModel(*_described(network, Config()), network).eval()
    side = method.data.size
    found = method.features(torch.zeros(1, 3, side, side), method.taps(), Rng(0))
    assert all(values.shape[0] == 1 and values.ndim == 2 for values in found)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4) if name == "resnet18" else None
    (maps,) = method.features(torch.zeros(1, 3, side, side), method.taps()[1:2], Rng(0), dense=True)
    assert maps.shape[1] == network.num_features and maps.shape[2] == maps.shape[3] == side // 32


def test_a_folder_as_timm_saves_it_is_evaluated_under_its_name(tmp_path, harness):
    from timm.models import save_for_hf

    save_for_hf(timm_vit(), tmp_path / "my-vit", safe_serialization=True)
    words = ["--evals", "knn", "--name", "s", "--out", tmp_path, "--borrowed", "a week on a farm"]
    status, out, _ = harness("eval", "--checkpoint", tmp_path / "my-vit", *words)
    assert status == 0 and "timm, released weights my-vit" in out and "a week on a farm" in " ".join(out.split())
    (run,) = Study(tmp_path / "s").runs()
    assert run.config["model"] == "vit_tiny_patch16_224" and run.released is not None
    assert run.released.channels == 3, "digits are grey, and the network is not"
    assert any("grey images are given to a network of colours" in note for note in run.notes)


def timm_folder(folder: Path, classes: int = 0) -> str:
    from timm.models import save_for_hf

    save_for_hf(timm_vit(classes), folder, safe_serialization=True)
    return str(folder)


def test_a_timm_model_with_a_head_is_taken_to_have_seen_labels(tmp_path, harness):
    assert load(Asked(timm_folder(tmp_path / "plain"))).classes == 0
    words = ["--evals", "knn", "--name", "s", "--out", tmp_path]
    assert harness("eval", "--checkpoint", timm_folder(tmp_path / "vit", classes=10), *words)[0] == 0
    (run,) = Study(tmp_path / "s").runs()
    assert run.saw_labels and run.released.classes == 10 and "head of 10 outputs is left out" in " ".join(run.notes)


def test_a_changed_config_beside_the_same_weights_is_another_row(tmp_path, harness):
    words = ["eval", "--checkpoint", timm_folder(tmp_path / "vit"), "--evals", "knn", "--name", "s", "--out", tmp_path]
    assert harness(*words)[0] == 0
    path = tmp_path / "vit/config.json"
    config = json.loads(path.read_text())
    config["model_args"]["num_heads"] = 4
    path.write_text(json.dumps(config))
    assert harness(*words)[0] == 0
    assert len(list(Study(tmp_path / "s").runs())) == 2


def test_a_folder_and_a_hub_name_tell_the_model_themselves(tmp_path):
    settings = {"timm": {"model": "resnet18"}}
    with pytest.raises(HarnessError, match=r"timm.model=resnet18 for .* which names its own"):
        load(Asked(timm_folder(tmp_path / "vit"), settings=settings))
    with pytest.raises(HarnessError, match="--weights ema for timm:resnet18"):
        load(Asked("timm:resnet18", weights="ema"))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_225", "vit_tiny_patch16_224.augreg_in21"])
def test_a_model_that_timm_has_no_weights_of_is_not_asked_of_the_hub(name):
    with pytest.raises(HarnessError, match=r"timm has no weights called 'vit_tiny.*\n.*vit_tiny_patch16_224.augreg"):
        load(Asked(f"timm:{name}"))


def test_without_a_hub_the_error_says_what_to_do(harness, tmp_path, monkeypatch):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    status, _, err = harness("eval", "--checkpoint", "timm:vit_tiny_patch16_224", "--evals", "knn", "--out", tmp_path)
    assert status == 2 and "'vit_tiny_patch16_224' cannot be had" in err
    assert "hf download timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k --local-dir FOLDER" in err
    assert "--checkpoint FOLDER --format timm" in err
